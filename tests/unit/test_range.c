/* The layer-local objective on sampled rows: against a plain double version, finite differences,
 * exactness of the sums, and what a descent with it does. */
#include "base/gemm.h"
#include "base/rng.h"
#include "pipeline/learn/range_step.h"
#include "pipeline/learn/row_pool.h"
#include "rotations/cayley.h"
#include "rotations/optimizer.h"
#include "rotations/start.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N = 48, ROWS = 700, DRAWS = 300, GROUPS = 3 };

static bf16 rows_x[ROWS * N];
static float rows_w[ROWS];
static const row_set set = {.n = ROWS, .width = N, .x = rows_x, .w = rows_w};
static double w_max;

/* Rows with an outlier channel and an offset, normalised as after RMSNorm. */
static int make_rows(void **state) {
    (void)state;
    for (int64_t r = 0; r < ROWS; r++) {
        double v[N], sum = 0;
        for (int64_t j = 0; j < N; j++) {
            v[j] = rng_normal(1, RNG_TEST, (uint64_t)(r * N + j)) + (j == 5 ? 9 : 0) + 0.3;
            sum += v[j] * v[j];
        }
        for (int64_t j = 0; j < N; j++)
            rows_x[r * N + j] = half_to_bf16((float)(v[j] * 0.99 / sqrt(sum / N)));
        row_fix(rows_x + r * N, N);
        rows_w[r] = (float)(0.2 + 2 * rng_uniform(2, RNG_TEST, (uint64_t)r));
        w_max = fmax(w_max, (double)rows_w[r]);
    }
    return 0;
}

static bool in_order; /* rows as they lie, from 650 and round: a block of them runs over the end */

static range_draw draw_of(range_rule rule) {
    return (range_draw){.rule = rule,
                        .weight = 1,
                        .seed = 7,
                        .purpose = RNG_RANGE_ROWS,
                        .first_index = in_order ? 7 * ROWS - 50 : 1000,
                        .period = 1,
                        .span = 1,
                        .order = in_order ? RANGE_IN_ORDER : RANGE_AT_RANDOM};
}

static int64_t drawn_row(int64_t i) {
    const int64_t left =
        ROWS - ROWS / HELD_OUT_OF; /* the last rows are held out; at random, one in 8 */
    if (in_order) return (i + 7 * ROWS - 50) % left;
    const int64_t k = (int64_t)((rng_u64(7, RNG_RANGE_ROWS, 1000 + (uint64_t)i) >> 32) % left);
    return k < ROWS / HELD_OUT_OF * (HELD_OUT_OF - 1) ? k + k / (HELD_OUT_OF - 1)
                                                      : k + ROWS / HELD_OUT_OF;
}

/* The range of u[0 .. n) and 2 w times its derivative by u times the range. */
static double slow_range(const double *u, int64_t n, double w, range_rule rule, double *du) {
    int64_t hi = 0, lo = 0;
    double range;
    for (int64_t j = 0; j < n; j++) {
        if (u[j] > u[hi]) hi = j;
        if (u[j] < u[lo]) lo = j;
    }
    if (rule.symmetric) {
        int64_t at = u[hi] >= -u[lo] ? hi : lo;
        range = 2 * fabs(u[at]);
        du[at] = 2 * w * range * (u[at] > 0 ? 2 : -2);
    } else {
        double top = rule.include_zero ? fmax(u[hi], 0) : u[hi],
               low = rule.include_zero ? fmin(u[lo], 0) : u[lo];
        range = top - low;
        if (!rule.include_zero || u[hi] > 0) du[hi] += 2 * w * range;
        if (!rule.include_zero || u[lo] < 0) du[lo] -= 2 * w * range;
    }
    return range;
}

/* Loss and gradient the plain way, R as given. */
static double slow(const double *R, range_rule rule, double *G) {
    double loss = 0;
    int64_t group = rule.group ? rule.group : N;
    if (G) memset(G, 0, N * N * sizeof *G);
    for (int64_t k = 0; k < DRAWS; k++) {
        int64_t row = drawn_row(k);
        double x[N], u[N] = {0}, du[N] = {0}, w = rows_w[row];
        for (int64_t i = 0; i < N; i++) {
            x[i] = half_from_bf16(rows_x[row * N + i]);
            for (int64_t j = 0; j < N; j++) u[j] += x[i] * R[i * N + j];
        }
        for (int64_t j = 0; j < N; j += group) {
            double range = slow_range(u + j, group, w, rule, du + j);
            loss += w * range * range;
        }
        for (int64_t i = 0; G && i < N; i++)
            for (int64_t j = 0; j < N; j++) G[i * N + j] += x[i] * du[j];
    }
    return loss;
}

