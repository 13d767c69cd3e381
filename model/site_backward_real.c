/* The chain rule of DESIGN.md 2.2, by rows forward and by chunks of rows backward. bf16 products
 * have fp32 sums: fp64 never comes to them. */
#include "model/site_backward.h"

#include "base/gemm.h"
#include "base/half.h"
#include "base/size.h"
#include "model/norm.h"

#include <string.h>

#include "base/real.h"

void site_widen_f32(const void *from, int64_t n, compute_type compute, real *to) {
    if (compute == COMPUTE_BF16) {
        const bf16 *half = from;
#pragma omp simd
        for (int64_t j = 0; j < n; j++) to[j] = half_from_bf16(half[j]);
    } else {
        memcpy(to, from, (size_t)n * sizeof *to);
    }
}

static const char *factors_at(const void *base, int64_t at, compute_type compute) {
    return (const char *)base + (size_t)at * compute_factor_bytes(compute);
}

/* Forward. */

/* The first place of the value v, which is there. */
static int32_t place_of(const real *u, int64_t n, real v) {
    int32_t place = INT32_MAX;
#pragma omp simd reduction(min : place)
    for (int32_t j = 0; j < (int32_t)n; j++) {
        const int32_t here = u[j] == v ? j : INT32_MAX;
        place = here < place ? here : place;
    }
    return place < n ? place : 0; /* NaN is nowhere */
}

static site_ends_f32 ends_of_range(const site *s, const real *u, int64_t n) {
    real lo = u[0], hi = u[0];
#pragma omp simd reduction(min : lo) reduction(max : hi)
    for (int64_t j = 0; j < n; j++) {
        lo = u[j] < lo ? u[j] : lo;
        hi = u[j] > hi ? u[j] : hi;
    }
    site_ends_f32 e = {.hi = place_of(u, n, hi), .lo = place_of(u, n, lo)};
    if (s->quant.rule == AQUANT_FP8) return e; /* its steps do not depend on a range */
    /* A clip about the middle leaves (a + b)/2 of the whole range, which cancels in the slopes. */
    const bool about_zero = s->include_zero || s->quant.symmetric;
    const real a = about_zero ? (real)s->quant.clip[0] : 1,
               b = about_zero ? (real)s->quant.clip[1] : 1;
    if (s->quant.symmetric) {
        const bool at_hi = b * hi >= -a * lo;
        const real top = at_hi ? b * hi : -a * lo;
        if (top > 0 && at_hi) e.hi_slope = b / top;
        if (top > 0 && !at_hi) e.lo_slope = -a / top;
        return e;
    }
    const bool low_held = s->include_zero && lo >= 0, high_held = s->include_zero && hi <= 0;
    const real width = (high_held ? 0 : b * hi) - (low_held ? 0 : a * lo);
    if (width > 0 && !high_held) e.hi_slope = b / width;
    if (width > 0 && !low_held) e.lo_slope = -a / width;
    return e;
}

/* One row: u = xR -> (Q(u/S) - u/S) S with the scales after the rotation, or Q(u) - u; Q(u) to x
 * where the basis is x's own. The ends are of u/S and their slopes those of u. */
static void save_row(const site *s, real *u, int64_t i, real *x, const site_saved *saved,
                     const site_work *work) {
    const int64_t n = s->n, range = site_range(s), ranges = n / range;
    real *q = (real *)((char *)work->threads + work->thread_bytes * (uint64_t)gemm_thread());
    if (s->after) scale_times_f32(s->after->inverse32, n, u);
    if (saved->ends) {
        site_ends_f32 *ends = (site_ends_f32 *)saved->ends + i * ranges;
        for (int64_t r = 0; r < ranges; r++) {
            ends[r] = ends_of_range(s, u + r * range, range);
            ends[r].hi += (int32_t)(r * range);
            ends[r].lo += (int32_t)(r * range);
            if (!s->after) continue;
            ends[r].hi_u = u[ends[r].hi] * s->after->s32[ends[r].hi];
            ends[r].lo_u = u[ends[r].lo] * s->after->s32[ends[r].lo];
            ends[r].hi_slope *= s->after->inverse32[ends[r].hi];
            ends[r].lo_slope *= s->after->inverse32[ends[r].lo];
        }
    }
    fake_quant_rows(&s->quant, s->include_zero, u, ranges, range, range, q);
    if (x) memcpy(x, q, (size_t)n * sizeof *x);
#pragma omp simd
    for (int64_t j = 0; j < n; j++) u[j] = q[j] - u[j];
    if (s->after) scale_times_f32(s->after->s32, n, u);
    if (saved->error && !s->then) {
        char *to = (char *)saved->error + (size_t)(i * n) * compute_factor_bytes(work->compute);
        norm_factors_f32(u, n, NULL, work->compute, to);
    }
}

