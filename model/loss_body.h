/* loss_body - the body of loss.c for one type of reals. */
#include "model/real.h"

/* s->input = factors of the final norm of rows of x. */
static void REAL_FN(final_input)(const float *gain, int64_t rows, const REAL *x, llama_scratch *s) {
    const int64_t n = s->cfg.hidden;
    const size_t row_bytes = (size_t)n * compute_factor_bytes(s->compute);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < rows; t++) {
        REAL *row = scratch_of_thread(s);
        REAL_FN(norm_rows)(x + t * n, 1, n, s->cfg.rms_eps, NULL, row);
        REAL_FN(norm_factors)(row, n, gain, s->compute, (char *)s->input + (size_t)t * row_bytes);
    }
}

/* Takes a row of logits into the running greatest logit and the sum of exponentials below it. */
static void REAL_FN(add_logits)(const REAL *z, int64_t n, double *max, double *sum) {
    REAL most = z[0], total = 0;
#pragma omp simd reduction(max : most)
    for (int64_t j = 0; j < n; j++) most = z[j] > most ? z[j] : most;
    if (*max > (double)most) most = (REAL)*max;
#pragma omp simd reduction(+ : total)
    for (int64_t j = 0; j < n; j++) total += REAL_EXP(z[j] - most);
    *sum = (*max > -INFINITY ? *sum * exp(*max - (double)most) : 0) + (double)total;
    *max = (double)most;
}

/* One chunk of the vocabulary for rows t0 .. t0+m, a tile of columns at a time. */
static void REAL_FN(head_chunk)(const wmat *head, int64_t t0, int64_t m, int64_t chunk,
                                int64_t chunks, const int32_t *next, llama_scratch *s) {
    const int64_t end = size_min(head->rows, (chunk + 1) * HEAD_CHUNK);
    const char *h =
        (const char *)s->input + (size_t)(t0 * head->cols) * compute_factor_bytes(s->compute);
    REAL *z = scratch_of_thread(s);
    for (int64_t t = t0; t < t0 + m; t++) {
        s->nll_max[t * chunks + chunk] = -INFINITY;
        s->nll_sum[t * chunks + chunk] = 0;
    }
    for (int64_t j = chunk * HEAD_CHUNK; j < end; j += WMAT_TILE_COLUMNS) {
        const int64_t n = size_min(WMAT_TILE_COLUMNS, end - j);
        wmat_tile(head, s->compute, h, head->cols, m, j, n, false, z, n, scratch_tile_of_thread(s));
        for (int64_t t = t0; t < t0 + m; t++) {
            const REAL *row = z + (t - t0) * n;
            const int64_t at = t * chunks + chunk;
            REAL_FN(add_logits)(row, n, &s->nll_max[at], &s->nll_sum[at]);
            if (next[t] >= j && next[t] < j + n) s->target[t] = (double)row[next[t] - j];
        }
    }
}

void REAL_FN(loss_nll)(const wmat *head, const float *final_norm, int64_t n_tokens, const REAL *x,
                       const int32_t *ids, llama_scratch *s, double *nll) {
    const int64_t rows = n_tokens - 1, chunks = size_ceil_div(head->rows, HEAD_CHUNK);
    const int64_t panels = size_ceil_div(rows, WMAT_TILE_ROWS);
    REAL_FN(final_input)(final_norm, rows, x, s);
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < panels * chunks; i++) {
        const int64_t t0 = i % panels * WMAT_TILE_ROWS;
        REAL_FN(head_chunk)
        (head, t0, size_min(WMAT_TILE_ROWS, rows - t0), i / panels, chunks, ids + 1, s);
    }
    for (int64_t t = 0; t < rows; t++) nll[t] = nll_of_chunks(s, t, chunks);
}

void REAL_FN(loss_logits)(const wmat *head, const float *final_norm, int64_t n_rows, const REAL *x,
                          llama_scratch *s, double *logits) {
    const wmat_tiles tiles = wmat_tiles_of(n_rows, head->rows);
    REAL_FN(final_input)(final_norm, n_rows, x, s);
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < tiles.count; i++) {
        const wmat_rect r = wmat_tiles_at(&tiles, i);
        const char *h =
            (const char *)s->input + (size_t)(r.i * head->cols) * compute_factor_bytes(s->compute);
        REAL *z = scratch_of_thread(s);
        wmat_tile(head, s->compute, h, head->cols, r.m, r.j, r.n, false, z, r.n,
                  scratch_tile_of_thread(s));
        for (int64_t t = 0; t < r.m; t++) {
            double *to = logits + (r.i + t) * head->rows + r.j;
            for (int64_t j = 0; j < r.n; j++) to[j] = (double)z[t * r.n + j];
        }
    }
}
