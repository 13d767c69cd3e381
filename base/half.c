/* Conversions between 16-bit floats and fp32, exact or rounded half to even. Loops are written in
 * integers so that compilers vectorise them. */
#include "base/half.h"

/* The compiler's _Float16 conversions are IEEE and round half to even; with F16C they are one
 * instruction, without it library calls with the same bits. */
float half_from_fp16(fp16 h) {
    _Float16 x;
    memcpy(&x, &h, 2);
    return (float)x;
}

fp16 half_to_fp16(float v) {
    _Float16 x = (_Float16)v;
    fp16 h;
    memcpy(&h, &x, 2);
    return h;
}

void half_array_from_bf16(const bf16 *from, int64_t n, float *to) {
    for (int64_t i = 0; i < n; i++) to[i] = half_from_bf16(from[i]);
}

void half_array_to_bf16(const float *from, int64_t n, bf16 *to) {
    for (int64_t i = 0; i < n; i++) to[i] = half_to_bf16(from[i]);
}

/* In integers, since compilers do not vectorise the conversion itself: exponent and fraction move
 * to their places, 2^112 corrects the bias (and normalises denormals), infinity and NaN get the
 * greatest exponent back. */
void half_array_from_fp16(const fp16 *from, int64_t n, float *to) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        uint32_t h = from[i], magnitude = (h & 0x7fffu) << 13;
        uint32_t u = half_bits(half_float(magnitude) * 0x1p112f);
        u |= magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
        to[i] = half_float(u | (h & 0x8000u) << 16);
    }
}

void half_array_to_fp16(const float *from, int64_t n, fp16 *to) {
    for (int64_t i = 0; i < n; i++) {
        _Float16 x = (_Float16)from[i];
        memcpy(&to[i], &x, 2);
    }
}
