/* The distance of two predictions against sums over the vocabulary in long double, at the ends of
 * what logits can be; and means, points and errors over windows against values found by hand. */
#include "base/rng.h"
#include "jobs/eval_distance.h"
#include "tests/unit/assert_ok.h"

#include <float.h>
#include <math.h>

enum { VOCAB = 1000 };

static long double log_sum_exp(const double *z) {
    long double most = z[0], sum = 0;
    for (int j = 1; j < VOCAB; j++) most = fmaxl(most, z[j]);
    for (int j = 0; j < VOCAB; j++) sum += expl(z[j] - most);
    return most + logl(sum);
}

/* The terms are of the size of the greatest difference of logits, and their errors add up. */
static void like_long_double(const double *p, const double *q) {
    const long double lp = log_sum_exp(p), lq = log_sum_exp(q);
    const int32_t next = 17;
    long double kl = 0, largest = 1;
    divergence d;
    divergence_rows(p, q, 1, VOCAB, &next, &d);
    for (int j = 0; j < VOCAB; j++) {
        const long double a = p[j] - lp, b = q[j] - lq;
        kl += expl(a) * (a - b);
        largest = fmaxl(largest, fmaxl(-a, -b));
    }
    const double bound = 8 * VOCAB * DBL_EPSILON * (double)largest;
    assert_true(fabs(d.kl - (double)kl) <= bound);
    assert_true(fabs(d.nll_p - (double)(lp - p[next])) <= bound);
    assert_true(fabs(d.nll_q - (double)(lq - q[next])) <= bound);
}

static void test_rows(void **state) {
    (void)state;
    static double p[VOCAB], q[VOCAB];
    const double scales[] = {1e-3, 1, 30, 700};
    for (int s = 0; s < 4; s++) {
        for (int j = 0; j < VOCAB; j++) {
            p[j] = scales[s] * rng_normal(7, RNG_TEST, (uint64_t)j);
            q[j] = scales[s] * rng_normal(7, RNG_TEST, (uint64_t)(VOCAB + j));
        }
        like_long_double(p, q);
        like_long_double(q, p);
    }
}

static void test_known(void **state) {
    (void)state;
    /* p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4), and the first with itself shifted. */
    const double p[] = {log(2), 0, 0, 5, 4, 4}, q[] = {3, 3 + log(2), 3, -1, -2, -2};
    const int32_t next[] = {0, 2};
    divergence d[2];
    divergence_rows(p, q, 2, 3, next, d);
    assert_true(fabs(d[0].kl - 0.25 * log(2)) < 1e-15);
    assert_true(fabs(d[0].nll_p - log(2)) < 1e-15 && fabs(d[0].nll_q - log(4)) < 1e-15);
    assert_true(d[0].same_top == 0 && d[1].same_top == 1);
    assert_true(d[1].kl == 0); /* the same numbers below the greatest logit */
}

static void test_over_windows(void **state) {
    (void)state;
    /* Two windows of two tokens: means of KL 2 and 6, so 4 +- sqrt(8 / 2) = 2. Sorted 1 3 4 8: the
     * 99 % point is 0.97 of the way from 4 to 8. */
    const divergence t[] = {{1, 1, 2, 1}, {3, 3, 4, 0}, {4, 2, 2, 1}, {8, 2, 6, 1}};
    const eval_distance d = eval_distance_of(t, 2, 2);
    assert_true(fabs(d.kl.mean - 4) < 1e-15 && fabs(d.kl.error - 2) < 1e-15);
    assert_true(fabs(d.kl_99.mean - 7.88) < 1e-14 && d.kl_most == 8);
    assert_true(fabs(d.same_top.mean - 0.75) < 1e-15 && fabs(d.same_top.error - 0.25) < 1e-15);
    assert_true(fabs(d.nll_p.mean - 2) < 1e-15 && d.nll_p.error == 0);
    assert_true(fabs(d.nll_more.mean - 1.5) < 1e-15 && fabs(d.nll_more.error - 0.5) < 1e-15);
    assert_true(isnan(eval_distance_of(t, 1, 4).kl.error)); /* one window has none */
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rows), cmocka_unit_test(test_known),
                                       cmocka_unit_test(test_over_windows)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
