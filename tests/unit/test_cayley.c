/* The Cayley step by its definition, known rotations, finite differences, and the same bits for
 * any number of threads. Products here are plain loops, none of the program's. */
#include "base/err.h"
#include "base/rng.h"
#include "rotations/cayley.h"
#include "tests/unit/assert_ok.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

static const int64_t orders[] = {1, 2, 3, 48, 127, 128, 129, 200, 300};
enum { N_ORDERS = sizeof orders / sizeof *orders };

static double *room(int64_t count) {
    double *p = calloc((size_t)count, sizeof *p);
    assert_non_null(p);
    return p;
}

static double *normal(int64_t count, uint64_t seed) {
    double *x = room(count);
    for (int64_t i = 0; i < count; i++) x[i] = rng_normal(seed, RNG_TEST, (uint64_t)i);
    return x;
}

static double *skew(int64_t n, uint64_t seed, double scale) {
    double *A = room(n * n);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < i; j++) {
            A[i * n + j] = scale * rng_normal(seed, RNG_TEST, (uint64_t)(i * n + j));
            A[j * n + i] = -A[i * n + j];
        }
    return A;
}

/* Orthogonal by Gram and Schmidt, twice, in rows. */
static double *orthogonal(int64_t n, uint64_t seed) {
    double *R = normal(n * n, seed);
    for (int64_t i = 0; i < n; i++)
        for (int pass = 0; pass < 2; pass++) {
            for (int64_t k = 0; k < i; k++) {
                double dot = 0;
                for (int64_t j = 0; j < n; j++) dot += R[i * n + j] * R[k * n + j];
                for (int64_t j = 0; j < n; j++) R[i * n + j] -= dot * R[k * n + j];
            }
            double square = 0;
            for (int64_t j = 0; j < n; j++) square += R[i * n + j] * R[i * n + j];
            for (int64_t j = 0; j < n; j++) R[i * n + j] /= sqrt(square);
        }
    return R;
}

/* a b, or with transposes. */
static double *product(int64_t n, const double *a, bool ta, const double *b, bool tb) {
    double *c = room(n * n);
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < n; k++) {
            double f = ta ? a[k * n + i] : a[i * n + k];
            for (int64_t j = 0; j < n; j++) c[i * n + j] += f * (tb ? b[j * n + k] : b[k * n + j]);
        }
    return c;
}

static double distance(int64_t count, const double *a, const double *b) {
    double most = 0;
    for (int64_t i = 0; i < count; i++) most = fmax(most, fabs(a[i] - b[i]));
    return most;
}

static double defect(int64_t n, const double *R) {
    double *P = product(n, R, true, R, false), most = 0;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) most = fmax(most, fabs(P[i * n + j] - (i == j)));
    free(P);
    return most;
}

/* (I - A/2) R_next = (I + A/2) R defines the step. */
static void check_step(int64_t n, double scale) {
    double *A = skew(n, 1, scale), *R = orthogonal(n, 2), *next = room(n * n);
    memcpy(next, R, (size_t)(n * n) * sizeof *R);
    assert_ok(cayley_step(n, A, next));
    double *left = product(n, A, false, next, false), *right = product(n, A, false, R, false);
    for (int64_t i = 0; i < n * n; i++) {
        left[i] = next[i] - left[i] / 2;
        right[i] = R[i] + right[i] / 2;
    }
    assert_true(distance(n * n, left, right) < 1e-13 * (10 + scale * (double)n));
    assert_true(defect(n, next) < 1e-12);
    if (n > 1) assert_true(distance(n * n, next, R) > 1e-4);
    free(A), free(R), free(next), free(left), free(right);
}

static void step_is_its_definition(void **state) {
    (void)state;
    for (int i = 0; i < N_ORDERS; i++) {
        check_step(orders[i], 0.002);
        check_step(orders[i], 0.1);
        check_step(orders[i], 2);
    }
}

/* A = a J turns the plane by 2 atan(a / 2), counter-clockwise on columns. */
static void a_plane_turns_by_a_known_angle(void **state) {
    (void)state;
    for (double a = -3; a <= 3; a += 0.75) {
        double A[4] = {0, -a, a, 0}, R[4] = {1, 0, 0, 1}, t = 2 * atan(a / 2);
        assert_ok(cayley_step(2, A, R));
        double want[4] = {cos(t), -sin(t), sin(t), cos(t)};
        assert_true(distance(4, R, want) < 1e-15);
    }
}

