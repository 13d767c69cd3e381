/* The quantizer of grid.h applied to rows in place: range, scale, codes and values of one row at a
 * time, in loops that compilers vectorise with the same rounding. */
#include "quant/fake_quant.h"

#include "quant/grid.h"

#include "base/real.h"

typedef struct range {
    real lo, hi;
} range;

static range row_range(const real *x, int64_t n) {
    real lo = x[0], hi = x[0];
#pragma omp simd reduction(min : lo) reduction(max : hi)
    for (int64_t j = 0; j < n; j++) {
        lo = x[j] < lo ? x[j] : lo;
        hi = x[j] > hi ? x[j] : hi;
    }
    return (range){lo, hi};
}

/* Ends that are not clipped keep their bits. */
static void shrink(const aquant *q, bool include_zero, range *r) {
    const real low = (real)q->clip[0], high = (real)q->clip[1];
    if (include_zero || q->symmetric) {
        r->lo *= low;
        r->hi *= high;
        return;
    }
    const real half = (r->hi - r->lo) / 2;
    r->lo += (1 - low) * half;
    r->hi -= (1 - high) * half;
}

/* Comparisons are written so that NaN stays NaN: a broken activation must reach the loss. */
static void row_to_grid(const real *x, int64_t n, real s, real z, real least, real most,
                        real *out) {
#pragma omp simd
    for (int64_t j = 0; j < n; j++) {
        real v = quant_code(x[j], s) + z;
        v = v < least ? least : v;
        v = v > most ? most : v;
        out[j] = (v - z) * s;
    }
}

static void row_symmetric(const aquant *q, range r, const real *x, int64_t n, real *out) {
    real top = r.hi > -r.lo ? r.hi : -r.lo;
    real s = q->compressed_tensors_scale ? top / ((real)grid_top(q->bits) / 2)
                                         : quant_scale_sym(top, q->bits);
    real middle = (real)grid_middle(q->bits);
    row_to_grid(x, n, s > 0 ? s : 1, 0, -middle, middle - 1, out);
}

static void row_asymmetric(const aquant *q, range r, const real *x, int64_t n, real *out) {
    real s = quant_scale_asym(r.lo, r.hi, q->bits);
    real z = quant_zero_asym(r.lo, s);
    row_to_grid(x, n, s, z, 0, (real)grid_top(q->bits), out);
}

void fake_quant_rows(const aquant *q, bool include_zero, const real *x, int64_t rows, int64_t n,
                     int64_t stride, real *out) {
    if (n == 0) return;
    for (int64_t i = 0; i < rows; i++) {
        const real *row = x + i * stride;
        range r = row_range(row, n);
        if (include_zero) {
            r.lo = r.lo < 0 ? r.lo : 0;
            r.hi = r.hi > 0 ? r.hi : 0;
        }
        shrink(q, include_zero, &r);
        if (q->symmetric)
            row_symmetric(q, r, row, n, out + i * stride);
        else
            row_asymmetric(q, r, row, n, out + i * stride);
    }
}
