/* Verdicts on losses of held-out rows, and when they are asked for. */
#include "pipeline/learn/learn_judge.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static void the_best_is_kept_and_the_worse_taken_back(void **state) {
    (void)state;
    learn_judge j = learn_judge_new(JUDGE_NOISE, JUDGE_PATIENCE, 1);
    static const struct {
        double loss;
        judge_word word;
        double best, rate;
    } heard[] = {{10, JUDGE_SNAPSHOT, 10, 1},        {9, JUDGE_SNAPSHOT, 9, 1},
                 {9.05, JUDGE_GO_ON, 9, 1},          {9.2, JUDGE_RESTORE, 9, 0.5},
                 {8, JUDGE_SNAPSHOT, 8, 0.5},        {NAN, JUDGE_RESTORE, 8, 0.25},
                 {INFINITY, JUDGE_RESTORE, 8, 0.125}};
    for (int i = 0; i < 7; i++) {
        assert_int_equal(learn_judge_hear(&j, heard[i].loss, i, false), heard[i].word);
        assert_true(j.best == heard[i].best && j.rate == heard[i].rate && j.start == 10);
    }
    assert_int_equal(j.best_step, 4);
    assert_int_equal(j.taken_back, 3);
    /* At the end what is close to the best is good enough, but not what is above the start. */
    assert_int_equal(learn_judge_hear(&j, 8.01, 7, true), JUDGE_GO_ON);
    learn_judge k = learn_judge_new(JUDGE_NOISE, JUDGE_PATIENCE, 1);
    assert_int_equal(learn_judge_hear(&k, 10, 0, false), JUDGE_SNAPSHOT);
    assert_int_equal(learn_judge_hear(&k, 10.1, 1, false), JUDGE_GO_ON);
    assert_int_equal(learn_judge_hear(&k, 10.1, 2, true), JUDGE_RESTORE);
}

static void a_start_that_nothing_betters_is_kept(void **state) {
    (void)state;
    learn_judge j = learn_judge_new(JUDGE_NOISE, JUDGE_PATIENCE, 1);
    assert_int_equal(learn_judge_hear(&j, 1, 0, false), JUDGE_SNAPSHOT);
    for (int i = 1; i < 5; i++)
        assert_int_equal(learn_judge_hear(&j, 1.5, i, i == 4), JUDGE_RESTORE);
    assert_int_equal(j.best_step, 0);
    assert_true(j.best == 1 && j.rate == 0.0625);
}

/* The second of two measurements in a row without a better one halves the rate, and so does each
 * that follows; a better one, or a return to the best, begins to count anew. Three better ones in a
 * row double it, up to 1. */
static void waiting_halves_the_rate_and_gains_double_it(void **state) {
    (void)state;
    learn_judge j = learn_judge_new(JUDGE_NOISE, JUDGE_PATIENCE, 1);
    static const struct {
        double loss, rate;
    } heard[] = {{10, 1},      {10.01, 1},    {10.02, 0.5},   {10, 0.5},      {10.1, 0.5},
                 {10.1, 0.25}, {10.1, 0.125}, {10.3, 0.0625}, {10.1, 0.0625}, {10.1, 0.03125},
                 {9, 0.03125}, {8, 0.03125},  {7, 0.0625},    {6, 0.0625},    {5, 0.0625},
                 {4, 0.125},   {3, 0.125},    {2.9, 0.125},   {2.8, 0.25},    {2.7, 0.25},
                 {2.6, 0.25},  {2.5, 0.5},    {2.4, 0.5},     {2.3, 0.5},     {2.2, 1},
                 {2.1, 1},     {2, 1},        {1, 1}};
    for (size_t i = 0; i < sizeof heard / sizeof *heard; i++) {
        learn_judge_hear(&j, heard[i].loss, (int64_t)i, false);
        assert_true(j.rate == heard[i].rate);
    }
    assert_int_equal(j.taken_back, 1);
    j = learn_judge_new(JUDGE_NOISE, 0, 1);
    for (int i = 0; i < 9; i++) learn_judge_hear(&j, i ? 1.01 : 1, i, false);
    assert_true(j.rate == 1);
}

