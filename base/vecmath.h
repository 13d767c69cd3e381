/* vecmath - exp and what is made of it, in forms that compilers vectorise, with the same bits on
 * every machine that rounds as IEEE says. Not a libm: float only, accurate to about 1 ulp. */
#ifndef SPINSHARD_BASE_VECMATH_H
#define SPINSHARD_BASE_VECMATH_H

#include "base/half.h"

#include <math.h>
#include <stdint.h>

/* Local. e^x. Below the smallest normal number 0, above the largest infinity; NaN stays NaN.
 * x = n ln 2 + r, |r| <= ln 2 / 2; ln 2 is split so that n times the high part is exact; e^r by its
 * Taylor series to r^7 (next term below 1e-8). */
static inline float vec_exp(float x) {
    const float log2_e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    float n = rintf(x * log2_e);
    n = n > -127.0f ? n : -127.0f; /* NaN too, so that the cast below is defined */
    n = n < 128.0f ? n : 128.0f;
    float r = (x - n * ln2_high) - n * ln2_low;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    /* 2^n; n = -127 gives 0. 2^128 is made of two factors, as finite results lie just below it. */
    int32_t k = (int32_t)n;
    int32_t k_high = k < 127 ? k : 127;
    float two_n = half_float((uint32_t)(k_high + 127) << 23);
    float extra = k > 127 ? 2.0f : 1.0f;
    float y = p * two_n * extra;
    return x > 88.7228390f ? INFINITY : (x < -87.3365447f ? 0.0f : y);
}

/* Local. x / (1 + e^-x). */
static inline float vec_silu(float x) {
    return x / (1.0f + vec_exp(-x));
}

#endif
