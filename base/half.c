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

void half_array_from_fp16(const fp16 *from, int64_t n, float *to) {
    for (int64_t i = 0; i < n; i++) {
        _Float16 x;
        memcpy(&x, &from[i], 2);
        to[i] = (float)x;
    }
}

void half_array_to_fp16(const float *from, int64_t n, fp16 *to) {
    for (int64_t i = 0; i < n; i++) {
        _Float16 x = (_Float16)from[i];
        memcpy(&to[i], &x, 2);
    }
}