/* Rows as factors; `to` may be NULL: not kept. */
static void save_rows(const real *rows_of, int64_t rows, int64_t n, void *to,
                      const site_work *work) {
    if (!to) return;
    const size_t factor = compute_factor_bytes(work->compute);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++)
        norm_factors_f32(rows_of + i * n, n, NULL, work->compute,
                         (char *)to + (size_t)(i * n) * factor);
}

/* A dense R of whole rows turns in bf16: rows and errors as factors, which are kept anyway. */
static void site_save_half(const site *s, real *x, int64_t rows, const void *factors,
                           const site_saved *saved, const site_work *work) {
    const int64_t n = s->n;
    real *u = work->panel;
    if (!factors) {
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < rows; i++) {
            norm_factors_f32(x + i * n, n, NULL, COMPUTE_BF16, work->half + i * n);
        }
        factors = work->half;
    }
    gemm_bf16(GEMM_N, rows, n, n, factors, n, work->R_half, n, GEMM_SET, (void *)u, n);
    site_saved errors = *saved;
    if (!errors.error) errors.error = work->half;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) save_row(s, u + i * n, i, NULL, &errors, work);
    if (!saved->moved) {
        gemm_bf16(GEMM_T, rows, n, n, errors.error, n, work->R_half, n, GEMM_ADD, (void *)x, n);
        return;
    }
    gemm_bf16(GEMM_T, rows, n, n, errors.error, n, work->R_half, n, GEMM_SET, (void *)u, n);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const real *row = u + i * n;
        norm_factors_f32(row, n, NULL, COMPUTE_BF16, (bf16 *)saved->moved + i * n);
#pragma omp simd
        for (int64_t j = 0; j < n; j++) x[i * n + j] += row[j];
    }
}

void site_save_f32(const site *s, real *x, int64_t rows, const void *factors,
                   const site_saved *saved, const site_work *work) {
    if (!aquant_on(&s->quant)) return;
    if (work->R_half) {
        site_save_half(s, x, rows, factors, saved, work);
        return;
    }
    const bool plain = site_is_plain(s);
    const int64_t n = s->n, at_once = size_max(1, work->panel_room / n);
    real *u = work->panel;
    for (int64_t i0 = 0; i0 < rows; i0 += at_once) {
        const int64_t m = size_min(at_once, rows - i0);
        real *part = x + i0 * n;
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < m; i++) memcpy(u + i * n, part + i * n, (size_t)n * sizeof *u);
        site_scale_f32(s, u, m, true);
        site_rotate_f32(s, u, m, false);
        const site_saved at = site_saved_at(saved, s, i0, work->compute);
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < m; i++) {
            save_row(s, u + i * n, i, plain ? part + i * n : NULL, &at, work);
        }
        if (s->then) { /* e then^T is what stands beside R alone */
            site_then_f32(s, u, m, true);
            save_rows(u, m, n, at.error, work);
        }
        if (!plain) {
            site first = *s;
            first.then = NULL;
            site_rotate_f32(&first, u, m, true);
            site_scale_f32(s, u, m, false);
#pragma omp parallel for simd schedule(static)
            for (int64_t j = 0; j < m * n; j++) part[j] += u[j];
        }
        save_rows(u, m, n, at.moved, work);
    }
}

