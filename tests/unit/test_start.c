/* Start points: by their definitions, and matrices whose eigenvectors are known beforehand. */
#include "base/err.h"
#include "base/lapack.h"
#include "base/rng.h"
#include "rotations/flat_mix.h"
#include "rotations/hadamard.h"
#include "rotations/start.h"
#include "tests/unit/assert_ok.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

static double *room(int64_t count) {
    double *p = calloc((size_t)count, sizeof *p);
    assert_non_null(p);
    return p;
}

static double *product(int64_t n, const double *a, bool ta, const double *b, bool tb) {
    double *c = room(n * n);
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < n; k++) {
            double f = ta ? a[k * n + i] : a[i * n + k];
            for (int64_t j = 0; j < n; j++) c[i * n + j] += f * (tb ? b[j * n + k] : b[k * n + j]);
        }
    return c;
}

static double defect(int64_t n, const double *R) {
    double *P = product(n, R, true, R, false), most = 0;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) most = fmax(most, fabs(P[i * n + j] - (i == j)));
    free(P);
    return most;
}

/* G = Q U, U upper triangular with a positive diagonal: that determines Q. */
static void random_matrix_is_q_of_its_gaussian(void **state) {
    (void)state;
    const int64_t orders[] = {1, 2, 5, 64, 150};
    for (int o = 0; o < 5; o++) {
        const int64_t n = orders[o];
        double *R = room(n * n), *G = room(n * n);
        assert_ok(start_orthogonal(n, 7, RNG_R1_NORMAL, 1000, R));
        for (int64_t i = 0; i < n * n; i++) G[i] = rng_normal(7, RNG_R1_NORMAL, 1000 + (uint64_t)i);
        double *U = product(n, R, true, G, false);
        assert_true(defect(n, R) < 1e-13);
        for (int64_t i = 0; i < n; i++) {
            assert_true(U[i * n + i] > 0);
            for (int64_t j = 0; j < i; j++) assert_true(fabs(U[i * n + j]) < 1e-12);
        }
        free(R), free(G), free(U);
    }
}

static void random_matrices_differ_by_seed_and_are_uniform(void **state) {
    (void)state;
    const int64_t n = 24;
    double *a = room(n * n), *b = room(n * n), differ = 0, trace = 0, trace2 = 0;
    assert_ok(start_orthogonal(n, 1, RNG_R1_NORMAL, 0, a));
    assert_ok(start_orthogonal(n, 2, RNG_R1_NORMAL, 0, b));
    for (int64_t i = 0; i < n * n; i++) differ = fmax(differ, fabs(a[i] - b[i]));
    assert_true(differ > 0.1);
    /* Of a uniform orthogonal matrix the trace has mean 0 and variance 1. Without the signs of U
     * the mean would be far below. */
    for (uint64_t s = 0; s < 400; s++) {
        double t = 0;
        assert_ok(start_orthogonal(n, s, RNG_TEST, 0, a));
        for (int64_t i = 0; i < n; i++) t += a[i * n + i];
        trace += t / 400;
        trace2 += t * t / 400;
    }
    assert_true(fabs(trace) < 0.2 && fabs(trace2 - 1) < 0.35);
    free(a), free(b);
}

/* C = diag(1, 9, 4, 16): the vectors are unit vectors 4, 2, 3, 1, so R is rows of H / 2. */
static void diagonal_moment_by_hand(void **state) {
    (void)state;
    const double C[16] = {1, 0, 0, 0, 0, 9, 0, 0, 0, 0, 4, 0, 0, 0, 0, 16};
    const int64_t row_of[4] = {3, 1, 2, 0}; /* row i of R is row row_of[i] of H / 2 */
    const double H[16] = {1, 1, 1, 1, 1, -1, 1, -1, 1, 1, -1, -1, 1, -1, -1, 1};
    double R[16], values[4], want[4] = {16, 9, 4, 1};
    assert_ok(start_pca(4, C, R, values));
    for (int i = 0; i < 4; i++) {
        assert_true(fabs(values[i] - want[i]) < 1e-14);
        for (int j = 0; j < 4; j++)
            assert_true(fabs(R[i * 4 + j] - H[row_of[i] * 4 + j] / 2) < 1e-14);
    }
}

