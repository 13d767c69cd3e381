/* Q(xR) - xR of a panel of rows at a time, rotated back and added; rows are shared out to threads.
 */
#include "model/site.h"

#include "base/gemm.h"
#include "base/size.h"

#include <string.h>

#include "base/real.h"

void site_then_f32(const site *s, real *x, int64_t rows, bool inverse) {
    rotation_apply_f32(s->then, x, rows * (s->n / s->segment), s->segment, inverse);
}

/* One rotation for all segments sees them as more rows. */
static void rotate_by_R(const site *s, real *x, int64_t rows, bool inverse) {
    if (site_is_identity(s)) return;
    const int64_t segments = s->n / s->segment;
    if (s->share >= segments) {
        rotation_apply_f32(s->R[0], x, rows * segments, s->segment, inverse);
        return;
    }
    for (int64_t i = 0; i < segments; i++) {
        rotation_apply_f32(s->R[i / s->share], x + i * s->segment, rows, s->n, inverse);
    }
}

void site_rotate_f32(const site *s, real *x, int64_t rows, bool inverse) {
    if (inverse) site_then_f32(s, x, rows, true);
    rotate_by_R(s, x, rows, inverse);
    if (!inverse) site_then_f32(s, x, rows, false);
}

void site_scale_f32(const site *s, real *x, int64_t rows, bool inverse) {
    if (!s->before) return;
    const real *all = inverse ? s->before->inverse32 : s->before->s32;
    const int64_t d = s->segment, segments = s->n / d;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t h = 0; h < segments; h++) {
            scale_times_f32(all + h / s->before_share * d, d, x + i * s->n + h * d);
        }
    }
}

static void quantize_row(const site *s, const real *x, real *out) {
    const int64_t range = site_range(s);
    fake_quant_rows(&s->quant, s->include_zero, x, s->n / range, range, range, out);
}

static void quantize_rows(const site *s, real *x, int64_t rows) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) quantize_row(s, x + i * s->n, x + i * s->n);
}

/* u -> Q(u) - u, row by row; with scales after the rotation u S^-1 -> (Q(u S^-1) - u S^-1) S. */
static void errors_of_rows(const site *s, real *u, int64_t rows, const site_scratch *scratch) {
    const int64_t n = s->n;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        real *row = u + i * n;
        real *q =
            (real *)((char *)scratch->threads + scratch->thread_bytes * (uint64_t)gemm_thread());
        if (s->after) scale_times_f32(s->after->inverse32, n, row);
        quantize_row(s, row, q);
#pragma omp simd
        for (int64_t j = 0; j < n; j++) row[j] = q[j] - row[j];
        if (s->after) scale_times_f32(s->after->s32, n, row);
    }
}

void site_apply_f32(const site *s, real *x, int64_t rows, const site_scratch *scratch) {
    if (!site_acts(s)) return;
    if (site_is_plain(s) || s->rotated) {
        site_rotate_f32(s, x, rows, false);
        if (aquant_on(&s->quant)) quantize_rows(s, x, rows);
        return;
    }
    const int64_t n = s->n, at_once = scratch->panel_room / n;
    real *u = scratch->panel;
    for (int64_t i0 = 0; i0 < rows; i0 += at_once) {
        const int64_t m = size_min(at_once, rows - i0), count = m * n;
        real *part = x + i0 * n;
        memcpy(u, part, (size_t)count * sizeof *u);
        site_scale_f32(s, u, m, true);
        site_rotate_f32(s, u, m, false);
        errors_of_rows(s, u, m, scratch);
        site_rotate_f32(s, u, m, true);
        site_scale_f32(s, u, m, false);
#pragma omp parallel for simd schedule(static)
        for (int64_t j = 0; j < count; j++) part[j] += u[j];
    }
}