/* Backward. A second rotation T behind R is no variable: u = x R T and x^ = x + (Q(u) - u) T^T R^T
 * are the formulas of R alone with e T^T, which is kept, for e and du T^T for du.
 * With scales before the rotation, x~ = x S^-1 and g~ = g S are what the site of x~ sees:
 * dR += g~^T e + x~^T du, dL/dx = g + (du R^T) S^-1, and <g~, x~^ - x~> = <g, x^ - x>. With scales
 * after it, u = x R S^-1 and x^ = x + (e S) R^T: kept are e S and slopes over S, so that
 * dR += g^T (e S) + x^T (du S^-1) and dL/dx = g + (du S^-1) R^T are the formulas without scales. */

/* Of rows i0 .. i0 + m, whose gradient is g [m, n], from factors of what moved in the same basis.
 */
static void slopes_of_rows(const site *s, const real *g, int64_t i0, int64_t m, const void *factors,
                           const site_saved *saved, const site_work *work) {
    const int64_t n = s->n, range = site_range(s), ranges = n / range;
    const site_ends_f32 *ends = (site_ends_f32 *)saved->ends + i0 * ranges;
    real *slopes = (real *)work->slopes + 2 * i0 * ranges;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < m; i++) {
        real *moved =
            (real *)((char *)work->threads + work->thread_bytes * (uint64_t)gemm_thread());
        site_widen_f32(factors_at(factors, (i0 + i) * n, work->compute), n, work->compute, moved);
        for (int64_t r = 0; r < ranges; r++) {
            const real *gr = g + i * n + r * range, *mr = moved + r * range;
            real c = 0;
#pragma omp simd reduction(+ : c)
            for (int64_t j = 0; j < range; j++) c += gr[j] * mr[j];
            slopes[2 * (i * ranges + r)] = c * ends[i * ranges + r].hi_slope;
            slopes[2 * (i * ranges + r) + 1] = c * ends[i * ranges + r].lo_slope;
        }
    }
}

/* du at the two ends of each range, from <dL/dq, q - u> over the range. Where a range is made of
 * whole segments that is <g, x^ - x>, since R turns each segment in itself; a part of a segment has
 * to be looked at in the rotated basis, where dL/dq is g S R and the error is e. */
void site_end_slopes_f32(const site *s, const real *g, int64_t rows, const site_saved *saved,
                         const site_work *work) {
    const int64_t n = s->n, at_once = size_max(1, work->panel_room / n);
    if (!site_cuts_segments(s)) {
        slopes_of_rows(s, g, 0, rows, saved->moved, saved, work);
        return;
    }
    real *u = work->panel;
    for (int64_t i0 = 0; i0 < rows; i0 += at_once) {
        const int64_t m = size_min(at_once, rows - i0);
        memcpy(u, g + i0 * n, (size_t)(m * n) * sizeof *u);
        site_scale_f32(s, u, m, false);
        site_rotate_f32(s, u, m, false);
        slopes_of_rows(s, u, i0, m, saved->error, saved, work);
    }
}

/* dR += g^T e for one rotation of whole rows. */
static void whole_error(const site *s, const real *g, int64_t rows, const site_saved *saved,
                        real *dR, const site_work *work) {
    const int64_t n = s->n;
    if (work->compute == COMPUTE_BF16) {
        bf16 *g_t = work->half; /* [n, rows] */
        enum { SIDE = 32 };
#pragma omp parallel for schedule(static)
        for (int64_t j0 = 0; j0 < n; j0 += SIDE) {
            const int64_t m = size_min(SIDE, n - j0);
            for (int64_t i0 = 0; i0 < rows; i0 += SIDE) {
                const int64_t k = size_min(SIDE, rows - i0);
                for (int64_t j = j0; j < j0 + m; j++) {
                    for (int64_t i = i0; i < i0 + k; i++) {
                        g_t[j * rows + i] = half_to_bf16((float)g[i * n + j]);
                    }
                }
            }
        }
        gemm_bf16(GEMM_N, n, n, rows, g_t, rows, saved->error, n, GEMM_ADD, (void *)dR, n);
        return;
    }
    gemm_f32(GEMM_T, GEMM_N, n, n, rows, g, n, saved->error, n, GEMM_ADD, dR, n);
}

