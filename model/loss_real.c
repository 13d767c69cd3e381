/* The log-sum-exp of a row of logits from slices of the vocabulary, which are put together in their
 * order at one place. */
#include "model/block_internal.h"

#include "base/gemm.h"
#include "base/size.h"
#include "base/vecmath.h"
#include "model/norm.h"

#include <math.h>

#include "base/real.h"

/* -log of the softmax at the target, from the chunks' sums in their order. */
static double nll_of_chunks(const llama_scratch *s, int64_t t, int64_t chunks) {
    const double *max = s->nll_max + t * chunks, *sum = s->nll_sum + t * chunks;
    double most = max[0], total = 0;
    for (int64_t c = 1; c < chunks; c++) most = max[c] > most ? max[c] : most;
    for (int64_t c = 0; c < chunks; c++) total += sum[c] * exp(max[c] - most);
    return most + log(total) - s->target[t];
}

/* s->input = factors of the final norm of rows of x. */
static void final_input(const float *gain, int64_t rows, const real *x, llama_scratch *s) {
    const int64_t n = s->cfg.hidden;
    const size_t row_bytes = (size_t)n * compute_factor_bytes(s->compute);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < rows; t++) {
        real *row = scratch_of_thread(s);
        norm_rows_f32(x + t * n, 1, n, s->cfg.rms_eps, NULL, row);
        norm_factors_f32(row, n, gain, s->compute, (char *)s->input + (size_t)t * row_bytes);
    }
}

/* Takes a row of logits into the running greatest logit and the sum of exponentials below it. */
static void add_logits(const real *z, int64_t n, double *max, double *sum) {
    real most = z[0], total = 0;
#pragma omp simd reduction(max : most)
    for (int64_t j = 0; j < n; j++) most = z[j] > most ? z[j] : most;
    if (*max > (double)most) most = (real)*max;
#pragma omp simd reduction(+ : total)
    for (int64_t j = 0; j < n; j++) total += vec_exp(z[j] - most);
    *sum = (*max > -INFINITY ? *sum * exp(*max - (double)most) : 0) + (double)total;
    *max = (double)most;
}

/* One chunk of the vocabulary for rows t0 .. t0+m, a tile of columns at a time. */
static void head_chunk(const wmat *head, int64_t t0, int64_t m, int64_t chunk, int64_t chunks,
                       const int32_t *next, llama_scratch *s) {
    const int64_t end = size_min(head->rows, (chunk + 1) * HEAD_CHUNK);
    const char *h =
        (const char *)s->input + (size_t)(t0 * head->cols) * compute_factor_bytes(s->compute);
    real *z = scratch_of_thread(s);
    for (int64_t t = t0; t < t0 + m; t++) {
        s->nll_max[t * chunks + chunk] = -INFINITY;
        s->nll_sum[t * chunks + chunk] = 0;
    }
    for (int64_t j = chunk * HEAD_CHUNK; j < end; j += WMAT_TILE_COLUMNS) {
        const int64_t n = size_min(WMAT_TILE_COLUMNS, end - j);
        wmat_tile(head, s->compute, h, head->cols, m, j, n, GEMM_SET, z, n,
                  scratch_tile_of_thread(s));
        for (int64_t t = t0; t < t0 + m; t++) {
            const real *row = z + (t - t0) * n;
            const int64_t at = t * chunks + chunk;
            add_logits(row, n, &s->nll_max[at], &s->nll_sum[at]);
            if (next[t] >= j && next[t] < j + n) s->target[t] = (double)row[next[t] - j];
        }
    }
}

void loss_nll_f32(const wmat *head, const float *final_norm, int64_t n_tokens, const real *x,
                  const int32_t *ids, llama_scratch *s, double *nll) {
    const int64_t rows = n_tokens - 1, chunks = size_ceil_div(head->rows, HEAD_CHUNK);
    const int64_t panels = size_ceil_div(rows, WMAT_TILE_ROWS);
    final_input(final_norm, rows, x, s);
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < panels * chunks; i++) {
        const int64_t t0 = i % panels * WMAT_TILE_ROWS;
        head_chunk(head, t0, size_min(WMAT_TILE_ROWS, rows - t0), i / panels, chunks, ids + 1, s);
    }
    for (int64_t t = 0; t < rows; t++) nll[t] = nll_of_chunks(s, t, chunks);
}

void loss_logits_f32(const wmat *head, const float *final_norm, int64_t n_rows, const real *x,
                     llama_scratch *s, double *logits) {
    const wmat_tiles tiles = wmat_tiles_of(n_rows, head->rows);
    final_input(final_norm, n_rows, x, s);
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < tiles.count; i++) {
        const wmat_rect r = wmat_tiles_at(&tiles, i);
        const char *h =
            (const char *)s->input + (size_t)(r.i * head->cols) * compute_factor_bytes(s->compute);
        real *z = scratch_of_thread(s);
        wmat_tile(head, s->compute, h, head->cols, r.m, r.j, r.n, GEMM_SET, z, r.n,
                  scratch_tile_of_thread(s));
        for (int64_t t = 0; t < r.m; t++) {
            double *to = logits + (r.i + t) * head->rows + r.j;
            for (int64_t j = 0; j < r.n; j++) to[j] = (double)z[t * r.n + j];
        }
    }
}
