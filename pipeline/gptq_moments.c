#include "pipeline/gptq_moments.h"

#include "base/gemm.h"
#include "base/mem.h"
#include "base/size.h"
#include "pipeline/fixed_sum.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PANEL = 512, STRIPE = 128, TURN = 64 };

void gptq_moments_clear(gptq_moments *m) {
    mem_free(m->panel);
    mem_free(m->sum);
    mem_free(m->left);
    mem_free(m->right);
    *m = (gptq_moments){.c = NULL};
}

bool gptq_moments_takes(const gptq_moments *m, int64_t number) {
    return !m->hold_out || number % GPTQ_HOLD_OUT != GPTQ_HOLD_OUT - 1;
}

int64_t gptq_moments_panel_rows(int64_t n) {
    return size_min(n, PANEL);
}

uint64_t gptq_moments_bytes(int64_t n, int64_t length, bool cross) {
    const uint64_t panel = (uint64_t)(gptq_moments_panel_rows(n) * n);
    return panel * (sizeof(float) + sizeof(int64_t) + (cross ? sizeof(double) : 0)) +
           2 * (uint64_t)(n * length) * sizeof(bf16);
}

/* ---- the diagonal ---- */

/* sums [n] of squares over the tokens of a window, columns in stripes, tokens in order. */
static void add_squares(const bf16 *x, int64_t length, int64_t n, double *sums) {
    const int64_t stripes = size_ceil_div(n, STRIPE);
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < stripes; k++) {
        const int64_t j0 = k * STRIPE, j1 = size_min(n, j0 + STRIPE);
        for (int64_t j = j0; j < j1; j++) sums[j] = 0;
        for (int64_t t = 0; t < length; t++) {
#pragma omp simd
            for (int64_t j = j0; j < j1; j++) {
                const double v = (double)half_float((uint32_t)x[t * n + j] << 16);
                sums[j] += v * v;
            }
        }
    }
}

static err window_squares(gptq_moments *m, int64_t i, const char *what, double *sums, double *max) {
    const int64_t length = gptq_windows_get_options(m->windows)->length;
    bf16 *x;
    err e = gptq_windows_get_input(m->windows, GPTQ_QUANTIZED, i, &x);
    if (e.code) return e;
    add_squares(x, length, m->n, sums);
    for (int64_t j = 0; j < m->n; j++) {
        if (!isfinite(sums[j]))
            return err_make(ERR_NUMERICS, what, "look at the calibration text and the weights",
                            "the Hessian is not finite: input %" PRId64
                            " of calibration window %" PRId64 " holds NaN or infinity",
                            j, gptq_windows_number(m->windows, i));
        *max = sums[j] > *max ? sums[j] : *max;
    }
    return e;
}

static int64_t windows_taken(const gptq_moments *m) {
    const int64_t count = gptq_windows_get_options(m->windows)->count;
    int64_t taken = 0;
    for (int64_t i = 0; i < count; i++) taken += gptq_moments_takes(m, i);
    return taken;
}

/* Window after window: each finds its squares again, which is cheap, so none are kept. */
static err sum_squares(gptq_moments *m, const char *what, double *mine, double *diagonal) {
    const int64_t own = gptq_windows_own(m->windows), taken = windows_taken(m);
    fixed_sum s = {.n = 0};
    double max = 0;
    err e = fixed_sum_init(&s, m->n, "diagonal of the Hessian");
    for (int64_t i = 0; i < own && !e.code; i++) e = window_squares(m, i, what, mine, &max);
    e = comm_agree(m->c, e, what, NULL);
    if (!e.code) {
        comm_max_f64(m->c, &max, 1);
        m->exponent = fixed_sum_exponent(max, taken);
        fixed_sum_begin(&s, m->exponent, taken);
        for (int64_t i = 0; i < own && !e.code; i++) {
            if (!gptq_moments_takes(m, gptq_windows_number(m->windows, i))) continue;
            e = window_squares(m, i, what, mine, &max);
            if (!e.code) fixed_sum_add(&s, 0, m->n, COMPUTE_F64, mine);
        }
        e = comm_agree(m->c, e, what, NULL);
    }
    if (!e.code) comm_sum_i64(m->c, s.v, m->n);
    const double to_real = ldexp(m->factor, m->exponent);
    for (int64_t j = 0; j < m->n && !e.code; j++) diagonal[j] = (double)s.v[j] * to_real;
    fixed_sum_clear(&s);
    return e;
}