static void direction_is_skew_and_blind_to_the_symmetric_part(void **state) {
    (void)state;
    const int64_t n = 129;
    double *G = normal(n * n, 3), *R = orthogonal(n, 4), *W = room(n * n), *again = room(n * n);
    double *X = normal(n * n, 5), *rotated = room(n * n);
    assert_ok(cayley_skew(n, G, R, W));
    double *GR = product(n, G, false, R, true);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            assert_true(W[i * n + j] == -W[j * n + i]);
            double want = -(GR[i * n + j] - GR[j * n + i]) / 2;
            assert_true(fabs(W[i * n + j] - want) < 1e-12);
        }
    for (int64_t i = 0; i < n; i++) /* S = X + X^T */
        for (int64_t j = 0; j <= i; j++) X[i * n + j] = X[j * n + i] = X[i * n + j] + X[j * n + i];
    double *SR = product(n, X, false, R, false);
    for (int64_t i = 0; i < n * n; i++) SR[i] += G[i];
    assert_ok(cayley_skew(n, SR, R, again));
    assert_true(distance(n * n, W, again) < 1e-12);
    /* W' = R^T W R. */
    assert_ok(cayley_skew_right(n, W, R, rotated));
    double *WR = product(n, W, false, R, false), *RWR = product(n, R, true, WR, false);
    assert_true(distance(n * n, rotated, RWR) < 1e-12);
    free(G), free(R), free(W), free(again), free(X), free(rotated), free(GR), free(SR), free(WR);
    free(RWR);
}

/* f(R) = sum c sin(R) along Cayley(t A) R: df/dt = <G, A R>, and -|W|^2 where A = W. */
static double f_along(int64_t n, const double *c, const double *A, const double *R, double t) {
    double *At = room(n * n), *next = room(n * n), sum = 0;
    for (int64_t i = 0; i < n * n; i++) At[i] = t * A[i];
    memcpy(next, R, (size_t)(n * n) * sizeof *R);
    assert_ok(cayley_step(n, At, next));
    for (int64_t i = 0; i < n * n; i++) sum += c[i] * sin(next[i]);
    free(At), free(next);
    return sum;
}

static double slope_along(int64_t n, const double *c, const double *A, const double *R) {
    const double h = 1e-3; /* fourth order */
    double d1 = f_along(n, c, A, R, h) - f_along(n, c, A, R, -h);
    double d2 = f_along(n, c, A, R, 2 * h) - f_along(n, c, A, R, -2 * h);
    return (8 * d1 - d2) / (12 * h);
}

static void gradient_is_the_slope(void **state) {
    (void)state;
    const int64_t n = 24;
    double *c = normal(n * n, 6), *R = orthogonal(n, 7), *A = skew(n, 8, 0.3), *G = room(n * n);
    double *W = room(n * n), want = 0;
    for (int64_t i = 0; i < n * n; i++) G[i] = c[i] * cos(R[i]);
    double *AR = product(n, A, false, R, false);
    for (int64_t i = 0; i < n * n; i++) want += G[i] * AR[i];
    assert_true(fabs(slope_along(n, c, A, R) - want) < 1e-7 * (1 + fabs(want)));
    assert_ok(cayley_skew(n, G, R, W));
    double down = -cayley_sum_squares(n, W);
    for (int64_t i = 0; i < n * n; i++) A[i] = W[i] * 0.02;
    assert_true(down < 0);
    assert_true(fabs(slope_along(n, c, A, R) - 0.02 * down) < 1e-7 * fabs(down));
    free(c), free(R), free(A), free(G), free(W), free(AR);
}

static void norms_are_known(void **state) {
    (void)state;
    double W[9] = {0, -1, 2, 1, 0, -5, -2, 5, 0};
    assert_true(cayley_norm_1(3, W) == 7);
    assert_true(cayley_sum_squares(3, W) == 60);
    const int64_t n = 300; /* several blocks of columns; the largest column is the last but one */
    double *x = room(n * n), sum = 0;
    for (int64_t i = 0; i < n; i++) x[i * n + n - 2] = i % 2 ? -(double)i : (double)i;
    for (int64_t i = 0; i < n; i++) sum += (double)i;
    x[5] = -(sum - 1);
    assert_true(cayley_norm_1(n, x) == sum);
    x[7] = NAN;
    assert_true(isnan(cayley_norm_1(n, x)));
    free(x);
}