/* dR += x^T du for one rotation of whole rows: two columns of dR a range. A unit is a few rows of
 * dR, so that its sums run over tokens in order. */
static void whole_range(const site *s, int64_t rows, const void *x, const site_saved *saved,
                        real *dR, const site_work *work) {
    enum { SIDE = 16 };
    const int64_t n = s->n, ranges = site_ranges(s);
    const site_ends_f32 *ends = saved->ends;
    const real *slopes = work->slopes;
#pragma omp parallel for schedule(static)
    for (int64_t j0 = 0; j0 < n; j0 += SIDE) {
        const int64_t m = size_min(SIDE, n - j0);
        real xs[SIDE];
        for (int64_t i = 0; i < rows * ranges; i++) {
            site_widen_f32(factors_at(x, i / ranges * n + j0, work->compute), m, work->compute, xs);
            real *hi = dR + j0 * n + ends[i].hi, *lo = dR + j0 * n + ends[i].lo;
            const real at_hi = slopes[2 * i], at_lo = slopes[2 * i + 1];
            for (int64_t j = 0; j < m; j++) {
                hi[j * n] += xs[j] * at_hi;
                lo[j * n] += xs[j] * at_lo;
            }
        }
    }
}

/* v times the scales of each segment, or over them. */
static void scale_segments(const site *s, int64_t rows, bool inverse, real *v) {
    const real *all = inverse ? s->before->inverse32 : s->before->s32;
    const int64_t d = s->segment, segments = s->n / d;
    for (int64_t i = 0; i < rows * segments; i++)
        scale_times_f32(all + i % segments / s->before_share * d, d, v + i * d);
}

/* du of rows i0 .. i0 + m, as u [m, n]. */
static void rows_of_slopes(const site *s, int64_t i0, int64_t m, const site_saved *saved, real *u,
                           const site_work *work) {
    const int64_t n = s->n, ranges = site_ranges(s);
    const site_ends_f32 *ends = saved->ends;
    const real *slopes = work->slopes;
    memset(u, 0, (size_t)(m * n) * sizeof *u);
    for (int64_t k = 0; k < m * ranges; k++) {
        const int64_t at = i0 * ranges + k;
        u[k / ranges * n + ends[at].hi] += slopes[2 * at];
        u[k / ranges * n + ends[at].lo] += slopes[2 * at + 1];
    }
}

/* The share of rows i0 .. i0 + m in the gradients of the segments' rotations: part [rotations,
 * segment, segment]. */
static void segments_part(const site *s, const real *g, int64_t i0, int64_t m, const void *x,
                          const site_saved *saved, real *part, const site_work *work) {
    const int64_t n = s->n, d = s->segment, segments = n / d, ranges = site_ranges(s);
    real *errors = (real *)((char *)work->threads + work->thread_bytes * (uint64_t)gemm_thread());
    real *xs = errors + m * n;
    site_widen_f32(factors_at(saved->error, i0 * n, work->compute), m * n, work->compute, errors);
    memset(part, 0, (size_t)(site_rotations(s) * d * d) * sizeof *part);
    const real *gs = g + i0 * n;
    if (s->before) { /* xs is free until the range */
        memcpy(xs, gs, (size_t)(m * n) * sizeof *xs);
        scale_segments(s, m, false, xs);
        gs = xs;
    }
    if (s->share >= segments) {
        gemm_tile_f32(GEMM_T, GEMM_N, d, d, m * segments, gs, d, errors, d, GEMM_ADD, part, d);
    } else {
        for (int64_t h = 0; h < segments; h++) {
            real *to = part + h / s->share * d * d;
            gemm_tile_f32(GEMM_T, GEMM_N, d, d, m, gs + h * d, n, errors + h * d, n, GEMM_ADD, to,
                          d);
        }
    }
    if (!saved->moved) return;
    site_widen_f32(factors_at(x, i0 * n, work->compute), m * n, work->compute, xs);
    if (s->before) scale_segments(s, m, true, xs);
    if (s->then) { /* du T^T has no zeros: its rows take the room of the errors */
        rows_of_slopes(s, i0, m, saved, errors, work);
        site_then_f32(s, errors, m, true);
        for (int64_t h = 0; h < segments; h++) {
            real *to = part + (s->share >= segments ? 0 : h / s->share) * d * d;
            gemm_tile_f32(GEMM_T, GEMM_N, d, d, m, xs + h * d, n, errors + h * d, n, GEMM_ADD, to,
                          d);
        }
        return;
    }
    for (int64_t k = 0; k < 2 * m * ranges; k++) {
        const int64_t i = k / (2 * ranges);
        const site_ends_f32 *e = (site_ends_f32 *)saved->ends + i0 * ranges + k / 2;
        const int64_t at = k % 2 ? e->lo : e->hi, h = at / d;
        const real du = ((real *)work->slopes)[2 * i0 * ranges + k];
        real *to = part + h / s->share * d * d + at % d;
        for (int64_t j = 0; j < d; j++) to[j * d] += xs[i * n + h * d + j] * du;
    }
}

