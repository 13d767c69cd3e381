/* Rows whose sum over tokens is the gradient are made panel by panel, then their columns are
 * summed.
 */
#include "model/site_scale.h"

#include "base/gemm.h"
#include "base/size.h"
#include "model/norm.h"

#include <string.h>

#include "base/real.h"

/* dS [n / share] += sums over the rows of u [rows, n]: part p of dS, of `part` entries, takes the
 * parts p share .. p share + share - 1 of a row. A unit is a few entries of dS, so that its sums
 * run over rows in order. */
static void add_columns(const real *u, int64_t rows, int64_t n, int64_t part, int64_t share,
                        real *dS) {
    enum { SIDE = 16 };
    const int64_t count = n / share;
#pragma omp parallel for schedule(static)
    for (int64_t j0 = 0; j0 < count; j0 += SIDE) {
        const int64_t m = size_min(SIDE, count - j0);
        double sum[SIDE] = {0};
        for (int64_t i = 0; i < rows; i++) {
            for (int64_t j = 0; j < m; j++) {
                const real *from = u + i * n + (j0 + j) / part * share * part + (j0 + j) % part;
                for (int64_t k = 0; k < share; k++) sum[j] += (double)from[k * part];
            }
        }
        for (int64_t j = 0; j < m; j++) dS[j0 + j] += (real)sum[j];
    }
}

/* A row of factors as reals, in the room of the calling thread. */
static const real *widened(const void *factors, int64_t row, int64_t n, const site_work *work) {
    real *to = (real *)((char *)work->threads + work->thread_bytes * (uint64_t)gemm_thread());
    const char *from =
        (const char *)factors + (size_t)(row * n) * compute_factor_bytes(work->compute);
    site_widen_f32(from, n, work->compute, to);
    return to;
}

/* work->panel [m, n] = g (x^ - x) - (r R^T S^-1) x of the rows from i0 on. */
static void rows_before(const site *s, const real *g, int64_t i0, int64_t m, const void *x,
                        const site_saved *saved, const site_work *work) {
    const int64_t n = s->n;
    real *u = work->panel;
    site_range_rows_f32(s, i0, m, saved, work);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < m; i++) {
        real *row = u + i * n;
        const real *gi = g + (i0 + i) * n, *xi = widened(x, i0 + i, n, work);
#pragma omp simd
        for (int64_t j = 0; j < n; j++) row[j] *= -xi[j];
        const real *moved = widened(saved->moved, i0 + i, n, work);
#pragma omp simd
        for (int64_t j = 0; j < n; j++) row[j] += gi[j] * moved[j];
    }
}

/* work->panel [m, n] = g R; a dense R of whole rows turns as it does forward. */
static void rotated_gradient(const site *s, const real *g, int64_t m, const site_work *work) {
    const int64_t n = s->n;
#ifndef SPINSHARD_F64
    if (work->R_half) {
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < m; i++)
            norm_factors_f32(g + i * n, n, NULL, COMPUTE_BF16, work->half + i * n);
        gemm_bf16(GEMM_N, m, n, n, work->half, n, work->R_half, n, GEMM_SET, work->panel, n);
        return;
    }
#endif
    memcpy(work->panel, g, (size_t)(m * n) * sizeof *g);
    site_rotate_f32(s, work->panel, m, false);
}

/* work->panel [m, n] = (g R) (e S) - r v of the rows from i0 on. */
static void rows_after(const site *s, const real *g, int64_t i0, int64_t m, const site_saved *saved,
                       const site_work *work) {
    const int64_t n = s->n, ranges = site_ranges(s);
    const site_ends_f32 *ends = saved->ends;
    const real *slopes = work->slopes;
    real *u = work->panel;
    rotated_gradient(s, g + i0 * n, m, work);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < m; i++) {
        real *row = u + i * n;
        const real *error = widened(saved->error, i0 + i, n, work);
#pragma omp simd
        for (int64_t j = 0; j < n; j++) row[j] *= error[j];
        for (int64_t k = (i0 + i) * ranges; k < (i0 + i + 1) * ranges; k++) {
            row[ends[k].hi] -= slopes[2 * k] * ends[k].hi_u;
            row[ends[k].lo] -= slopes[2 * k + 1] * ends[k].lo_u;
        }
    }
}

void site_scale_backward_f32(const site *s, const real *g, int64_t rows, const void *x,
                             const site_saved *saved, real *dS, const site_work *work) {
    if (!aquant_on(&s->quant) || (!s->before && !s->after)) return;
    const int64_t n = s->n, at_once = size_max(1, work->panel_room / n);
    site_end_slopes_f32(s, g, rows, saved, work);
    for (int64_t i0 = 0; i0 < rows; i0 += at_once) {
        const int64_t m = size_min(at_once, rows - i0);
        if (s->after) {
            rows_after(s, g, i0, m, saved, work);
            add_columns(work->panel, m, n, n, 1, dS);
        } else {
            rows_before(s, g, i0, m, x, saved, work);
            add_columns(work->panel, m, n, s->segment, s->before_share, dS);
        }
    }
}
