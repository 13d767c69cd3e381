/* norm_body - the body of norm.c for one type of reals. */
#include "model/real.h"

void REAL_FN(norm_rows)(const REAL *x, int64_t rows, int64_t n, double eps, const float *gain,
                        REAL *out) {
    for (int64_t i = 0; i < rows; i++) {
        const REAL *from = x + i * n;
        REAL *to = out + i * n, sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < n; j++) sum += from[j] * from[j];
        REAL scale = (REAL)(1 / sqrt((double)sum / (double)n + eps));
        if (gain) {
#pragma omp simd
            for (int64_t j = 0; j < n; j++) to[j] = from[j] * scale * (REAL)gain[j];
        } else {
#pragma omp simd
            for (int64_t j = 0; j < n; j++) to[j] = from[j] * scale;
        }
    }
}

REAL REAL_FN(norm_scale)(const REAL *x, int64_t n, double eps) {
    REAL sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) sum += x[j] * x[j];
    return (REAL)(1 / sqrt((double)sum / (double)n + eps));
}

void REAL_FN(norm_back)(const REAL *y, REAL scale, const REAL *g, int64_t n, REAL *dx) {
    REAL sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) sum += g[j] * y[j];
    const REAL mean = sum / (REAL)n;
#pragma omp simd
    for (int64_t j = 0; j < n; j++) dx[j] += scale * (g[j] - y[j] * mean);
}

void REAL_FN(norm_factors)(const REAL *x, int64_t n, const float *gain, compute_type compute,
                           void *to) {
    if (compute != COMPUTE_BF16) {
        REAL *real = to;
#pragma omp simd
        for (int64_t j = 0; j < n; j++) real[j] = gain ? x[j] * (REAL)gain[j] : x[j];
        return;
    }
    bf16 *half = to;
    if (gain) {
#pragma omp simd
        for (int64_t j = 0; j < n; j++) half[j] = half_to_bf16((float)(x[j] * (REAL)gain[j]));
    } else {
#pragma omp simd
        for (int64_t j = 0; j < n; j++) half[j] = half_to_bf16((float)x[j]);
    }
}

void REAL_FN(norm_add_bias)(REAL *x, const float *b, int64_t n) {
    if (!b) return;
#pragma omp simd
    for (int64_t j = 0; j < n; j++) x[j] += (REAL)b[j];
}
