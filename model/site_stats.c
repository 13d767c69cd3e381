/* Sums of a row are in its own order, rows are added one after the other: no result depends on
 * threads. */
#include "model/site_stats.h"

#include "base/blas.h"
#include "base/gemm.h"
#include "base/half.h"
#include "base/lapack.h"
#include "base/mem.h"
#include "base/size.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BIN_SHIFT = 22, BAND = 256, COLUMNS = 128 };

/* Pivots of a correlation in fp32 are off by some eps, which is 1.2e-7; the rounding of entries to
 * bf16 alone gives each channel a share of its own of 1e-6. */
#define LEAST_PIVOT 1e-6

double site_bin_from(int bin) {
    return (double)half_float((uint32_t)bin << BIN_SHIFT);
}

/* ---- entries and rows ---- */

site_row site_row_of(const float *x, int64_t n) {
    double s1 = 0, s2 = 0, s3 = 0, s4 = 0;
    float most = 0;
#pragma omp simd reduction(+ : s1, s2, s3, s4) reduction(max : most)
    for (int64_t j = 0; j < n; j++) {
        const double v = (double)x[j], vv = v * v;
        const float a = fabsf(x[j]);
        s1 += v;
        s2 += vv;
        s3 += vv * v;
        s4 += vv * vv;
        most = a > most ? a : most;
    }
    return (site_row){{(double)n, s1, s2, s3, s4}, (double)most};
}

void site_stats_add_row(site_stats *s, const site_row *p) {
    const double rms = sqrt(p->sum[2] / p->sum[0]), peak = rms > 0 ? p->most / rms : 0;
    for (int k = 0; k < 5; k++) s->sum[k] += p->sum[k];
    s->most = fmax(s->most, p->most);
    s->peaks += peak;
    s->outlier += peak > SITE_OUTLIER;
    s->rows++;
}

void site_stats_add(site_stats *s, const float *x, int64_t rows) {
    const int64_t n = s->width;
    site_row *parts = calloc((size_t)rows + 1, sizeof *parts);
    if (!parts) abort();
#pragma omp parallel
    {
        int64_t bins[SITE_BINS] = {0};
#pragma omp for schedule(static)
        for (int64_t t = 0; t < rows; t++) {
            parts[t] = site_row_of(x + t * n, n);
            for (int64_t j = 0; j < n; j++)
                bins[(half_bits(x[t * n + j]) & 0x7fffffffu) >> BIN_SHIFT]++;
        }
#pragma omp critical(site_bins)
        for (int b = 0; b < SITE_BINS; b++) s->bins[b] += bins[b];
    }
    for (int64_t t = 0; t < rows; t++) site_stats_add_row(s, &parts[t]);
    free(parts);
}

double site_rms(const site_stats *s) {
    return sqrt(s->sum[2] / s->sum[0]);
}

/* Central moments from those about zero. */
double site_kurtosis(const site_stats *s) {
    const double m = s->sum[1] / s->sum[0], m2 = s->sum[2] / s->sum[0], m3 = s->sum[3] / s->sum[0],
                 m4 = s->sum[4] / s->sum[0], variance = m2 - m * m;
    if (!(variance > 0)) return NAN;
    return (m4 - 4 * m * m3 + 6 * m * m * m2 - 3 * m * m * m * m) / (variance * variance);
}

/* ---- volumes ---- */

/* The correlation and a band of rows in fp32, mean and deviation of each channel in fp64. */
uint64_t site_log_det_bytes(int64_t width) {
    return (uint64_t)(width * (width + BAND)) * sizeof(float) +
           2 * (uint64_t)width * sizeof(double);
}

/* Mean of each channel, and the root of the sum of squares about it. */
static void columns(const float *x, int64_t rows, int64_t width, double *mean, double *spread) {
    memset(mean, 0, (size_t)width * sizeof *mean);
    memset(spread, 0, (size_t)width * sizeof *spread);
    for (int64_t t = 0; t < rows; t++)
        for (int64_t j = 0; j < width; j++) mean[j] += (double)x[t * width + j];
    for (int64_t j = 0; j < width; j++) mean[j] /= (double)rows;
    for (int64_t t = 0; t < rows; t++)
        for (int64_t j = 0; j < width; j++) {
            const double off = (double)x[t * width + j] - mean[j];
            spread[j] += off * off;
        }
    for (int64_t j = 0; j < width; j++) spread[j] = sqrt(spread[j]);
}

/* One triangle of the correlation, which is all that the factor takes. */
static void correlate(const float *x, int64_t rows, int64_t width, const double *mean,
                      const double *spread, float *band, float *to) {
    for (int64_t t = 0; t < rows; t += BAND) {
        const int64_t n = size_min(BAND, rows - t);
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < width; j++)
                band[i * width + j] =
                    (float)(((double)x[(t + i) * width + j] - mean[j]) / spread[j]);
        for (int64_t j = 0; j < width; j += COLUMNS)
            gemm_f32(GEMM_T, GEMM_N, size_min(COLUMNS, width - j), width - j, n, band + j, width,
                     band + j, width, gemm_into_of(t > 0), to + j * width + j, width);
    }
}

/* log det of the covariance is that of the correlation and twice the logs of the deviations. Sizes
 * of channels, which differ by thousands, are thus in fp64 and means taken off before anything is
 * rounded; the correlation in fp32, at half the time and memory, is off by some eps in each entry,
 * and by eps over its eigenvalues in what is told. */
err site_log_det(const float *x, int64_t rows, int64_t width, double *out) {
    void *all = NULL;
    *out = NAN;
    if (rows <= width || !blas_at_hand()) return err_none();
    err e = mem_alloc((int64_t)site_log_det_bytes(width), 1, "covariance", &all);
    if (e.code) return e;
    double *mean = all, *spread = mean + width, log_sizes = 0;
    float *correlation = (float *)(spread + width), *band = correlation + width * width;
    columns(x, rows, width, mean, spread);
    correlate(x, rows, width, mean, spread, band, correlation);
    for (int64_t j = 0; j < width; j++) log_sizes += 2 * log(spread[j]);
    e = lapack_log_det(width, correlation, LEAST_PIVOT, out);
    *out += log_sizes - (double)width * log((double)(rows - 1));
    mem_free(all);
    return e;
}

/* P(a, x) = x^a e^-x / Gamma(a + 1) (1 + x / (a + 1) + x^2 / ((a + 1) (a + 2)) + ...): every term
 * is positive, and they fall off once the divisors exceed x. */
static double gamma_share(double a, double x) {
    double term = 1, sum = 1;
    for (double k = 1; term > 1e-17 * sum; k++) sum += term *= x / (a + k);
    return exp(a * log(x) - x - lgamma(a + 1)) * sum;
}

double site_chi2_point(int64_t d, double probability) {
    const double a = 0.5 * (double)d;
    double below = 0, above = 2 * a;
    while (gamma_share(a, above / 2) < probability) above *= 2;
    for (int i = 0; i < 60; i++) {
        const double middle = (below + above) / 2;
        if (gamma_share(a, middle / 2) < probability)
            below = middle;
        else
            above = middle;
    }
    return above;
}

double site_log_qsur(int64_t d, double log_det, double most) {
    const double half = 0.5 * (double)d, inside = 0.99;
    const double volume =
        half * log(M_PI * site_chi2_point(d, inside)) - lgamma(half + 1) + 0.5 * log_det;
    return volume / (double)d - log(2 * most);
}