static void bits_do_not_depend_on_threads_or_batch(void **state) {
    (void)state;
    const int before = omp_get_max_threads();
    for (int64_t n = 96; n <= 700; n += 302) {
        double *G = normal(n * n, 9), *R = orthogonal(n, 10), *first = NULL;
        for (int threads = 1; threads <= 4; threads++) {
            omp_set_num_threads(threads);
            double *W = room(n * n), *next = room(n * n);
            memcpy(next, R, (size_t)(n * n) * sizeof *R);
            assert_ok(cayley_skew(n, G, R, W));
            for (int64_t i = 0; i < n * n; i++) W[i] *= 0.01;
            assert_ok(cayley_step(n, W, next));
            if (!first) first = next;
            assert_memory_equal(first, next, (size_t)(n * n) * sizeof *R);
            if (next != first) free(next);
            free(W);
        }
        free(G), free(R), free(first);
    }
    const int64_t n = 48, count = 5, size = n * n;
    double *G = normal(count * size, 11), *R = normal(count * size, 12), *W = room(count * size);
    double *each = room(count * size), *one = room(size);
    for (int64_t k = 0; k < count; k++) {
        double *Q = orthogonal(n, 13 + (uint64_t)k);
        memcpy(R + k * size, Q, (size_t)size * sizeof *R);
        memcpy(each + k * size, Q, (size_t)size * sizeof *R);
        free(Q);
    }
    assert_ok(cayley_skew_batch(n, count, G, R, W));
    for (int64_t k = 0; k < count; k++) {
        assert_ok(cayley_skew(n, G + k * size, each + k * size, one));
        assert_memory_equal(one, W + k * size, (size_t)size * sizeof *R);
        assert_ok(cayley_step(n, one, each + k * size));
    }
    assert_ok(cayley_step_batch(n, count, W, R));
    assert_memory_equal(R, each, (size_t)(count * size) * sizeof *R);
    omp_set_num_threads(before);
    free(G), free(R), free(W), free(each), free(one);
}

static void what_is_not_finite_is_refused(void **state) {
    (void)state;
    const int64_t n = 40;
    double *A = skew(n, 14, 0.1), *R = orthogonal(n, 15), *before = room(n * n);
    memcpy(before, R, (size_t)(n * n) * sizeof *R);
    const double bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        double kept = A[77];
        A[77] = bad[i];
        assert_int_equal(cayley_step(n, A, R).code, ERR_NUMERICS);
        assert_int_equal(cayley_step_batch(n / 2, 4, A, R).code, ERR_NUMERICS);
        A[77] = kept;
    }
    memcpy(R, before, (size_t)(n * n) * sizeof *R);
    A[77] = NAN;
    assert_int_equal(cayley_step(n, A, R).code, ERR_NUMERICS);
    assert_memory_equal(R, before, (size_t)(n * n) * sizeof *R);
    free(A), free(R), free(before);
}

static void defects_are_seen_and_polished(void **state) {
    (void)state;
    const int64_t n = 150;
    double *R = orthogonal(n, 16), *noise = normal(n * n, 17), max = -1, probe = -1;
    assert_ok(cayley_orthogonality(n, R, &max));
    assert_ok(cayley_probe(n, R, 1, 3, &probe));
    assert_true(max < 1e-14 && probe < 1e-14);
    for (int64_t i = 0; i < n * n; i++) R[i] += 1e-6 * noise[i];
    assert_ok(cayley_orthogonality(n, R, &max));
    assert_ok(cayley_probe(n, R, 1, 3, &probe));
    assert_true(fabs(max / defect(n, R) - 1) < 1e-9);
    assert_true(probe > 1e-7 && probe < 1e-4);
    assert_ok(cayley_polish(n, R));
    assert_true(defect(n, R) < 1e-8);
    assert_ok(cayley_polish(n, R));
    assert_true(defect(n, R) < 1e-14);
    R[3] = NAN;
    assert_ok(cayley_orthogonality(n, R, &max));
    assert_ok(cayley_probe(n, R, 1, 3, &probe));
    assert_true(isnan(max) && isnan(probe));
    free(R), free(noise);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(step_is_its_definition),
        cmocka_unit_test(a_plane_turns_by_a_known_angle),
        cmocka_unit_test(direction_is_skew_and_blind_to_the_symmetric_part),
        cmocka_unit_test(gradient_is_the_slope),
        cmocka_unit_test(norms_are_known),
        cmocka_unit_test(bits_do_not_depend_on_threads_or_batch),
        cmocka_unit_test(what_is_not_finite_is_refused),
        cmocka_unit_test(defects_are_seen_and_polished),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
