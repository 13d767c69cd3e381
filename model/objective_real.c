/* Two passes over slices of the vocabulary: the first finds each row's maximum and log-sum-exp,
 * the second makes logits again and multiplies softmax minus target (or minus the teacher) with
 * the head. */
#include "model/objective_internal.h"

#include "base/gemm.h"
#include "base/size.h"
#include "base/vecmath.h"
#include "model/backward_internal.h"
#include "model/norm.h"
#include "model/wmat_backward.h"

#include <math.h>
#include <string.h>

#include "base/real.h"

/* What a pass over the vocabulary makes of a tile of logits. */
typedef enum head_mode {
    HEAD_SUMS,  /* greatest logit and sum of exponentials */
    HEAD_MEANS, /* these, and the mean of W's rows weighed by them, with a running maximum */
    HEAD_KL,    /* the sums are known: mass softmax - p of the teacher, times W */
} head_mode;

typedef struct head_pass {
    head_mode mode;
    const wmat *head;
    int64_t rows;
    const llama_teacher *teacher;
    llama_work *w;
} head_pass;

/* The greatest logit and log of the sum of exponentials of row i, from the parts in their order. */
static double lse_of_row(const llama_work *w, int64_t rows, int64_t i, double *max) {
    double most = -INFINITY, total = 0;
    for (int64_t p = 0; p < w->head_parts; p++) {
        const double m = w->head_max[p * rows + i];
        most = m > most ? m : most;
    }
    for (int64_t p = 0; p < w->head_parts; p++) {
        total += w->head_total[p * rows + i] * exp(w->head_max[p * rows + i] - most);
    }
    *max = most;
    return log(total);
}

/* First vocabulary row of a part: whole tiles. */
static int64_t part_begin(const wmat *head, const llama_work *w, int64_t part) {
    const int64_t tiles = size_ceil_div(head->rows, WMAT_TILE_COLUMNS);
    return size_min(head->rows, tiles * part / w->head_parts * WMAT_TILE_COLUMNS);
}

/* First of a row's kept tokens that is not below `id`; they are in order. */
static int64_t first_token(const int32_t *token, int64_t k, int64_t id) {
    int64_t lo = 0, hi = k;
    while (lo < hi) {
        const int64_t mid = (lo + hi) / 2;
        if (token[mid] < id)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

/* w->input = factors of the final norm of rows of x. */
static void head_input(const float *gain, int64_t rows, const real *x, llama_work *w) {
    const int64_t n = w->cfg.hidden;
    const size_t factor = compute_factor_bytes(w->shape.compute);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < rows; t++) {
        real *row = work_of_thread(w);
        norm_rows_f32(x + t * n, 1, n, w->cfg.rms_eps, NULL, row);
        norm_factors_f32(row, n, gain, w->shape.compute, bytes_at(w->input, t * n, factor));
    }
}

/* A row of logits into the running maximum and sum; the row becomes exp(z - max). What was summed
 * below the old maximum shrinks by the factor returned. */
static real running_softmax(real *z, int64_t n, double *max, double *total) {
    real most = z[0], sum = 0;
#pragma omp simd reduction(max : most)
    for (int64_t j = 0; j < n; j++) most = z[j] > most ? z[j] : most;
    if (*max > (double)most) most = (real)*max;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) {
        z[j] = vec_exp(z[j] - most);
        sum += z[j];
    }
    const double shrink = *max > -INFINITY ? exp(*max - (double)most) : 0;
    *total = *total * shrink + (double)sum;
    *max = (double)most;
    return (real)shrink;
}

/* sums [m, hidden] = weights [m, n] W[j .. j + n, :], plus sums with GEMM_ADD. */
static void add_rows_of_head(const head_pass *p, int64_t j, int64_t n, const void *weights,
                             int64_t m, gemm_into into, real *sums) {
    const int64_t hidden = p->w->cfg.hidden;
    for (int64_t c = 0; c < hidden; c += WMAT_TILE_COLUMNS) {
        wmat_backward_tile_rows(p->head, p->w->shape.compute, j, n, weights, n, m, c,
                                size_min(WMAT_TILE_COLUMNS, hidden - c), into, sums + c, hidden,
                                work_tile_of_thread(p->w));
    }
}

/* The tile's logits become mass softmax - teacher; kl_hit += its p (log p - log q). */
static void kl_row(const head_pass *p, int64_t part, int64_t row, int64_t j, int64_t n, real *z) {
    llama_work *w = p->w;
    const int64_t k = w->shape.top_k;
    const int32_t *token = p->teacher->token + row * k;
    const float *log_p = p->teacher->log_p + row * k;
    const int64_t first = first_token(token, k, j), end = first_token(token, k, j + n);
    const double lse = w->row_lse[row], mass = w->row_mass[row];
    const real lse_r = (real)lse, mass_r = (real)mass;
    double hit = 0;
    for (int64_t i = first; i < end; i++) {
        const double lp = (double)log_p[i];
        hit += exp(lp) * (lp - ((double)z[token[i] - j] - lse));
    }
#pragma omp simd
    for (int64_t i = 0; i < n; i++) z[i] = mass_r * vec_exp(z[i] - lse_r);
    for (int64_t i = first; i < end; i++) z[token[i] - j] -= (real)exp((double)log_p[i]);
    w->kl_hit[part * p->rows + row] += hit;
}

