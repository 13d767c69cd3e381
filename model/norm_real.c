/* y = x / sqrt(mean x^2 + eps) * gain, and its backward. */
#include "model/norm.h"

#include "base/half.h"

#include <math.h>

#include "base/real.h"

void norm_rows_f32(const real *x, int64_t rows, int64_t n, double eps, const float *gain,
                   real *out) {
    for (int64_t i = 0; i < rows; i++) {
        const real *from = x + i * n;
        real *to = out + i * n, sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < n; j++) sum += from[j] * from[j];
        real scale = (real)(1 / sqrt((double)sum / (double)n + eps));
        if (gain) {
#pragma omp simd
            for (int64_t j = 0; j < n; j++) to[j] = from[j] * scale * (real)gain[j];
        } else {
#pragma omp simd
            for (int64_t j = 0; j < n; j++) to[j] = from[j] * scale;
        }
    }
}

real norm_scale_f32(const real *x, int64_t n, double eps) {
    real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) sum += x[j] * x[j];
    return (real)(1 / sqrt((double)sum / (double)n + eps));
}

void norm_backward_f32(const real *y, real scale, const real *g, int64_t n, real *dx) {
    real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) sum += g[j] * y[j];
    const real mean = sum / (real)n;
#pragma omp simd
    for (int64_t j = 0; j < n; j++) dx[j] += scale * (g[j] - y[j] * mean);
}

void norm_factors_f32(const real *x, int64_t n, const float *gain, compute_type compute, void *to) {
    if (compute != COMPUTE_BF16) {
        real *wide = to;
#pragma omp simd
        for (int64_t j = 0; j < n; j++) wide[j] = gain ? x[j] * (real)gain[j] : x[j];
        return;
    }
    bf16 *half = to;
    if (gain) {
#pragma omp simd
        for (int64_t j = 0; j < n; j++) half[j] = half_to_bf16((float)(x[j] * (real)gain[j]));
    } else {
#pragma omp simd
        for (int64_t j = 0; j < n; j++) half[j] = half_to_bf16((float)x[j]);
    }
}

void norm_row_factors_f32(const real *from, int64_t rows, int64_t n, const float *gain,
                          compute_type compute, void *to) {
    const size_t row = (size_t)n * compute_factor_bytes(compute);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < rows; t++) {
        norm_factors_f32(from + t * n, n, gain, compute, (char *)to + (size_t)t * row);
    }
}

void norm_add_bias_f32(real *x, const float *b, int64_t n) {
    if (!b) return;
#pragma omp simd
    for (int64_t j = 0; j < n; j++) x[j] += (real)b[j];
}
