/* site_body - the body of site.c for one type of reals. */
#include "model/real.h"

#if REAL_BITS == 32
#define FAKE_QUANT fake_quant_rows
#else
#define FAKE_QUANT fake_quant_rows_f64
#endif

/* One rotation for all segments sees them as more rows. */
void REAL_FN(site_turn)(const site *s, REAL *x, int64_t rows, bool back) {
    if (site_is_identity(s)) return;
    const int64_t segments = s->n / s->segment;
    if (s->share >= segments) {
        REAL_FN(rotation_apply)(s->R[0], x, rows * segments, s->segment, back);
        return;
    }
    for (int64_t i = 0; i < segments; i++) {
        REAL_FN(rotation_apply)(s->R[i / s->share], x + i * s->segment, rows, s->n, back);
    }
}

void REAL_FN(site_scale)(const site *s, REAL *x, int64_t rows, bool inverse) {
    if (!s->before) return;
    const REAL *all = inverse ? s->before->REAL_INVERSE : s->before->REAL_SCALE;
    const int64_t d = s->segment, segments = s->n / d;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t h = 0; h < segments; h++) {
            REAL_FN(scale_times)(all + h / s->before_share * d, d, x + i * s->n + h * d);
        }
    }
}

static void REAL_FN(quantize_row)(const site *s, const REAL *x, REAL *out) {
    const int64_t range = site_range(s);
    FAKE_QUANT(&s->quant, s->include_zero, x, s->n / range, range, range, out);
}

static void REAL_FN(quantize_rows)(const site *s, REAL *x, int64_t rows) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) REAL_FN(quantize_row)(s, x + i * s->n, x + i * s->n);
}

/* u -> Q(u) - u, row by row; with scales after the rotation u S^-1 -> (Q(u S^-1) - u S^-1) S. */
static void REAL_FN(errors_of_rows)(const site *s, REAL *u, int64_t rows,
                                    const site_scratch *scratch) {
    const int64_t n = s->n;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        REAL *row = u + i * n;
        REAL *q =
            (REAL *)((char *)scratch->threads + scratch->thread_bytes * (uint64_t)gemm_thread());
        if (s->after) REAL_FN(scale_times)(s->after->REAL_INVERSE, n, row);
        REAL_FN(quantize_row)(s, row, q);
#pragma omp simd
        for (int64_t j = 0; j < n; j++) row[j] = q[j] - row[j];
        if (s->after) REAL_FN(scale_times)(s->after->REAL_SCALE, n, row);
    }
}

void REAL_FN(site_apply)(const site *s, REAL *x, int64_t rows, const site_scratch *scratch) {
    if (!site_acts(s)) return;
    if (site_is_plain(s) || s->turned) {
        REAL_FN(site_turn)(s, x, rows, false);
        if (aquant_on(&s->quant)) REAL_FN(quantize_rows)(s, x, rows);
        return;
    }
    const int64_t n = s->n, at_once = scratch->panel_room / n;
    REAL *u = scratch->panel;
    for (int64_t i0 = 0; i0 < rows; i0 += at_once) {
        const int64_t m = size_min(at_once, rows - i0), count = m * n;
        REAL *part = x + i0 * n;
        memcpy(u, part, (size_t)count * sizeof *u);
        REAL_FN(site_scale)(s, u, m, true);
        REAL_FN(site_turn)(s, u, m, false);
        REAL_FN(errors_of_rows)(s, u, m, scratch);
        REAL_FN(site_turn)(s, u, m, true);
        REAL_FN(site_scale)(s, u, m, false);
#pragma omp parallel for simd schedule(static)
        for (int64_t j = 0; j < count; j++) part[j] += u[j];
    }
}

#undef FAKE_QUANT