/* One tile of logits z [m, n] of rows r0 .., part `part`. */
static void head_tile(const head_pass *p, int64_t part, int64_t r0, int64_t m, int64_t j, int64_t n,
                      bool first, real *z, void *weights) {
    llama_work *w = p->w;
    const int64_t hidden = w->cfg.hidden;
    const size_t factor = compute_factor_bytes(w->shape.compute);
    real *sums = (real *)w->head_sums + (part * p->rows + r0) * hidden;
    for (int64_t i = 0; i < m; i++) {
        const int64_t at = part * p->rows + r0 + i;
        real *row = z + i * n;
        if (p->mode == HEAD_KL) {
            kl_row(p, part, r0 + i, j, n, row);
        } else {
            const int64_t target = w->next[r0 + i];
            if (target >= j && target < j + n) w->head_hit[r0 + i] = (double)row[target - j];
            const real shrink = running_softmax(row, n, &w->head_max[at], &w->head_total[at]);
            if (p->mode == HEAD_MEANS && !first && shrink < 1) {
#pragma omp simd
                for (int64_t c = 0; c < hidden; c++) sums[i * hidden + c] *= shrink;
            }
        }
        if (p->mode != HEAD_SUMS && weights != z)
            norm_factors_f32(row, n, NULL, w->shape.compute, bytes_at(weights, i * n, factor));
    }
    if (p->mode != HEAD_SUMS) add_rows_of_head(p, j, n, weights, m, gemm_into_of(!first), sums);
}

/* Rows r0 .. r0 + m against one part of the vocabulary. */
static void head_unit(const head_pass *p, int64_t part, int64_t r0, int64_t m) {
    llama_work *w = p->w;
    const compute_type compute = w->shape.compute;
    const int64_t hidden = w->cfg.hidden, begin = part_begin(p->head, w, part),
                  end = part_begin(p->head, w, part + 1);
    const void *h = bytes_at(w->input, r0 * hidden, compute_factor_bytes(compute));
    real *z = work_of_thread(w);
    void *weights = compute == COMPUTE_BF16 ? z + HEAD_ROWS * WMAT_TILE_COLUMNS : z;
    for (int64_t i = 0; p->mode != HEAD_KL && i < m; i++) {
        w->head_max[part * p->rows + r0 + i] = -INFINITY;
        w->head_total[part * p->rows + r0 + i] = 0;
    }
    for (int64_t j = begin; j < end; j += WMAT_TILE_COLUMNS) {
        const int64_t n = size_min(WMAT_TILE_COLUMNS, end - j);
        wmat_tile(p->head, compute, h, hidden, m, j, n, GEMM_SET, z, n, work_tile_of_thread(w));
        head_tile(p, part, r0, m, j, n, j == begin, z, weights);
    }
}

static void head_units(const head_pass *p) {
    const int64_t panels = size_ceil_div(p->rows, HEAD_ROWS);
#pragma omp parallel for schedule(dynamic)
    for (int64_t u = 0; u < panels * p->w->head_parts; u++) {
        const int64_t r0 = u % panels * HEAD_ROWS;
        head_unit(p, u / panels, r0, size_min(HEAD_ROWS, p->rows - r0));
    }
}

/* Through gain and norm: dx = weight d loss / dx of a row, from g = d loss / d(norm times gain). */
static void head_row_backward(const float *gain, const real *x, real *g, double weight, real *y,
                              real *dx, const llama_work *w) {
    const int64_t n = w->cfg.hidden;
    const real scale = norm_scale_f32(x, n, w->cfg.rms_eps), by = (real)weight;
    norm_rows_f32(x, 1, n, w->cfg.rms_eps, NULL, y);
#pragma omp simd
    for (int64_t j = 0; j < n; j++) g[j] *= (real)gain[j] * by;
    memset(dx, 0, (size_t)n * sizeof *dx);
    norm_backward_f32(y, scale, g, n, dx);
}

