/* Statistics of inputs against definitions taken the long way, tables, and for the volumes points
 * thrown at random. */
#include "base/lapack.h"
#include "base/rng.h"
#include "model/site_stats.h"
#include "tests/unit/assert_ok.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

static double normal(int64_t i) {
    return rng_normal(3, RNG_TEST, (uint64_t)i);
}

static void near(double got, double want, double share) {
    if (!(fabs(got - want) <= share * fabs(want)))
        print_error("%.17g where %.17g is wanted\n", got, want);
    assert_true(fabs(got - want) <= share * fabs(want));
}

/* Two passes in long double; entries with a mean, and one channel far above the others. */
static void test_moments(void **state) {
    enum { ROWS = 60, WIDTH = 37, ALL = ROWS * WIDTH };
    static float x[ALL];
    site_stats s = {.width = WIDTH};
    long double mean = 0, m2 = 0, m4 = 0, squares = 0, peaks = 0, most = 0;
    int64_t outlier = 0, n = 0;
    (void)state;
    for (int i = 0; i < ALL; i++) x[i] = (float)(normal(i) + 0.3) * (i % 411 == 5 ? 80 : 1);
    for (int i = 0; i < ALL; i++) mean += (long double)x[i] / ALL;
    for (int t = 0; t < ROWS; t++) {
        long double row = 0, largest = 0;
        for (int j = 0; j < WIDTH; j++) {
            const long double v = x[t * WIDTH + j], d = v - mean;
            row += v * v;
            largest = fmaxl(largest, fabsl(v));
            m2 += d * d;
            m4 += d * d * d * d;
        }
        const long double peak = largest / sqrtl(row / WIDTH);
        squares += row;
        peaks += peak;
        outlier += peak > SITE_OUTLIER;
        most = fmaxl(most, largest);
    }
    site_stats_add(&s, x, ROWS / 2);
    site_stats_add(&s, x + ROWS / 2 * WIDTH, ROWS / 2);
    const double bound = 64 * ALL * DBL_EPSILON;
    near(site_kurtosis(&s), (double)(m4 / ALL / (m2 / ALL * m2 / ALL)), bound);
    near(site_rms(&s), (double)sqrtl(squares / ALL), bound);
    near(s.peaks, (double)peaks, bound);
    assert_true(s.most == (double)most && s.outlier == outlier && s.rows == ROWS);
    for (int b = 0; b < SITE_BINS; b++) n += s.bins[b];
    assert_int_equal(n, ALL);
}

static void test_bins(void **state) {
    (void)state;
    const float x[] = {1, -1.25f, 1.5f, -2, 0, 2.9f};
    site_stats s = {.width = 6};
    site_stats_add(&s, x, 1);
    for (int b = 0; b < SITE_BINS; b++) { /* 1 and 1.25, 1.5, 2 and 2.9, 0 */
        const double from = site_bin_from(b);
        assert_int_equal(s.bins[b], from == 1 || from == 2 ? 2 : from == 1.5 || from == 0);
    }
}

static void test_zeros(void **state) {
    (void)state;
    const float x[6] = {0};
    site_stats s = {.width = 3};
    site_stats_add(&s, x, 2);
    assert_true(isnan(site_kurtosis(&s)) && site_rms(&s) == 0 && s.peaks == 0 && s.outlier == 0);
}

/* Points of chi^2 from tables; of two degrees it is -2 log(1 - p). */
static void test_chi2(void **state) {
    (void)state;
    near(site_chi2_point(1, 0.99), 6.634896601021213, 1e-12);
    near(site_chi2_point(2, 0.99), -2 * log(0.01), 1e-12);
    near(site_chi2_point(8, 0.99), 20.090235029663233, 1e-12);
    near(site_chi2_point(8, 0.5), 7.344121497701792, 1e-12);
    near(site_chi2_point(100, 0.99), 135.80672317102676, 1e-12);
}

/* Normal rows x = g A: the share of the points of the cube that lie in the ellipsoid, by throwing
 * points into the box around it, whose share of the cube is known. */
