/* Schedules as data: rules, saved activations, idle share; held against a simulation written the
 * other way round (it asks for the end of an operation and reads the printed lists), and the closed
 * form. */
#include "base/size.h"
#include "pipeline/stages/schedule.h"
#include "tests/unit/assert_ok.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the other simulation ---- */

typedef struct item {
    char kind;
    long window, slice;
    double end; /* -1: not asked for; -2: being asked for */
} item;

enum { MOST_STAGES = 40, MOST_ITEMS = 1 << 11 };
typedef struct other {
    int stages;
    long n[MOST_STAGES];
    item *items[MOST_STAGES];
    const schedule_costs *costs;
    bool knot; /* an operation waits for itself */
} other;

static void other_read(const schedule *s, const schedule_costs *costs, other *o) {
    char *text = schedule_text(s), *line, *save_line, *word, *save_word;
    *o = (other){.costs = costs};
    for (line = strtok_r(text, "\n", &save_line); line; line = strtok_r(NULL, "\n", &save_line)) {
        item *items = calloc(MOST_ITEMS, sizeof *items);
        assert_non_null(items);
        long n = 0;
        strtok_r(line, ":", &save_word);
        while ((word = strtok_r(NULL, " ", &save_word))) {
            assert_true(n < MOST_ITEMS);
            items[n].end = -1;
            assert_int_equal(
                sscanf(word, "%c%ld.%ld", &items[n].kind, &items[n].window, &items[n].slice), 3);
            n++;
        }
        o->n[o->stages] = n;
        o->items[o->stages++] = items;
    }
    free(text);
}

static void other_free(other *o) {
    for (int i = 0; i < o->stages; i++) free(o->items[i]);
}

static double end_of(other *o, int stage, long at);

static double end_of_named(other *o, int stage, char kind, long window, long slice) {
    for (long i = 0; i < o->n[stage]; i++) {
        const item *p = &o->items[stage][i];
        if (p->kind == kind && p->window == window && p->slice == slice) return end_of(o, stage, i);
    }
    fail_msg("%c%ld.%ld is missing on stage %d", kind, window, slice, stage);
    return 0;
}

static double price(const other *o, int stage, char kind) {
    const double layers = o->costs->layers ? (double)o->costs->layers[stage] : 1;
    if (kind == 'B') return layers * o->costs->backward;
    return layers * o->costs->forward +
           (kind == 'F' && stage == o->stages - 1 ? o->costs->head : 0);
}

/* The end of an operation: what it needs, all of it, then its own time. */
static double end_of(other *o, int stage, long at) {
    item *p = &o->items[stage][at];
    if (p->end >= 0) return p->end;
    if (p->end < -1) o->knot = true;
    if (o->knot) return 0;
    p->end = -2;
    double start = at > 0 ? end_of(o, stage, at - 1) : 0;
    if (p->kind == 'F' && stage > 0)
        start = fmax(start, o->costs->send + end_of_named(o, stage - 1, 'F', p->window, p->slice));
    if (p->kind == 'B' && stage < o->stages - 1)
        start = fmax(start, o->costs->send + end_of_named(o, stage + 1, 'B', p->window, p->slice));
    return p->end = start + price(o, stage, p->kind);
}

static double other_finish(const schedule *s, const schedule_costs *costs, double *idle) {
    other o;
    double finish = 0, busy = 0;
    other_read(s, costs, &o);
    for (int i = 0; i < o.stages; i++)
        for (long j = 0; j < o.n[i]; j++) {
            finish = fmax(finish, end_of(&o, i, j));
            busy += price(&o, i, o.items[i][j].kind);
        }
    assert_false(o.knot);
    *idle = 1 - busy / (finish * o.stages);
    other_free(&o);
    return finish;
}

/* ---- tests ---- */

static schedule *make(int stages, int64_t windows, int64_t slices, int64_t in_flight,
                      bool recompute, const schedule_costs *costs) {
    const schedule_shape shape = {.stages = stages,
                                  .windows = windows,
                                  .slices = slices,
                                  .max_in_flight = in_flight,
                                  .recompute = recompute};
    schedule *s;
    assert_ok(schedule_create(&shape, costs, &s));
    return s;
}