static err reserve(gptq_moments *m) {
    const int64_t length = gptq_windows_get_options(m->windows)->length,
                  panel = gptq_moments_panel_rows(m->n) * m->n, turned = m->n * length;
    void *p = NULL;
    err e = err_none();
    if (panel > m->panel_room) {
        mem_free(m->panel);
        mem_free(m->sum);
        m->panel = NULL;
        m->sum = NULL;
        m->panel_room = 0;
        e = mem_alloc(panel, sizeof(float), "rows of a Hessian", &p);
        if (!e.code) m->panel = p;
        if (!e.code) e = mem_alloc(panel, sizeof(int64_t), "rows of a Hessian", &m->sum);
        if (!e.code) m->panel_room = panel;
    }
    if (turned > m->turned_room && !e.code) {
        mem_free(m->left);
        mem_free(m->right);
        m->left = m->right = NULL;
        m->turned_room = 0;
        e = mem_alloc(turned, sizeof(bf16), "transposed inputs", &p);
        if (!e.code) m->left = p;
        if (!e.code) e = mem_alloc(turned, sizeof(bf16), "transposed inputs", &p);
        if (!e.code) m->right = p;
        if (!e.code) m->turned_room = turned;
    }
    return comm_agree(m->c, e, "the Hessian", NULL);
}

err gptq_moments_diagonal(gptq_moments *m, int64_t n, const char *what, double *diagonal) {
    const int64_t length = gptq_windows_get_options(m->windows)->length;
    void *mine = NULL;
    m->n = n;
    m->factor = 2.0 / (double)(windows_taken(m) * length);
    err e = reserve(m);
    if (e.code) return e;
    e = comm_agree(m->c, mem_alloc(n, sizeof(double), "squares of a window", &mine), what, NULL);
    if (!e.code) e = sum_squares(m, what, mine, diagonal);
    mem_free(mine);
    return e;
}

/* ---- panels ---- */

/* Inputs [length, n] of columns order[first ..] as rows: to [n - first, length]; less: other is
 * taken away first. */
static void turn(const bf16 *x, const bf16 *less, const int64_t *order, int64_t first, int64_t rows,
                 int64_t n, int64_t length, bf16 *to) {
    const int64_t blocks = size_ceil_div(length, TURN);
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t t0 = b * TURN, t1 = size_min(length, t0 + TURN);
        for (int64_t r = 0; r < rows; r++) {
            const int64_t j = order ? order[first + r] : first + r;
            bf16 *row = to + r * length;
            if (less) {
                for (int64_t t = t0; t < t1; t++)
                    row[t] = half_to_bf16(half_from_bf16(x[t * n + j]) -
                                          half_from_bf16(less[t * n + j]));
            } else {
                for (int64_t t = t0; t < t1; t++) row[t] = x[t * n + j];
            }
        }
    }
}

/* The products of the windows of this rank, as integers in `s`. */
static err add_panels(gptq_moments *m, const int64_t *order, int64_t first, int64_t rows,
                      bool cross, fixed_sum *s) {
    const int64_t length = gptq_windows_get_options(m->windows)->length;
    const int64_t from = cross ? 0 : first, cols = m->n - from;
    err e = err_none();
    for (int64_t i = 0; i < gptq_windows_own(m->windows) && !e.code; i++) {
        bf16 *x, *full;
        if (!gptq_moments_takes(m, gptq_windows_number(m->windows, i))) continue;
        e = gptq_windows_get_input(m->windows, GPTQ_QUANTIZED, i, &x);
        if (!e.code && cross) e = gptq_windows_get_input(m->windows, GPTQ_FULL, i, &full);
        if (e.code) break;
        turn(x, NULL, order, from, cols, m->n, length, m->right);
        if (cross) turn(full, x, NULL, first, rows, m->n, length, m->left);
        gemm_bf16(true, rows, cols, length, cross ? m->left : m->right, length, m->right, length,
                  false, m->panel, cols);
        fixed_sum_add(s, 0, rows * cols, COMPUTE_F32, m->panel);
    }
    if (!e.code && s->spoilt)
        e = err_make(ERR_BUG, "the Hessian", NULL, "an entry is above the largest of the diagonal");
    return e;
}

static err panel_of(gptq_moments *m, const int64_t *order, int64_t first, int64_t rows, bool cross,
                    int root, int64_t **v) {
    const int64_t count = rows * (m->n - (cross ? 0 : first));
    fixed_sum s = {.n = count, .v = m->sum};
    fixed_sum_begin(&s, m->exponent, windows_taken(m));
    err e = comm_agree(m->c, add_panels(m, order, first, rows, cross, &s), "the Hessian", NULL);
    if (e.code) return e;
    if (root >= 0)
        comm_sum_i64_to(m->c, s.v, count, root);
    else
        comm_sum_i64(m->c, s.v, count);
    *v = s.v;
    return e;
}

err gptq_moments_panel(gptq_moments *m, const int64_t *order, int64_t first, int64_t rows, int root,
                       int64_t **v) {
    return panel_of(m, order, first, rows, false, root, v);
}

err gptq_moments_cross(gptq_moments *m, int64_t first, int64_t rows, int64_t **v) {
    return panel_of(m, NULL, first, rows, true, -1, v);
}