static void segments_gradient(const site *s, const real *g, int64_t rows, const void *x,
                              const site_saved *saved, real *dR, const site_work *work) {
    const int64_t per = site_chunk_rows(s), chunks = size_ceil_div(rows, per);
    const int64_t size = site_rotations(s) * s->segment * s->segment;
    real *parts = work->parts;
#pragma omp parallel for schedule(dynamic)
    for (int64_t c = 0; c < chunks; c++) {
        segments_part(s, g, c * per, size_min(per, rows - c * per), x, saved, parts + c * size,
                      work);
    }
    for (int64_t c = 0; c < chunks; c++) {
#pragma omp simd
        for (int64_t j = 0; j < size; j++) dR[j] += parts[c * size + j];
    }
}

void site_range_rows_f32(const site *s, int64_t i0, int64_t m, const site_saved *saved,
                         const site_work *work) {
    real *u = work->panel;
    rows_of_slopes(s, i0, m, saved, u, work);
    site_rotate_f32(s, u, m, true);
    site_scale_f32(s, u, m, true);
}

/* g += du R^T, over the scales before R. */
static void add_range(const site *s, real *g, int64_t rows, const site_saved *saved,
                      const site_work *work) {
    const int64_t n = s->n, ranges = site_ranges(s);
    const site_ends_f32 *ends = saved->ends;
    const real *slopes = work->slopes, *R_t = work->R_t;
    if (R_t) {
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < rows; i++) {
            for (int64_t k = i * ranges; k < (i + 1) * ranges; k++) {
                const real at_hi = slopes[2 * k], at_lo = slopes[2 * k + 1];
                const real *hi = R_t + ends[k].hi * n, *lo = R_t + ends[k].lo * n;
#pragma omp simd
                for (int64_t j = 0; j < n; j++) g[i * n + j] += at_hi * hi[j] + at_lo * lo[j];
            }
        }
        return;
    }
    const int64_t at_once = size_max(1, work->panel_room / n);
    const real *u = work->panel;
    for (int64_t i0 = 0; i0 < rows; i0 += at_once) {
        const int64_t m = size_min(at_once, rows - i0);
        site_range_rows_f32(s, i0, m, saved, work);
#pragma omp parallel for simd schedule(static)
        for (int64_t j = 0; j < m * n; j++) g[i0 * n + j] += u[j];
    }
}

void site_backward_f32(const site *s, real *g, int64_t rows, const void *x, const site_saved *saved,
                       real *dR, const site_work *work) {
    if (!aquant_on(&s->quant)) return;
    const bool through = saved->moved && saved->ends;
    if (through) site_end_slopes_f32(s, g, rows, saved, work);
    if (dR && saved->error && site_is_whole(s)) {
        whole_error(s, g, rows, saved, dR, work);
        if (through) whole_range(s, rows, x, saved, dR, work);
    } else if (dR && saved->error) {
        segments_gradient(s, g, rows, x, saved, dR, work);
    }
    if (through) add_range(s, g, rows, saved, work);
}
