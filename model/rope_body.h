/* rope_body - the body of rope.c for one type of reals. */
#include "model/real.h"

static void REAL_FN(fill_tables)(const double *inv_freq, double gain, int64_t half,
                                 int64_t n_tokens, REAL *cos_t, REAL *sin_t) {
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < n_tokens; t++) {
        for (int64_t i = 0; i < half; i++) {
            double angle = (double)t * inv_freq[i];
            cos_t[t * half + i] = (REAL)(gain * cos(angle));
            sin_t[t * half + i] = (REAL)(gain * sin(angle));
        }
    }
}

void REAL_FN(rope_head)(REAL *x, int64_t half, const REAL *cos_t, const REAL *sin_t) {
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        REAL a = x[i], b = x[i + half];
        x[i] = a * cos_t[i] - b * sin_t[i];
        x[i + half] = b * cos_t[i] + a * sin_t[i];
    }
}

void REAL_FN(rope_head_back)(REAL *g, int64_t half, const REAL *cos_t, const REAL *sin_t) {
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        REAL a = g[i], b = g[i + half];
        g[i] = a * cos_t[i] + b * sin_t[i];
        g[i + half] = b * cos_t[i] - a * sin_t[i];
    }
}