/* Largest number of slices forward and not yet backward, counted in the printed list. */
static int64_t saved_in_text(const schedule *s, int stage) {
    const schedule_costs none = {0};
    other o;
    int64_t now = 0, most = 0;
    other_read(s, &none, &o);
    for (long j = 0; j < o.n[stage]; j++) {
        now += o.items[stage][j].kind == 'F' ? 1 : o.items[stage][j].kind == 'B' ? -1 : 0;
        most = size_max(most, now);
    }
    other_free(&o);
    return most;
}

static void test_rules(void **state) {
    (void)state;
    const int stages[] = {1, 2, 3, 5, 8};
    const int64_t windows[] = {1, 2, 5}, slices[] = {1, 2, 7}, bounds[] = {0, 1, 2};
    const schedule_costs costs = {.forward = 1, .backward = 1.4, .head = 0.7, .send = 0.1};
    for (int a = 0; a < 5; a++)
        for (int b = 0; b < 3; b++)
            for (int c = 0; c < 3; c++)
                for (int d = 0; d < 6; d++) {
                    schedule *s =
                        make(stages[a], windows[b], slices[c], bounds[d % 3], d >= 3, &costs);
                    double finish, idle, other_idle;
                    assert_ok(schedule_check(s));
                    assert_true(schedule_simulate(s, &costs, &finish, &idle));
                    assert_true(fabs(finish - other_finish(s, &costs, &other_idle)) <
                                1e-9 * finish);
                    assert_true(fabs(idle - other_idle) < 1e-9);
                    for (int i = 0; i < stages[a]; i++) {
                        const int64_t k = schedule_in_flight(s, i),
                                      most = schedule_saved_slices(s, i);
                        if (bounds[d % 3]) assert_true(k <= bounds[d % 3]);
                        if (i > 0) assert_true(k <= schedule_in_flight(s, i - 1));
                        if (d < 3) assert_int_equal(most, saved_in_text(s, i));
                        assert_true(most <= slices[c] * (d >= 3 ? 1 : k));
                        assert_true(saved_in_text(s, i) <= slices[c] * k);
                    }
                    schedule_destroy(&s);
                }
}

/* No other order is faster where all operations cost the same: the first stage works W S times two
 * and waits for P - 1 stages forward and as many back. */
static void test_closed_form(void **state) {
    (void)state;
    const schedule_costs even = {.forward = 1, .backward = 1};
    for (int p = 1; p <= 8; p++)
        for (int64_t w = 1; w <= 4; w++)
            for (int64_t n = 1; n <= 16; n *= 4) {
                schedule *s = make(p, w, n, 0, false, &even);
                double finish, idle;
                assert_true(schedule_simulate(s, &even, &finish, &idle));
                const double want = (double)(p - 1) / (double)(w * n + p - 1);
                assert_true(idle >= want - 1e-9 && idle <= want + 0.01);
                schedule_destroy(&s);
            }
}

/* Issue's targets, with the costs of a 70B layer and its head. */
static void test_targets(void **state) {
    (void)state;
    const struct {
        int stages;
        int64_t windows;
        double most;
    } cases[] = {{32, 8, 0.22}, {4, 1, 0.17}};
    const schedule_costs plain = {.forward = 1, .backward = 1},
                         uneven = {.forward = 1, .backward = 1.4, .send = 0.02};
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++) {
            const schedule_costs *c = j ? &uneven : &plain;
            schedule *s = make(cases[i].stages, cases[i].windows, 16, 0, false, c);
            double finish, idle;
            assert_ok(schedule_check(s));
            assert_true(schedule_simulate(s, c, &finish, &idle));
            print_message("%d stages, %d windows of 16 slices: idle %.1f %%; %d windows in flight "
                          "on the first stage\n",
                          cases[i].stages, (int)cases[i].windows, 100 * idle,
                          (int)schedule_in_flight(s, 0));
            assert_true(idle <= cases[i].most);
            schedule_destroy(&s);
        }
    schedule *plain_pipeline = make(32, 8, 1, 0, false, &plain);
    double finish, idle;
    assert_true(schedule_simulate(plain_pipeline, &plain, &finish, &idle));
    assert_true(idle > 0.75); /* what slices are for */
    schedule_destroy(&plain_pipeline);
}

