/* The quantizer of grid.h applied to rows in place: range, scale, codes and values of one row at a
 * time, in loops that compilers vectorise with the same rounding. */
#include "quant/fake_quant.h"

#include "quant/grid.h"

#include <math.h>
#include <string.h>

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

#ifndef SPINSHARD_F64
static float cut_off(float v) {
    return truncf(v);
}

/* v with these of its bits alone. */
static float masked(float v, uint32_t mask) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    bits &= mask;
    memcpy(&v, &bits, sizeof v);
    return v;
}

/* The power of two of v, 2^e <= |v| < 2^(e + 1); infinite where v is no number. */
static float binade(float v) {
    return masked(v, UINT32_C(0x7f800000));
}

/* v without the low four bits of its significand. */
static float without_zero_point(float v) {
    return masked(v, ~UINT32_C(15));
}
#else
static double cut_off(double v) {
    return trunc(v);
}

static double binade(double v) {
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    bits &= UINT64_C(0x7ff0000000000000);
    memcpy(&v, &bits, sizeof v);
    return v;
}

/* A scale in double has no room for a zero point, and gives none up. */
static double without_zero_point(double v) {
    return v;
}
#endif

/* Half away from zero as kernels do it: half is added, and the rest cut off. */
static inline real half_away(real v) {
    return cut_off(v >= 0 ? v + (real)0.5 : v - (real)0.5);
}

/* One token of one head as vLLM 0.32 stores it with --kv-cache-dtype int4_per_token_head
 * (vllm/v1/attention/ops/int4_per_token_head.py): s = max((hi - lo)/15, 1e-6), z = -lo/s and codes
 * x (1/s) + z are rounded half away from zero and held to 0..15, zero point and all, so that a row
 * without 0 in its range is cut off. The zero point lies in the low four bits of the fp32 scale:
 * codes are read by the scale without these. */
static void row_cache_int4(range r, const real *x, int64_t n, real *out) {
    const real least = (real)1e-6, top = 15;
    real s = (r.hi - r.lo) / top;
    s = s > least ? s : least;
    real z = half_away(-r.lo / s);
    z = z > 0 ? z : 0;
    z = z < top ? z : top;
    const real inverse = 1 / s, back = without_zero_point(s);
#pragma omp simd
    for (int64_t j = 0; j < n; j++) {
        real v = half_away(x[j] * inverse + z);
        v = v < 0 ? 0 : v;
        v = v > top ? top : v;
        out[j] = (v - z) * back;
    }
}

/* E4M3 has 8 steps in each binade, and below 2^-6 those of 2^-6: the step divides v exactly. */
static void row_fp8(real s, const real *x, int64_t n, real *out) {
    const real largest = 448, least = (real)0x1p-6;
#pragma omp simd
    for (int64_t j = 0; j < n; j++) {
        const real v = x[j] / s, power = binade(v), step = (power < least ? least : power) / 8;
        real r = quant_code(v, step) * step;
        r = r > largest ? largest : r;
        r = r < -largest ? -largest : r;
        out[j] = r * s;
    }
}

void fake_quant_rows(const aquant *q, bool include_zero, const real *x, int64_t rows, int64_t n,
                     int64_t stride, real *out) {
    if (n == 0) return;
    for (int64_t i = 0; i < rows; i++) {
        const real *row = x + i * stride;
        if (q->rule == AQUANT_FP8) {
            row_fp8((real)q->cache_scale, row, n, out + i * stride);
            continue;
        }
        range r = row_range(row, n);
        if (q->rule == AQUANT_CACHE_INT4) {
            row_cache_int4(r, row, n, out + i * stride);
            continue;
        }
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
