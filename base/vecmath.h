/* vecmath - exp and what is made of it, in forms that compilers vectorise, with the same bits on
 * every machine that rounds as IEEE says. Not a libm: float alone, accurate to about 1 ulp; fp64 is
 * for tests and takes libm's exp. */
#ifndef SPINSHARD_BASE_VECMATH_H
#define SPINSHARD_BASE_VECMATH_H

#include "base/half.h"

#include <math.h>
#include <stdint.h>

/* Local. e^x. 0 below -87.7, infinity above 88.37 (a little early); NaN stays NaN.
 * x = n ln 2 + r, |r| <= ln 2 / 2. n comes from adding 1.5 * 2^23, which leaves it rounded in the
 * low bits; ln 2 is split so that n times the high part is exact; e^r by its Taylor series to r^7
 * (next term below 1e-8). The limits give n = -127 and 128, whose 2^n below are 0 and infinity.
 * fmaf is one rounding wherever it runs, so the bits do not depend on the compiler. */
static inline float vec_exp(float x) {
    const float log2_e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    const float to_integer = 12582912.0f;
    x = x < -88.0f ? -88.0f : x; /* in this form NaN passes */
    x = x > 89.0f ? 89.0f : x;
    float shifted = fmaf(x, log2_e, to_integer), n = shifted - to_integer;
    float r = fmaf(n, -ln2_low, fmaf(n, -ln2_high, x));
    float p = 1.0f / 5040;
    p = fmaf(p, r, 1.0f / 720);
    p = fmaf(p, r, 1.0f / 120);
    p = fmaf(p, r, 1.0f / 24);
    p = fmaf(p, r, 1.0f / 6);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    return p * half_float((half_bits(shifted) + 127u) << 23); /* all but the low 9 bits fall off */
}

/* Local. x / (1 + e^-x). */
static inline float vec_silu(float x) {
    return x / (1.0f + vec_exp(-x));
}
static inline double vec_silu_f64(double x) {
    return x / (1 + exp(-x));
}

#endif
