/* Who does what: cuts against all possible cuts, deals against the bound of the greedy rule. */
#include "pipeline/stages/partition.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static double share(const stage_costs *c, int64_t layers, int stage, int stages, int64_t n) {
    double work = (double)layers * c->layer_work + c->first_work + c->last_work;
    double memory = (double)layers * c->layer_memory + c->first_memory + c->last_memory;
    double w = (double)n * c->layer_work, m = (double)n * c->layer_memory;
    if (stage == 0) {
        w += c->first_work;
        m += c->first_memory;
    }
    if (stage == stages - 1) {
        w += c->last_work;
        m += c->last_memory;
    }
    return 0.5 * (w / work + m / memory);
}

/* The best largest share over all cuts into `stages` non-empty stages, by trying them all. */
static double best_cut(const stage_costs *c, int64_t layers, int stage, int stages, int64_t left) {
    if (stage == stages - 1) return share(c, layers, stage, stages, left);
    double best = INFINITY;
    for (int64_t n = 1; n <= left - (stages - 1 - stage); n++) {
        double here = share(c, layers, stage, stages, n),
               rest = best_cut(c, layers, stage + 1, stages, left - n);
        best = fmin(best, fmax(here, rest));
    }
    return best;
}

static void stages_are_the_best_cut(void **state) {
    (void)state;
    static const stage_costs costs[] = {
        {1, 1, 0, 0, 0, 0},
        {1, 1, 0, 8, 8, 8},
        {3, 2, 0.5, 11, 7, 1},
        {1, 1, 0, 0.3, 20, 20},
    };
    for (size_t k = 0; k < sizeof costs / sizeof costs[0]; k++) {
        for (int64_t layers = 1; layers <= 12; layers++) {
            for (int ranks = 1; ranks <= 5; ranks++) {
                stage_range r[5];
                int stages;
                partition_stages(layers, &costs[k], ranks, r, &stages);
                assert_int_equal(stages, ranks < layers ? ranks : layers);
                int64_t at = 0;
                double most = 0;
                for (int s = 0; s < stages; s++) {
                    assert_int_equal(r[s].first, at);
                    assert_true(r[s].n >= 1);
                    at += r[s].n;
                    most = fmax(most, share(&costs[k], layers, s, stages, r[s].n));
                }
                assert_int_equal(at, layers);
                for (int s = stages; s < ranks; s++) assert_int_equal(r[s].n, 0);
                double best = best_cut(&costs[k], layers, 0, stages, layers);
                assert_true(most <= best * (1 + 1e-9));
            }
        }
    }
}

static void items_go_to_the_least_loaded(void **state) {
    (void)state;
    double cost[32];
    int owner[32];
    for (int i = 0; i < 30; i++) cost[i + 1] = 3.5;
    cost[0] = 28;
    cost[31] = 28;
    for (int ranks = 1; ranks <= 40; ranks += 3) {
        assert_int_equal(partition_items(cost, 32, ranks, owner).code, 0);
        double load[40] = {0}, total = 0, most = 0;
        for (int i = 0; i < 32; i++) {
            assert_in_range(owner[i], 0, ranks - 1);
            load[owner[i]] += cost[i];
            total += cost[i];
        }
        for (int r = 0; r < ranks; r++) most = fmax(most, load[r]);
        /* Graham 1969: longest first is within 4/3 - 1/(3m) of the best, which is at least these.
         */
        double lower = fmax(total / ranks, 28);
        assert_true(most <= (4.0 / 3 - 1.0 / (3 * ranks)) * lower + 3.5);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stages_are_the_best_cut),
        cmocka_unit_test(items_go_to_the_least_loaded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
