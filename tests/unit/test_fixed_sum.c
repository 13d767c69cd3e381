/* Exact sums: known answers, any order, the bound and what is above it, NaN and infinity. */
#include "base/gemm.h"
#include "base/mem.h"
#include "base/rng.h"
#include "pipeline/fixed_sum.h"
#include "tests/unit/assert_ok.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N = 20000, UNITS = 6 }; /* more than a block of the work of threads */

/* Halves of an integer go to the even neighbour; the unit is zero afterwards. */
static void test_known(void **state) {
    (void)state;
    float x[] = {1, -1, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 0.75f, 0, 1048576};
    double y[] = {1, -1, 0.5, 1.5, 2.5, -0.5, -1.5, 0.75, 0, 1048576};
    const int64_t want[] = {1, -1, 0, 2, 2, 0, -2, 1, 0, 1048576};
    fixed_sum s;
    assert_ok(fixed_sum_init(&s, 12, "test"));
    for (int wide = 0; wide < 2; wide++) {
        fixed_sum_begin(&s, 0, 4);
        fixed_sum_add(&s, 2, 10, wide ? COMPUTE_F64 : COMPUTE_F32, wide ? (void *)y : (void *)x);
        assert_int_equal(s.v[0], 0);
        assert_int_equal(s.v[1], 0);
        for (int i = 0; i < 10; i++) {
            assert_int_equal(s.v[2 + i], want[i]);
            assert_true((wide ? y[i] : (double)x[i]) == 0);
        }
        assert_true(s.max == 1048576 && !s.spoilt && !s.not_finite);
    }
    fixed_sum_begin(&s, -3, 4);
    x[0] = 0.375f;
    fixed_sum_add(&s, 0, 1, COMPUTE_BF16, x);
    assert_int_equal(s.v[0], 3);
    fixed_sum_clear(&s);
}

/* A tile of two rows in sums of stride 4: put over what was there, then added, then refused. */
static void test_tile(void **state) {
    (void)state;
    const float x[] = {1, 0.5f, -2.5f, 3, 1.5f, -7}, high[] = {1, 2, 3, 4, 5, 0x1p60f};
    const float none[] = {1, 2, NAN, 4, 5, 6};
    const int64_t put[] = {9, 1, 0, -2, 9, 3, 2, -7}, added[] = {9, 2, 0, -4, 9, 6, 4, -14};
    fixed_sum s;
    assert_ok(fixed_sum_init(&s, 8, "test"));
    fixed_sum_begin(&s, 0, 4);
    for (int i = 0; i < 8; i++) s.v[i] = 9;
    assert_true(fixed_sum_add_tile(&s, 1, 4, 2, 3, true, x, 3));
    assert_memory_equal(s.v, put, sizeof put);
    assert_true(fixed_sum_add_tile(&s, 1, 4, 2, 3, false, x, 3));
    assert_memory_equal(s.v, added, sizeof added);
    assert_false(fixed_sum_add_tile(&s, 1, 4, 2, 3, false, high, 3));
    assert_false(fixed_sum_add_tile(&s, 1, 4, 2, 3, false, none, 3));
    assert_true(s.v[0] == 9 && s.v[4] == 9);
    fixed_sum_clear(&s);
}

static double entry(int unit, int64_t i) {
    return ldexp(rng_normal(1, RNG_TEST, (uint64_t)(unit * N + i)), (int)(i % 40) - 30);
}

static void sum_in_order(fixed_sum *s, const int *order, compute_type compute) {
    double *x = malloc(N * sizeof *x);
    assert_non_null(x);
    for (int k = 0; k < UNITS; k++) {
        for (int64_t i = 0; i < N; i++) {
            if (compute == COMPUTE_F64)
                x[i] = entry(order[k], i);
            else
                ((float *)x)[i] = (float)entry(order[k], i);
        }
        fixed_sum_add(s, 0, N, compute, x);
    }
    free(x);
}