static void volume_by_points(int d) {
    enum { ROWS = 4000, POINTS = 1000000, MOST = 8 };
    float *x = calloc(ROWS * MOST, sizeof *x);
    double a[MOST * MOST], cov[MOST * MOST] = {0}, inverse[MOST * MOST], half[MOST], log_det;
    double mean[MOST] = {0}, box = 0;
    int64_t hits = 0;
    assert_non_null(x);
    for (int i = 0; i < d * d; i++) a[i] = (i / d == i % d) * (1 + 0.5 * (i % d)) + 0.2 * normal(i);
    for (int t = 0; t < ROWS; t++)
        for (int k = 0; k < d; k++) {
            const double g = normal(1000 + t * d + k);
            for (int j = 0; j < d; j++) x[t * d + j] += (float)(g * a[k * d + j]);
        }
    for (int t = 0; t < ROWS; t++)
        for (int j = 0; j < d; j++) mean[j] += (double)x[t * d + j] / ROWS;
    for (int t = 0; t < ROWS; t++)
        for (int i = 0; i < d * d; i++)
            cov[i] += ((double)x[t * d + i / d] - mean[i / d]) *
                      ((double)x[t * d + i % d] - mean[i % d]) / (ROWS - 1);
    site_stats s = {.width = d};
    site_stats_add(&s, x, ROWS);
    assert_ok(site_log_det(x, ROWS, d, &log_det));
    const double q = site_chi2_point(d, 0.99);
    for (int i = 0; i < d * d; i++) inverse[i] = cov[i];
    assert_ok(lapack_inverse(d, inverse, "covariance"));
    for (int j = 0; j < d; j++) {
        half[j] = sqrt(q * cov[j * d + j]);
        box += log(half[j] / s.most);
    }
    for (int64_t p = 0; p < POINTS; p++) {
        double y[MOST], sum = 0;
        for (int j = 0; j < d; j++)
            y[j] = half[j] * (2 * rng_uniform(9, RNG_TEST, (uint64_t)(p * d + j)) - 1);
        for (int i = 0; i < d * d; i++) sum += y[i / d] * inverse[i] * y[i % d];
        hits += sum <= q;
    }
    near(exp(d * site_log_qsur(d, log_det, s.most)), exp(box) * (double)hits / POINTS, 0.02);
    free(x);
}

static void test_volume(void **state) {
    (void)state;
    volume_by_points(1);
    volume_by_points(2);
    volume_by_points(5);
    volume_by_points(8);
}

static void test_no_volume(void **state) {
    (void)state;
    const float few[] = {1, 2, 3, 4}, twice[] = {1, 1, 2, 2, 4, 4, 3, 3};
    double log_det = 0;
    assert_ok(site_log_det(few, 2, 2, &log_det));
    assert_true(isnan(log_det));
    assert_ok(site_log_det(twice, 4, 2, &log_det));
    assert_true(isnan(log_det));
}

/* A channel that two others make, which rounding hides from a factor. */
static void test_made_of_others(void **state) {
    enum { ROWS = 200, WIDTH = 9 };
    static float x[ROWS * WIDTH];
    double log_det = 0;
    (void)state;
    for (int64_t i = 0; i < ROWS * WIDTH; i++) x[i] = (float)normal(i);
    for (int t = 0; t < ROWS; t++) x[t * WIDTH + 8] = x[t * WIDTH + 1] + x[t * WIDTH + 5];
    assert_ok(site_log_det(x, ROWS, WIDTH, &log_det));
    assert_true(isnan(log_det));
}

/* By elimination, in fp64 throughout. */
static double log_det_long(const float *x, int rows, int d) {
    double *c = calloc((size_t)(d * d + d), sizeof *c), *mean = c + d * d, sum = 0;
    assert_non_null(c);
    for (int i = 0; i < rows * d; i++) mean[i % d] += (double)x[i] / rows;
    for (int t = 0; t < rows; t++)
        for (int i = 0; i < d * d; i++)
            c[i] += ((double)x[t * d + i / d] - mean[i / d]) *
                    ((double)x[t * d + i % d] - mean[i % d]) / (rows - 1);
    for (int k = 0; k < d; k++) {
        for (int i = k + 1; i < d; i++) {
            const double f = c[i * d + k] / c[k * d + k];
            for (int j = k; j < d; j++) c[i * d + j] -= f * c[k * d + j];
        }
        sum += log(c[k * d + k]);
    }
    free(c);
    return sum;
}

/* Channels whose sizes span nine decades, some with means a thousand times what they vary by, and
 * of which each shares nine tenths with the one before: what fp32 would spoil if it came first. */
static void test_rough_channels(void **state) {
    enum { ROWS = 600, WIDTH = 150 };
    static float x[ROWS * WIDTH];
    double log_det = 0;
    (void)state;
    for (int t = 0; t < ROWS; t++) {
        double v = 0;
        for (int j = 0; j < WIDTH; j++) {
            v = 0.9 * v + normal(t * WIDTH + j);
            x[t * WIDTH + j] = (float)((v + (j % 7 == 2) * 2000) * pow(10, j % 10 - 5));
        }
    }
    assert_ok(site_log_det(x, ROWS, WIDTH, &log_det));
    assert_true(fabs(log_det - log_det_long(x, ROWS, WIDTH)) < 1e-5 * WIDTH);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_moments),        cmocka_unit_test(test_bins),
        cmocka_unit_test(test_zeros),          cmocka_unit_test(test_chi2),
        cmocka_unit_test(test_volume),         cmocka_unit_test(test_no_volume),
        cmocka_unit_test(test_made_of_others), cmocka_unit_test(test_rough_channels)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