/* Where a rate may be twice the recipe's: three gains after the first eight steps double it;
 * waiting halves it as any other, and after a return to the best it is never above 1 again. */
static void gains_go_beyond_the_recipe_once(void **state) {
    (void)state;
    learn_judge j = learn_judge_new(JUDGE_NOISE, JUDGE_PATIENCE, 2);
    static const struct {
        int64_t step;
        double loss, rate;
    } heard[] = {{0, 100, 1},  {1, 99, 1},   {2, 98, 1},  {4, 97, 1},  {8, 96, 1},   {16, 95, 1},
                 {24, 94, 1},  {32, 93, 2},  {40, 92, 2}, {48, 91, 2}, {56, 90, 2},  {64, 91, 2},
                 {72, 91, 1},  {80, 89, 1},  {88, 88, 1}, {96, 87, 2}, {104, 99, 1}, {112, 86, 1},
                 {120, 85, 1}, {128, 84, 1}, {136, 83, 1}};
    for (size_t i = 0; i < sizeof heard / sizeof *heard; i++) {
        learn_judge_hear(&j, heard[i].loss, heard[i].step, false);
        assert_true(j.rate == heard[i].rate);
    }
}

static void early_and_then_evenly(void **state) {
    (void)state;
    char due[101] = "", ends[11] = "";
    for (int t = 0; t <= 99; t++) due[t] = learn_judge_due(t, 99, 32) ? 'x' : '.';
    for (int t = 0; t <= 9; t++) ends[t] = learn_judge_due(t, 9, 0) ? 'x' : '.';
    assert_string_equal(due, "xxx.x...x.......x...............x..............................."
                             "x...............................x..x");
    assert_string_equal(ends, "x........x");
    assert_int_equal(learn_judge_looks(99, 32), 10);
    assert_int_equal(learn_judge_looks(9, 0), 2);
    assert_int_equal(learn_judge_looks(3, 16), 4);
}

static void short_phases_are_measured_more_often(void **state) {
    (void)state;
    assert_int_equal(learn_judge_every(1), 8);
    assert_int_equal(learn_judge_every(191), 8);
    assert_true(learn_judge_most(191) == 2 && learn_judge_most(192) == 1);
    assert_int_equal(learn_judge_every(192), 16);
    assert_int_equal(learn_judge_every(384), 32);
    assert_int_equal(learn_judge_every(INT64_C(1) << 24), 32);
}

static void a_state_comes_back(void **state) {
    (void)state;
    learn_judge j = learn_judge_new(JUDGE_NOISE, JUDGE_PATIENCE, 1),
                k = learn_judge_new(JUDGE_NOISE, JUDGE_PATIENCE, 1);
    double s[JUDGE_DOUBLES];
    learn_judge_hear(&j, 3, 0, false);
    learn_judge_hear(&j, 5, 1, false);
    learn_judge_hear(&j, 2, 2, false);
    learn_judge_hear(&j, 2.01, 3, false);
    learn_judge_save(&j, s);
    learn_judge_load(&k, s);
    assert_true(k.begun && k.start == 3 && k.best == 2 && k.rate == 0.5);
    assert_true(k.best_step == 2 && k.taken_back == 1 && k.waited == 1 && k.gained == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_best_is_kept_and_the_worse_taken_back),
        cmocka_unit_test(a_start_that_nothing_betters_is_kept),
        cmocka_unit_test(waiting_halves_the_rate_and_gains_double_it),
        cmocka_unit_test(gains_go_beyond_the_recipe_once),
        cmocka_unit_test(early_and_then_evenly),
        cmocka_unit_test(short_phases_are_measured_more_often),
        cmocka_unit_test(a_state_comes_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
