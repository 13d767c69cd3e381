/* Exhaustive over 80 shrink factors, 1.00 to 0.21: for each the sum of |error|^2.4 in fp32 with
 * fixed partial sums, abandoned once it exceeds the best so far. The power is computed by
 * polynomials, since a call of pow would cost more than all the rest. */
#include "quant/scale_search.h"

#include "base/half.h"
#include "base/size.h"
#include "quant/grid.h"

#include <math.h>
#include <string.h>

enum { LANES = 16, CHUNK = 512 };
typedef float lanes __attribute__((vector_size(LANES * sizeof(float))));
typedef float float8 __attribute__((vector_size(32)));
typedef float float4 __attribute__((vector_size(16)));

/* Bit patterns with the magnitude of negative ones flipped order as integers the way floats do, and
 * integer minima vectorise where the compiler must honour NaN in those of floats. */
static inline __attribute__((always_inline)) int32_t ordered(int32_t bits) {
    return bits ^ ((bits >> 31) & 0x7fffffff);
}

void scale_range(const float *x, int64_t n, float *lo, float *hi) {
    int32_t least = 0, most = 0;
#pragma omp simd reduction(min : least) reduction(max : most)
    for (int64_t i = 0; i < n; i++) {
        int32_t v = ordered((int32_t)half_bits(x[i]));
        least = v < least ? v : least;
        most = v > most ? v : most;
    }
    *lo = half_float((uint32_t)ordered(least));
    *hi = half_float((uint32_t)ordered(most));
}

void scale_of_range(const wquant *how, float lo, float hi, float p, float *scale, int *zero) {
    if (how->symmetric) {
        float most = hi > -lo ? hi : -lo;
        *scale = scale_round(quant_scale_sym(most * p, how->bits), how->scale_type);
        *zero = grid_middle(how->bits);
        return;
    }
    *scale = scale_round(quant_scale_asym(0.0f, (hi - lo) * p, how->bits), how->scale_type);
    /* A scale that was held to its type's limits could put the zero point outside the codes. */
    *zero = (int)quant_clamp(quant_zero_asym(lo * p, *scale), 0.0f, (float)grid_top(how->bits));
}

/* e^2.4 = e^2 e^0.4 for e >= 0, where e = 2^k (1 + f): (1 + f)^0.4 and 2^(0.4 k - i) by minimax
 * polynomials (Remez; relative errors 1.7e-7 and 7.5e-8), 2^i through the exponent. The e^2 is
 * exact but for one rounding, so the polynomials only carry the small exponent. 0 gives 0 through
 * e^2. */
static inline __attribute__((always_inline)) float pow24(float e) {
    uint32_t bits = half_bits(e);
    float k = (float)((int)(bits >> 23) - 127);
    float f = half_float((bits & 0x7fffffu) | 0x3f800000u) - 1.0f;
    float m = fmaf(f, -0.0028718502f, 0.0138668055f);
    m = fmaf(f, m, -0.0334571898f);
    m = fmaf(f, m, 0.0616500191f);
    m = fmaf(f, m, -0.1196616888f);
    m = fmaf(f, m, 0.3999814391f);
    m = fmaf(f, m, 1.0000001192f);
    float i = rintf(k * 0.4f), r = fmaf(k, 0.4f, -i);
    float t = fmaf(r, 0.0013276472f, 0.0096755410f);
    t = fmaf(r, t, 0.0555071309f);
    t = fmaf(r, t, 0.2402212024f);
    t = fmaf(r, t, 0.6931469440f);
    t = fmaf(r, t, 1.0000001192f);
    float power = half_float((uint32_t)((int)i + 127) << 23);
    return (e * e) * (m * (t * power));
}

void scale_pow24(float *e, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) e[i] = pow24(e[i]);
}

/* One candidate: the grid in units of a power of two, see unit_for. */
typedef struct candidate {
    float scale, zero, top, unit;
} candidate;

static inline __attribute__((always_inline)) float error_of(float x, candidate c) {
    float v = x * c.unit;
    return pow24(fabsf((quant_offset_code(v, c.scale, c.zero, c.top) - c.zero) * c.scale - v));
}

/* LANES partial sums and a fixed tree, whatever the width of the CPU's vectors. */
static float chunk_sum(float *e, int64_t n) {
    lanes sum = {0}, next;
    for (int64_t i = n; i % LANES; i++) e[i] = 0;
    for (int64_t i = 0; i < n; i += LANES) {
        memcpy(&next, e + i, sizeof next);
        sum += next;
    }
    float8 half[2];
    memcpy(half, &sum, sizeof half);
    half[0] += half[1];
    float4 quarter[2];
    memcpy(quarter, half, sizeof quarter);
    quarter[0] += quarter[1];
    return (quarter[0][0] + quarter[0][2]) + (quarter[0][1] + quarter[0][3]);
}

/* Sum of |value - x|^2.4; gives up, returning what it has, once the sum is above `limit`: terms are
 * not negative, so such a candidate has lost. */
static float error_sum(const float *x, int64_t n, candidate c, float limit) {
    float errors[CHUNK], sum = 0;
    for (int64_t start = 0; start < n && sum <= limit; start += CHUNK) {
        int64_t count = size_min(n - start, CHUNK);
#pragma omp simd simdlen(16)
        for (int64_t i = 0; i < count; i++) errors[i] = error_of(x[start + i], c);
        sum += chunk_sum(errors, count);
    }
    return sum;
}

/* A power of two that brings numbers up to `most` near 1, exactly. */
static float unit_for(float most) {
    if (!(most > 0)) return 1.0f;
    int exponent = 1;
    frexpf(most, &exponent);
    exponent = exponent > 120 ? 120 : exponent < -120 ? -120 : exponent;
    return ldexpf(1.0f, -exponent);
}

static candidate candidate_of(const wquant *how, float scale, int zero, float unit) {
    return (candidate){.scale = scale * unit,
                       .zero = (float)zero,
                       .top = (float)grid_top(how->bits),
                       .unit = unit};
}

float scale_error(const wquant *how, const float *x, int64_t n, float scale, int zero) {
    float lo, hi;
    scale_range(x, n, &lo, &hi);
    float unit = unit_for(hi > -lo ? hi : -lo);
    return error_sum(x, n, candidate_of(how, scale, zero, unit), INFINITY);
}

void scale_search(const wquant *how, const float *x, int64_t n, float *scale, int *zero) {
    float lo, hi, least = INFINITY;
    scale_range(x, n, &lo, &hi);
    float unit = unit_for(hi > -lo ? hi : -lo);
    float last_scale = 0;
    int last_zero = -1;
    for (int k = 0; k < SCALE_SEARCH_CANDIDATES; k++) {
        float s;
        int z;
        scale_of_range(how, lo, hi, (float)(1.0 - k / 100.0), &s, &z);
        /* Neighbours often round to the same stored scale. */
        if (s == last_scale && z == last_zero) continue;
        last_scale = s;
        last_zero = z;
        float sum = error_sum(x, n, candidate_of(how, s, z, unit), least);
        if (k == 0 || sum < least) {
            least = sum;
            *scale = s;
            *zero = z;
        }
    }
}