static void test_text(void **state) {
    (void)state;
    const schedule_costs costs = {.forward = 1, .backward = 1};
    schedule *s = make(2, 2, 2, 1, true, &costs);
    char *text = schedule_text(s);
    assert_string_equal(text, "stage 0: F0.0 F0.1 B0.1 B0.0 F1.0 F1.1 B1.1 B1.0\n"
                              "stage 1: F0.0 F0.1 B0.1 B0.0 F1.0 F1.1 B1.1 B1.0\n");
    free(text);
    schedule_destroy(&s);
    s = make(1, 3, 1, 0, true, &costs);
    text = schedule_text(s);
    assert_string_equal(text, "stage 0: F0.0 B0.0 F1.0 B1.0 F2.0 B2.0\n");
    free(text);
    schedule_destroy(&s);
}

/* Two operations of a kind that change places break a rule. */
static void test_faults(void **state) {
    (void)state;
    const schedule_costs costs = {.forward = 1, .backward = 1.4};
    for (int again = 0; again < 2; again++) {
        schedule *s = make(3, 3, 2, 2, again, &costs);
        int caught = 0, swaps = 0;
        for (int stage = 0; stage < 3; stage++) {
            int64_t n;
            schedule_op *ops = (schedule_op *)schedule_ops(s, stage, &n);
            for (int64_t i = 0; i < n; i++)
                for (int64_t j = i + 1; j < n; j++) {
                    const schedule_op a = ops[i], b = ops[j];
                    ops[i] = b;
                    ops[j] = a;
                    if (a.kind == b.kind) caught += schedule_check(s).code != 0;
                    swaps += a.kind == b.kind;
                    ops[i] = a;
                    ops[j] = b;
                }
            const schedule_op a = ops[0];
            ops[0].window = 7;
            assert_int_equal(schedule_check(s).code, ERR_BUG);
            ops[0] = a;
        }
        assert_ok(schedule_check(s));
        assert_true(swaps > 0);
        assert_int_equal(caught, swaps);
        schedule_destroy(&s);
    }
    schedule *s;
    const schedule_shape bad = {.stages = 0, .windows = 1, .slices = 1};
    assert_int_equal(schedule_create(&bad, &costs, &s).code, ERR_BUG);
}

/* Stages whose waiting runs in a circle: the second wants to go back before it has gone forward. */
static void test_deadlock(void **state) {
    (void)state;
    const schedule_costs costs = {.forward = 1, .backward = 1};
    schedule *s = make(2, 2, 1, 0, false, &costs);
    int64_t n;
    schedule_op *ops = (schedule_op *)schedule_ops(s, 0, &n);
    const schedule_op order[] = {
        {OP_FORWARD, 0, 0}, {OP_BACKWARD, 0, 0}, {OP_FORWARD, 1, 0}, {OP_BACKWARD, 1, 0}};
    const schedule_op late[] = {
        {OP_FORWARD, 0, 0}, {OP_FORWARD, 1, 0}, {OP_BACKWARD, 0, 0}, {OP_BACKWARD, 1, 0}};
    double finish, idle;
    assert_int_equal(n, 4);
    memcpy(ops, order, sizeof order);
    ops = (schedule_op *)schedule_ops(s, 1, &n);
    memcpy(ops, late, sizeof late);
    assert_false(schedule_simulate(s, &costs, &finish, &idle));
    assert_int_equal(schedule_check(s).code, ERR_BUG);
    schedule_destroy(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rules),   cmocka_unit_test(test_closed_form),
        cmocka_unit_test(test_targets), cmocka_unit_test(test_text),
        cmocka_unit_test(test_faults),  cmocka_unit_test(test_deadlock)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
