/* half - IEEE binary16 and bfloat16 as bit patterns, with conversions that round half to even.
 * Arrays are converted in bulk: the compiler vectorises these loops. */
#ifndef SPINSHARD_BASE_HALF_H
#define SPINSHARD_BASE_HALF_H

#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;
typedef uint16_t fp16;

static inline uint32_t half_bits(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}
static inline float half_float(uint32_t u) {
    float x;
    memcpy(&x, &u, 4);
    return x;
}

static inline float half_from_bf16(bf16 h) {
    return half_float((uint32_t)h << 16);
}

/* NaN stays NaN (quiet); overflow of the rounding gives infinity, as it must. */
static inline bf16 half_to_bf16(float x) {
    uint32_t u = half_bits(x);
    uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    uint32_t quiet = (u >> 16) | 0x40u;
    return (bf16)((u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

float half_from_fp16(fp16 h);
fp16 half_to_fp16(float x);

void half_array_from_bf16(const bf16 *from, int64_t n, float *to);
void half_array_to_bf16(const float *from, int64_t n, bf16 *to);
void half_array_from_fp16(const fp16 *from, int64_t n, float *to);
void half_array_to_fp16(const float *from, int64_t n, fp16 *to);

#endif