static double fast(const double *R, range_rule rule, int64_t *grad, double *G) {
    range_work *w;
    assert_int_equal(range_work_create(N, DRAWS, GROUPS, &w).code, 0);
    range_begin(w, R);
    range_add(w, &set, draw_of(rule), DRAWS);
    range_batch b = {.grad = grad};
    range_finish(w, w_max, &b);
    for (int64_t i = 0; G && i < N; i++)
        for (int64_t j = 0; j < N; j++) G[i * N + j] = (double)grad[j * N + i] * b.unit;
    range_work_destroy(&w);
    return (double)b.loss * RANGE_LOSS_UNIT;
}

/* R whose entries are bf16 numbers, so that both ways see the same products. */
static void rounded_start(double *R) {
    assert_int_equal(start_orthogonal(N, 3, RNG_TEST, 0, R).code, 0);
    for (int64_t i = 0; i < N * N; i++) R[i] = half_from_bf16(half_to_bf16((float)R[i]));
}

static const range_rule rules[] = {
    {false, true, 0}, {false, false, 0}, {true, false, 0}, {true, false, 16}, {false, true, 24}};
enum { RULES = sizeof rules / sizeof rules[0] };

/* Which of `tokens` tokens of `period` rows an order draws: seen by a weight that only one has. */
static void mark_drawn(int64_t tokens, int64_t period, range_order order, bool *drawn) {
    static double R[N * N];
    static float w[ROWS];
    row_set s = {.n = tokens * period, .width = N, .x = rows_x, .w = w};
    range_draw d = {.rule = {false, false, 0},
                    .weight = 1,
                    .seed = 3,
                    .purpose = RNG_RANGE_ROWS,
                    .period = period,
                    .span = period,
                    .order = order};
    range_work *work;
    memset(R, 0, sizeof R);
    for (int64_t i = 0; i < N; i++) R[i * N + i] = 1;
    assert_int_equal(range_work_create(N, 2000, 1, &work).code, 0);
    for (int64_t row = 0; row < s.n; row++) {
        memset(w, 0, sizeof w);
        w[row] = 1;
        range_begin(work, R);
        range_add(work, &s, d, 2000);
        drawn[row] = range_loss(work) > 0;
    }
    range_work_destroy(&work);
}

/* What is learned from and what it is judged by never meet, and together are all there is: sets of
 * full and broken groups of eight, of fewer than eight, of two; a single token is both. */
static void held_rows_are_not_learned_from(void **state) {
    (void)state;
    static bool learned[ROWS], held[ROWS];
    const struct {
        int64_t tokens, period;
    } sets[] = {{64, 1}, {61, 3}, {8, 2}, {7, 2}, {2, 1}, {1, 4}};
    for (size_t k = 0; k < sizeof sets / sizeof sets[0]; k++)
        for (int ordered = 0; ordered < 2; ordered++) {
            const int64_t tokens = sets[k].tokens, period = ordered ? 1 : sets[k].period,
                          rows = tokens * period;
            int64_t out = 0;
            mark_drawn(tokens, period, ordered ? RANGE_IN_ORDER : RANGE_AT_RANDOM, learned);
            mark_drawn(tokens, period, ordered ? RANGE_HELD_IN_ORDER : RANGE_HELD_AT_RANDOM, held);
            for (int64_t i = 0; i < rows; i++) {
                assert_true(learned[i] || held[i]);
                if (tokens > 1) assert_false(learned[i] && held[i]);
                out += held[i];
            }
            assert_int_equal(out, range_held(tokens) * period);
        }
}

/* The push of a row is the norm of its own gradient. */
static void pushes_are_norms_of_gradients(void **state) {
    (void)state;
    static double R[N * N];
    static int64_t grad[N * N];
    int64_t largest = 0;
    rounded_start(R);
    range_work *w;
    assert_int_equal(range_work_create(N, 8, 1, &w).code, 0);
    for (int64_t row = 0; row < 8; row++) {
        range_batch b = {.grad = grad};
        float x[N];
        double sum = 0;
        for (int64_t j = 0; j < N; j++) x[j] = half_from_bf16(rows_x[row * N + j]);
        range_begin(w, R);
        range_add_row(w, x, rows_w[row], rules[row % 2]);
        range_finish(w, w_max, &b);
        for (int64_t k = 0; k < N * N; k++) sum += pow((double)grad[k] * b.unit, 2);
        const double push = (double)range_push(w, 0, 8, &largest) * RANGE_LOSS_UNIT;
        /* coefficients are rounded to 2^-20 of the largest that can occur */
        assert_true(fabs(push - sqrt(sum)) <= 0x1p-19 * 16 * w_max * N);
    }
    assert_true(largest > 0);
    range_work_destroy(&w);
}