/* C = V D V^T with V known: V^T R must be H / sqrt(n), V signed by its largest entries. */
static void known_vectors_are_found(void **state) {
    (void)state;
    const int64_t orders[] = {12, 36, 64, 288};
    for (int o = 0; o < 4; o++) {
        const int64_t n = orders[o];
        double *V = room(n * n), *VD = room(n * n), *R = room(n * n), *values = room(n);
        int8_t *H = calloc((size_t)(n * n), 1);
        assert_ok(start_orthogonal(n, 3, RNG_TEST, 0, V));
        for (int64_t j = 0; j < n; j++) {
            int64_t at = 0;
            for (int64_t i = 0; i < n; i++)
                if (fabs(V[i * n + j]) > fabs(V[at * n + j])) at = i;
            double sign = V[at * n + j] < 0 ? -1 : 1;
            for (int64_t i = 0; i < n; i++) {
                V[i * n + j] *= sign;
                VD[i * n + j] = V[i * n + j] * (double)(n - j);
            }
        }
        double *C = product(n, VD, false, V, true);
        assert_ok(start_pca(n, C, R, values));
        assert_ok(hadamard_matrix(n, H));
        double *VR = product(n, V, true, R, false);
        assert_true(defect(n, R) < 1e-12);
        for (int64_t i = 0; i < n; i++) {
            assert_true(fabs(values[i] - (double)(n - i)) < 1e-10);
            for (int64_t j = 0; j < n; j++)
                assert_true(fabs(VR[i * n + j] - H[i * n + j] / sqrt((double)n)) < 1e-10);
        }
        free(V), free(VD), free(R), free(values), free(H), free(C), free(VR);
    }
}

static void bits_do_not_depend_on_threads(void **state) {
    (void)state;
    const int64_t n = 144;
    const int before = omp_get_max_threads();
    double *first[2] = {room(n * n), room(n * n)}, *again = room(n * n), *C = room(n * n);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j <= i; j++)
            C[i * n + j] = C[j * n + i] = rng_normal(9, RNG_TEST, (uint64_t)(i * n + j));
    for (int threads = 1; threads <= 4; threads++) {
        omp_set_num_threads(threads);
        assert_ok(start_orthogonal(n, 5, RNG_R1_NORMAL, 0, threads == 1 ? first[0] : again));
        if (threads > 1) assert_memory_equal(first[0], again, (size_t)(n * n) * sizeof *C);
        assert_ok(start_pca(n, C, threads == 1 ? first[1] : again, NULL));
        if (threads > 1) assert_memory_equal(first[1], again, (size_t)(n * n) * sizeof *C);
    }
    omp_set_num_threads(before);
    free(first[0]), free(first[1]), free(again), free(C);
}

/* Orders without a Hadamard matrix. cas(0) = 1, cas(2 pi / 3) = (sqrt(3) - 1) / 2, cas(4 pi / 3) =
 * -(sqrt(3) + 1) / 2. */
static void any_order_is_mixed(void **state) {
    (void)state;
    const double C[9] = {1, 0, 0, 0, 2, 0, 0, 0, 3}, s = sqrt(3);
    const double T[9] = {1, 1, 1, 1, (s - 1) / 2, -(s + 1) / 2, 1, -(s + 1) / 2, (s - 1) / 2};
    double R[9];
    assert_ok(start_pca(3, C, R, NULL)); /* largest first: rows of T from the last to the first */
    for (int i = 0; i < 3; i++)
        for (int j = 0; j < 3; j++)
            assert_true(fabs(R[i * 3 + j] - T[(2 - i) * 3 + j] / s) < 1e-15);
    const int64_t orders[] = {1, 5, 50, 86, 172, 300};
    for (int o = 0; o < 6; o++) {
        const int64_t n = orders[o];
        double *X = room(n * n), most = 0;
        flat_mix *m;
        for (int64_t i = 0; i < n; i++) X[i * n + i] = 1;
        assert_ok(flat_mix_create(n, &m));
        flat_mix_rows(m, X, n);
        assert_true(defect(n, X) < 1e-12);
        for (int64_t j = 0; j < n; j++) assert_true(fabs(X[j] - 1 / sqrt((double)n)) < 1e-15);
        for (int64_t i = 0; i < n * n; i++) most = fmax(most, fabs(X[i]));
        assert_true(most <= sqrt(2 / (double)n) * (1 + 1e-15));
        flat_mix_destroy(&m);
        free(X);
    }
}

static void what_cannot_be_is_refused(void **state) {
    (void)state;
    double R[9];
    double D[4] = {1, 0, 0, NAN}, S[4] = {1, 2, 2, 4};
    assert_int_equal(start_pca(2, D, R, NULL).code, ERR_NUMERICS);
    assert_int_equal(lapack_inverse(2, S, "a singular matrix").code, ERR_NUMERICS);
    double T[4] = {2, 1, 0, 4}, want[4] = {0.5, -0.125, 0, 0.25};
    assert_ok(lapack_inverse(2, T, "a regular matrix"));
    for (int i = 0; i < 4; i++) assert_true(fabs(T[i] - want[i]) < 1e-16);
    double Z[4] = {1, 0, 0, 0};
    assert_int_equal(lapack_qr(2, Z).code, ERR_NUMERICS);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_matrix_is_q_of_its_gaussian),
        cmocka_unit_test(random_matrices_differ_by_seed_and_are_uniform),
        cmocka_unit_test(diagonal_moment_by_hand),
        cmocka_unit_test(known_vectors_are_found),
        cmocka_unit_test(bits_do_not_depend_on_threads),
        cmocka_unit_test(any_order_is_mixed),
        cmocka_unit_test(what_cannot_be_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
