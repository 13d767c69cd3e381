/* Conversions between 16-bit floats and fp32, exact or rounded half to even. Loops are written in
 * integers so that compilers vectorise them. */
#include "base/half.h"

/* Nothing here is _Float16, which not all compilers have: on x86 gcc before 12 has none, and clang
 * 14 has it only for CPUs that compute in it (AVX512-FP16). */

/* Exponent and fraction move to their places, 2^112 corrects the bias (and normalises denormals),
 * infinity and NaN get the greatest exponent back. */
float half_from_fp16(fp16 h) {
    const uint32_t magnitude = (h & 0x7fffu) << 13;
    const uint32_t u = half_bits(half_float(magnitude) * 0x1p112f);
    const uint32_t top = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
    return half_float(u | top | (h & 0x8000u) << 16);
}

/* From 2^-14 on the exponent's bias goes down by 112, and half a unit of the last place that stays
 * is added, less one bit where that place is even, so that ties go to even; a carry goes on into
 * the exponent, at last to infinity. Below, fp16 counts units of 2^-24, which is the last place of
 * 0.5 in fp32: the sum with 0.5 rounds to them. NaN stays one, quiet. */
fp16 half_to_fp16(float x) {
    const uint32_t u = half_bits(x), m = u & 0x7fffffffu;
    const uint32_t normal = (m - (112u << 23) + 0xfffu + (m >> 13 & 1u)) >> 13;
    const uint32_t small = half_bits(half_float(m) + 0.5f) - half_bits(0.5f);
    uint32_t h = m < 0x38800000u ? small : normal;
    h = m >= 0x47800000u ? 0x7c00u : h; /* 2^16 */
    h = m > 0x7f800000u ? 0x7e00u | (m >> 13 & 0x1ffu) : h;
    return (fp16)(h | (u >> 16 & 0x8000u));
}

void half_array_from_bf16(const bf16 *from, int64_t n, float *to) {
    for (int64_t i = 0; i < n; i++) to[i] = half_from_bf16(from[i]);
}

void half_array_to_bf16(const float *from, int64_t n, bf16 *to) {
    for (int64_t i = 0; i < n; i++) to[i] = half_to_bf16(from[i]);
}

void half_array_from_fp16(const fp16 *from, int64_t n, float *to) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) to[i] = half_from_fp16(from[i]);
}

void half_array_to_fp16(const float *from, int64_t n, fp16 *to) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) to[i] = half_to_fp16(from[i]);
}