static void the_batch_equals_the_plain_sum(void **state) {
    (void)state;
    static double R[N * N], want[N * N], got[N * N];
    static int64_t grad[N * N];
    rounded_start(R);
    for (int i = 0; i < 2 * RULES; i++) {
        const int k = i / 2;
        in_order = i % 2;
        double a = slow(R, rules[k], want), b = fast(R, rules[k], grad, got), d = 0, s = 0;
        /* fp32 sums of products, and coefficients of 20 bits */
        assert_true(fabs(a - b) <= 1e-5 * a);
        for (int j = 0; j < N * N; j++) {
            d += (want[j] - got[j]) * (want[j] - got[j]);
            s += want[j] * want[j];
        }
        assert_true(sqrt(d) <= 1e-3 * sqrt(s));
    }
    in_order = false;
}

static void the_gradient_is_that_of_the_loss(void **state) {
    (void)state;
    static double R[N * N], G[N * N], A[N * N], plus[N * N], minus[N * N];
    assert_int_equal(start_orthogonal(N, 4, RNG_TEST, 0, R).code, 0);
    for (int k = 0; k < RULES; k++) {
        slow(R, rules[k], G);
        for (int dir = 0; dir < 20; dir++) {
            const double h = 1e-7;
            double exact = 0;
            for (int i = 0; i < N * N; i++) {
                A[i] = rng_normal((uint64_t)dir, RNG_TEST, (uint64_t)i);
                exact += G[i] * A[i];
                plus[i] = R[i] + h * A[i];
                minus[i] = R[i] - h * A[i];
            }
            double numeric = (slow(plus, rules[k], NULL) - slow(minus, rules[k], NULL)) / (2 * h);
            double size = cayley_sum_squares(N, G);
            assert_true(fabs(numeric - exact) <= 1e-5 * sqrt(size * N * N));
        }
    }
}

/* Two halves on two "ranks", and any number of threads: the same integers. */
static void sums_are_exact(void **state) {
    (void)state;
    static double R[N * N];
    static int64_t whole[N * N], part[N * N], sum[N * N], one[N * N];
    rounded_start(R);
    fast(R, rules[0], whole, NULL);
    for (int half = 0; half < 2; half++) {
        range_work *w;
        assert_int_equal(range_work_create(N, DRAWS, GROUPS, &w).code, 0);
        range_begin(w, R);
        range_draw d = draw_of(rules[0]);
        d.first_index += half ? DRAWS / 3 : 0;
        range_add(w, &set, d, half ? DRAWS - DRAWS / 3 : DRAWS / 3);
        range_batch b = {.grad = part};
        range_finish(w, w_max, &b);
        for (int i = 0; i < N * N; i++) sum[i] += part[i];
        range_work_destroy(&w);
    }
    assert_memory_equal(whole, sum, sizeof sum);
    fast(R, rules[0], one, NULL);
    assert_memory_equal(whole, one, sizeof one);
}

/* The offset of one channel is spread: the loss falls by more than a third of where it began. */
static void a_descent_lowers_the_range(void **state) {
    (void)state;
    static double R[N * N], G[N * N], W[N * N];
    static int64_t grad[N * N];
    optimizer *o;
    memset(R, 0, sizeof R);
    for (int i = 0; i < N; i++) R[i * N + i] = 1;
    double first = slow(R, rules[0], NULL);
    assert_int_equal(optimizer_create(OPTIMIZER_ADAM, N, 1, &o).code, 0);
    for (int t = 0; t < 200; t++) {
        fast(R, rules[0], grad, G);
        assert_int_equal(cayley_skew(N, G, R, W).code, 0);
        assert_int_equal(optimizer_step(o, 0.01, NULL, W, R, NULL).code, 0);
    }
    double off;
    assert_int_equal(cayley_orthogonality(N, R, &off).code, 0);
    assert_true(off <= 1e-12);
    assert_true(slow(R, rules[0], NULL) < 0.6 * first);
    optimizer_destroy(&o);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_batch_equals_the_plain_sum),
        cmocka_unit_test(held_rows_are_not_learned_from),
        cmocka_unit_test(pushes_are_norms_of_gradients),
        cmocka_unit_test(the_gradient_is_that_of_the_loss),
        cmocka_unit_test(sums_are_exact),
        cmocka_unit_test(a_descent_lowers_the_range),
    };
    gemm_init(1);
    return cmocka_run_group_tests(tests, make_rows, NULL);
}
