/* Times by hand: what a test does not count takes no time, and the rest one second for each
 * operation. */
#include "pipeline/plan/plan_time.h"

#include "pipeline/plan/product_peak.h"
#include "quant/gptq.h"
#include "quant/scale_search.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static const llama_config cfg = {
    .hidden = 512, .intermediate = 1024, .heads = 8, .kv_heads = 4, .head_dim = 64};
/* Widths of the inputs of q k v, of o, of gate up and of down, and the rows that take them. */
static const double widths[] = {512, 512, 512, 1024}, rows[] = {1024, 512, 2048, 512};

static double seconds(bool asymmetric, bool corrects, int tries) {
    const plan_rates rates = {
        .bf16 = INFINITY, .f32 = INFINITY, .f64 = 1, .search = INFINITY, .vector = INFINITY};
    const plan_rank rank = {.rates = &rates, .cores = 1};
    const plan_gptq g = {.tokens = 2048,
                         .window = 256,
                         .ranks = 2,
                         .cells = 1,
                         .grid_from = 4096,
                         .asymmetric = asymmetric,
                         .corrects = corrects,
                         .tries = tries,
                         .search = true};
    return plan_time_gptq_layer(&rank, &cfg, &g);
}

/* Rows pass a factor of n columns in 3 n^2 operations, with the term in 4 n^2, for each strength;
 * the ranks share them. W C costs 2 n operations for each entry of a row's columns that the rank
 * has, of which there are half. A second stream alone makes no such products. */
static void test_strengths(void **state) {
    (void)state;
    double pass = 0, cross = 0;
    for (int i = 0; i < 4; i++) {
        const double mine = ceil(ceil(widths[i] / GPTQ_CROSS_COLS) / 2) * GPTQ_CROSS_COLS;
        pass += widths[i] * widths[i] * rows[i] / 2;
        cross += 2 * rows[i] * widths[i] * fmin(widths[i], mine);
    }
    const double none = seconds(false, false, 1), one = seconds(true, true, 1);
    assert_true(seconds(true, false, 1) == none);
    assert_true(fabs(one - none - pass - cross) < 1e-12 * one);
    assert_true(fabs(seconds(true, true, 3) - one - 8 * pass) < 1e-12 * one);
}

/* A search tries each of its candidates once, as the rate counts them; no search, none. */
static void test_search(void **state) {
    (void)state;
    const plan_rates rates = {.search = 1, .vector = INFINITY};
    const plan_rank rank = {.rates = &rates, .cores = 2};
    assert_true(plan_time_round(&rank, 1000, true) == 1000 * SCALE_SEARCH_CANDIDATES / 2.0);
    assert_true(plan_time_round(&rank, 1000, false) == 0);
}

/* A judgement of range makes the products of a step and no step; the scales of norms, and
 * quantizers of sites, turn rows and their gradients by R1. */
static void test_looks(void **state) {
    (void)state;
    const plan_rates rates = {.bf16 = 1, .f32 = 1, .f64 = INFINITY, .vector = INFINITY};
    const plan_rank rank = {.rates = &rates, .cores = 1};
    assert_true(plan_time_range_look(&rank, &cfg, 2, 100, 1) ==
                plan_time_range(&rank, &cfg, 2, 100, 1));
    assert_true(plan_time_range_look(&rank, &cfg, 2, 100, 0) == 2.0 * 100 * 512 * 512);
    assert_true(plan_time_norms(&rank, 512, 4, 100, true, 61) == 4 * 100 * (2 * 2.0 * 512 * 512));
    assert_true(plan_time_norms(&rank, 512, 4, 100, false, 61) == 0);
    assert_true(plan_time_turned(&rank, 512, 4, 100) == 4 * 100 * (2 * 2.0 * 512 * 512));
    const plan_rates seen = {.f32 = INFINITY, .vector = 1};
    const plan_rank looks = {.rates = &seen, .cores = 1};
    const double one = plan_time_norms(&looks, 512, 4, 100, true, 1);
    assert_true(fabs(plan_time_norms(&looks, 512, 4, 100, true, 61) / one - 61) < 1e-12);
    /* Passes over a number as measured: 0.25 for a look of norms, 0.42 for a quantizer's trial. */
    assert_true(fabs(one / (4 * 100 * 512) - 0.25) < 1e-12);
    assert_true(fabs(plan_time_trials(&looks, 2, 4 * 100 * 512) / one - 2 * 0.3 / 0.25) < 1e-12);
    assert_true(plan_time_fixed() == 0.005);
    assert_true(plan_time_peak(&rank) == product_peak_flop());
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_strengths),
                                       cmocka_unit_test(test_search), cmocka_unit_test(test_looks)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