/* Against sums in long double of what was rounded to float, for two orders and thread counts. */
static void test_order(void **state) {
    (void)state;
    const int orders[2][UNITS] = {{0, 1, 2, 3, 4, 5}, {4, 2, 5, 0, 3, 1}};
    const compute_type types[] = {COMPUTE_F32, COMPUTE_F64};
    fixed_sum s[2];
    for (int t = 0; t < 2; t++) {
        const int exponent = fixed_sum_exponent(ldexp(5, 10), UNITS);
        for (int k = 0; k < 2; k++) {
            assert_ok(fixed_sum_init(&s[k], N, "test"));
            setenv("OMP_NUM_THREADS", k ? "3" : "1", 1);
            gemm_init(1);
            fixed_sum_begin(&s[k], exponent, UNITS);
            sum_in_order(&s[k], orders[k], types[t]);
            assert_false(s[k].spoilt);
        }
        assert_memory_equal(s[0].v, s[1].v, N * sizeof *s[0].v);
        assert_true(s[0].max == s[1].max);
        for (int64_t i = 0; i < N; i++) {
            long double want = 0;
            for (int u = 0; u < UNITS; u++)
                want += types[t] == COMPUTE_F64 ? (long double)entry(u, i)
                                                : (long double)(float)entry(u, i);
            const long double got = ldexpl((long double)s[0].v[i], exponent);
            assert_true(fabsl(got - want) <= UNITS * ldexpl(0.5L, exponent));
        }
        fixed_sum_clear(&s[0]);
        fixed_sum_clear(&s[1]);
    }
}

/* As many units of the largest size as were announced do not overflow; one entry above is seen. */
static void test_bound(void **state) {
    (void)state;
    const int64_t units = 8192; /* 62 - 13 bits each */
    fixed_sum s;
    assert_ok(fixed_sum_init(&s, 1, "test"));
    fixed_sum_begin(&s, 0, units);
    const double most = ldexp(1, 49);
    for (int64_t i = 0; i < units; i++) {
        double x = -most;
        fixed_sum_add(&s, 0, 1, COMPUTE_F64, &x);
    }
    assert_int_equal(s.v[0], INT64_MIN / 2);
    assert_false(s.spoilt);
    double above = most * (1 + 0x1p-40);
    fixed_sum_add(&s, 0, 1, COMPUTE_F64, &above);
    assert_true(s.spoilt && !s.not_finite && s.max == most * (1 + 0x1p-40));
    assert_int_equal(s.v[0], INT64_MIN / 2);
    /* the exponent that follows takes it, and 2^HEADROOM of it */
    fixed_sum_begin(&s, fixed_sum_exponent(s.max, units), units);
    above = ldexp(most * (1 + 0x1p-40), FIXED_SUM_HEADROOM);
    fixed_sum_add(&s, 0, 1, COMPUTE_F64, &above);
    assert_false(s.spoilt);
    fixed_sum_clear(&s);
}

static void test_unknown_exponent(void **state) {
    (void)state;
    fixed_sum s;
    float x[3] = {0, -7, 3}, zero[3] = {0};
    assert_ok(fixed_sum_init(&s, 3, "test"));
    fixed_sum_begin(&s, FIXED_SUM_UNKNOWN, 5);
    fixed_sum_add(&s, 0, 3, COMPUTE_F32, zero);
    assert_false(s.spoilt);
    fixed_sum_add(&s, 0, 3, COMPUTE_F32, x);
    assert_true(s.spoilt && s.max == 7);
    for (int i = 0; i < 3; i++) assert_int_equal(s.v[i], 0);
    fixed_sum_clear(&s);
}

static void test_not_finite(void **state) {
    (void)state;
    const double bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    fixed_sum s;
    assert_ok(fixed_sum_init(&s, N, "test"));
    for (int i = 0; i < 8; i++) {
        float *x = calloc(N, sizeof(double));
        assert_non_null(x);
        if (i < 4)
            x[N - 3] = (float)bad[i];
        else
            ((double *)x)[N - 3] = bad[i - 4];
        fixed_sum_begin(&s, -20, 4);
        fixed_sum_add(&s, 0, N, i < 4 ? COMPUTE_BF16 : COMPUTE_F64, x);
        assert_true(s.not_finite && s.spoilt);
        assert_true(isfinite(s.max));
        free(x);
    }
    fixed_sum_clear(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_known),
                                       cmocka_unit_test(test_tile),
                                       cmocka_unit_test(test_order),
                                       cmocka_unit_test(test_bound),
                                       cmocka_unit_test(test_unknown_exponent),
                                       cmocka_unit_test(test_not_finite)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
