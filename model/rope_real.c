/* A rotation of the channel pairs (i, i + head_dim/2) by position times frequency. */
#include "model/rope.h"

#include <math.h>

#include "base/real.h"

void rope_fill_tables_f32(const double *inv_freq, double gain, int64_t half, int64_t n_tokens,
                          real *cos_t, real *sin_t) {
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < n_tokens; t++) {
        for (int64_t i = 0; i < half; i++) {
            double angle = (double)t * inv_freq[i];
            cos_t[t * half + i] = (real)(gain * cos(angle));
            sin_t[t * half + i] = (real)(gain * sin(angle));
        }
    }
}

void rope_head_f32(real *x, int64_t half, const real *cos_t, const real *sin_t) {
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        real a = x[i], b = x[i + half];
        x[i] = a * cos_t[i] - b * sin_t[i];
        x[i + half] = b * cos_t[i] + a * sin_t[i];
    }
}

void rope_head_backward_f32(real *g, int64_t half, const real *cos_t, const real *sin_t) {
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        real a = g[i], b = g[i + half];
        g[i] = a * cos_t[i] + b * sin_t[i];
        g[i + half] = b * cos_t[i] - a * sin_t[i];
    }
}