static void ce_backward(const wmat *head, const float *gain, const objective_rows *r,
                        llama_work *w) {
    const int64_t n = w->cfg.hidden, rows = r->n;
    const int32_t *next = r->next;
    const real *x = r->x;
    real *dx = r->dx;
    const head_pass pass = {.mode = HEAD_MEANS, .head = head, .rows = rows, .w = w};
    memcpy(w->next, next, (size_t)rows * sizeof *next);
    head_input(gain, rows, x, w);
    head_units(&pass);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < rows; t++) {
        w->row_loss[t] = 0;
        if (next[t] < 0) {
            memset(dx + t * n, 0, (size_t)n * sizeof *dx);
            continue;
        }
        double max, log_total = lse_of_row(w, rows, t, &max);
        w->row_loss[t] = max + log_total - w->head_hit[t];
        real *g = work_of_thread(w), *y = g + n;
        wmat_expand_f32(head, next[t], 1, 0, n, y, n);
#pragma omp simd
        for (int64_t j = 0; j < n; j++) g[j] = -y[j];
        for (int64_t p = 0; p < w->head_parts; p++) {
            const real *sums = (real *)w->head_sums + (p * rows + t) * n;
            const real share = (real)exp(w->head_max[p * rows + t] - max - log_total);
#pragma omp simd
            for (int64_t j = 0; j < n; j++) g[j] += share * sums[j];
        }
        head_row_backward(gain, x + t * n, g, r->weight, y, dx + t * n, w);
    }
}

/* kl-top. */

static void teacher_unit(const wmat *head, int64_t r0, int64_t m, llama_teacher *out,
                         candidate *room, llama_work *w) {
    const int64_t k = w->shape.top_k, hidden = w->cfg.hidden;
    const void *h = bytes_at(w->input, r0 * hidden, compute_factor_bytes(w->shape.compute));
    real *z = work_of_thread(w);
    teacher_rows t = {.c = room};
    for (int64_t i = 0; i < m; i++) t.max[i] = t.worst[i] = -INFINITY;
    for (int64_t j = 0; j < head->rows; j += WMAT_TILE_COLUMNS) {
        const int64_t n = size_min(WMAT_TILE_COLUMNS, head->rows - j);
        wmat_tile(head, w->shape.compute, h, hidden, m, j, n, GEMM_SET, z, n,
                  work_tile_of_thread(w));
        for (int64_t i = 0; i < m; i++) {
            for (int64_t v = 0; v < n; v++) teacher_offer(&t, i, k, (double)z[i * n + v], j + v);
            running_softmax(z + i * n, n, &t.max[i], &t.total[i]);
        }
    }
    for (int64_t i = 0; i < m; i++) {
        teacher_take(&t, i, k, out->token + (r0 + i) * k, out->log_p + (r0 + i) * k);
    }
}

void objective_teacher_f32(const wmat *head, const float *gain, int64_t rows, const real *x,
                           llama_teacher *out, candidate *room, llama_work *w) {
    const int64_t each = TEACHER_ROWS * 2 * w->shape.top_k;
    head_input(gain, rows, x, w);
#pragma omp parallel for schedule(dynamic)
    for (int64_t r0 = 0; r0 < rows; r0 += TEACHER_ROWS) {
        teacher_unit(head, r0, size_min(TEACHER_ROWS, rows - r0), out, room + each * gemm_thread(),
                     w);
    }
}

static void kl_backward(const wmat *head, const float *gain, const objective_rows *r,
                        llama_work *w) {
    const int64_t n = w->cfg.hidden, k = w->shape.top_k, rows = r->n;
    const llama_teacher *teacher = r->teacher;
    const real *x = r->x;
    real *dx = r->dx;
    head_pass pass = {.mode = HEAD_SUMS, .head = head, .rows = rows, .teacher = teacher, .w = w};
    for (int64_t t = 0; t < rows; t++) w->next[t] = -1;
    head_input(gain, rows, x, w);
    head_units(&pass);
    for (int64_t t = 0; t < rows; t++) {
        double max;
        w->row_lse[t] = lse_of_row(w, rows, t, &max);
        w->row_lse[t] += max;
        w->row_mass[t] = 0;
        for (int64_t i = 0; i < k; i++) w->row_mass[t] += exp((double)teacher->log_p[t * k + i]);
    }
    memset(w->kl_hit, 0, (size_t)(w->head_parts * rows) * sizeof *w->kl_hit);
    pass.mode = HEAD_KL;
    head_units(&pass);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < rows; t++) {
        real *g = work_of_thread(w), *y = g + n;
        memset(g, 0, (size_t)n * sizeof *g);
        w->row_loss[t] = 0;
        for (int64_t p = 0; p < w->head_parts; p++) {
            const real *sums = (real *)w->head_sums + (p * rows + t) * n;
            w->row_loss[t] += w->kl_hit[p * rows + t];
#pragma omp simd
            for (int64_t j = 0; j < n; j++) g[j] += sums[j];
        }
        head_row_backward(gain, x + t * n, g, r->weight, y, dx + t * n, w);
    }
}

void objective_backward_f32(objective_kind kind, const wmat *head, const float *gain,
                            const objective_rows *r, llama_work *w) {
    static void (*const losses[])(const wmat *, const float *, const objective_rows *,
                                  llama_work *) = {
        [OBJECTIVE_CE] = ce_backward,
        [OBJECTIVE_KL_TOP] = kl_backward,
    };
    losses[kind](head, gain, r, w);
}
