/* A run cut into jobs of limited time: figures by hand. Spread 1, so that times are what they are;
 * a job takes 20 s to start and is told to stop at least 60 s before its end. */
#include "jobs/planning/plan_slices.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

/* Capture of 100 s, of which nothing is kept; 60 steps of 10 s that need it; pack and verify. */
static run_plan learning(void) {
    run_plan p = {.n_phases = 4, .rates.spread = 1};
    p.phases[0] = (plan_phase){.name = "capture", .seconds = 100, .blind_s = 5};
    p.phases[1] =
        (plan_phase){.name = "learn.0", .seconds = 600, .units = 60, .again_s = 100, .blind_s = 10};
    p.phases[2] = (plan_phase){.name = "pack", .seconds = 10, .blind_s = 10};
    p.phases[3] =
        (plan_phase){.name = "verify", .seconds = 10, .units = 1, .again_s = 10, .blind_s = 10};
    return p;
}

/* 320 s: 240 s between start and signal, of which 140 s are 14 steps; 14, 14, 14, 14 and 4 steps,
 * and then 100 s are left for the archive. Four captures are repeated. */
static void test_jobs(void **state) {
    (void)state;
    const run_plan p = learning();
    const plan_slices s = plan_slices_of(&p, 320);
    assert_null(s.stuck);
    assert_int_equal(s.n, 5);
    assert_true(s.lead_s == 60 && s.again_s == 400);
    assert_string_equal(s.waits->name, "learn.0");
    assert_int_equal(plan_slices_refuse(&p, 320).code, 0);
    assert_int_equal(plan_slices_of(&p, 0).n, 1);
    assert_int_equal(plan_slices_of(&p, 10000).n, 1);
}

/* 20 + 100 + 10 + 60 s are the least: 190 s, told in whole minutes. */
static void test_stuck(void **state) {
    (void)state;
    const run_plan p = learning();
    assert_null(plan_slices_of(&p, 190).stuck);
    assert_int_equal(plan_slices_of(&p, 190).n, 61); /* the archive does not fit behind a step */
    const plan_slices s = plan_slices_of(&p, 189);
    assert_non_null(s.stuck);
    assert_string_equal(s.stuck->name, "learn.0");
    assert_true(s.least_s == 240);
    const err e = plan_slices_refuse(&p, 189);
    assert_int_equal(e.code, ERR_NOFIT);
    assert_non_null(strstr(e.what, "learn.0"));
    assert_non_null(strstr(e.hint, "4m"));
}

/* A capture of 100 s whose rows are read back in 5 s. In 180 s, 100 s between start and signal, one
 * job captures, and seven of 95 s do 9 steps each, the last 6 of them and the archive: 7 times read
 * back. Were nothing kept, no step would ever be done. */
static void test_kept(void **state) {
    (void)state;
    run_plan p = learning();
    assert_non_null(plan_slices_of(&p, 180).stuck);
    p.phases[0].units = 1;
    p.phases[0].saved_bytes = 1;
    p.phases[1].again_s = 5;
    const plan_slices s = plan_slices_of(&p, 180);
    assert_null(s.stuck);
    assert_int_equal(s.n, 8);
    assert_true(s.again_s == 35);
    assert_string_equal(plan_slices_of(&p, 179).stuck->name, "capture");
    p.phases[0].seconds = 90; /* one step fits behind it in the same job, without reading */
    assert_int_equal(plan_slices_of(&p, 180).n, 8);
    p.phases[0].seconds = 60; /* and here four: 56 are left, of which seven jobs do nine */
    assert_int_equal(plan_slices_of(&p, 180).n, 8);
    p.phases[0].seconds = 40; /* six: 54 are left, of which six do all, and a seventh the archive */
    assert_int_equal(plan_slices_of(&p, 180).n, 8);
    p.phases[0].seconds = 0; /* ten: 50 */
    assert_int_equal(plan_slices_of(&p, 180).n, 7);
}

/* The longest unit sets the lead, by the long end of its range. */
static void test_lead(void **state) {
    (void)state;
    run_plan p = learning();
    p.rates.spread = 2;
    p.phases[2].blind_s = 100;
    const plan_slices s = plan_slices_of(&p, 0);
    assert_true(s.lead_s == 230);
    assert_string_equal(s.waits->name, "pack");
}

/* Streams pass the finished layers again: the more are done, the less a job adds. 4 layers of 100
 * s, 30 s for each finished one, in 200 s: one layer a job, as 30 + 100, 60 + 100 and 90 + 100 fit.
 * In 180 s the last does not. */
static void test_passes(void **state) {
    (void)state;
    run_plan p = {.n_phases = 1, .rates.spread = 1};
    p.phases[0] = (plan_phase){.name = "gptq", .seconds = 400, .units = 4, .again_unit_s = 30};
    plan_slices s = plan_slices_of(&p, 80 + 190);
    assert_null(s.stuck);
    assert_int_equal(s.n, 4);
    assert_true(s.again_s == 30 + 60 + 90);
    s = plan_slices_of(&p, 80 + 180);
    assert_non_null(s.stuck);
}

/* What is measured is cores: a phase of bytes keeps the wider range of a table. */
static void test_range_of_disks(void **state) {
    (void)state;
    run_plan p = {.n_phases = 2, .rates = {.spread = 1.5, .faster = 1.5}};
    p.phases[0] = (plan_phase){.name = "gptq", .seconds = 12};
    p.phases[1] = (plan_phase){.name = "pack", .seconds = 12, .disk = true};
    assert_true(plan_low(&p, &p.phases[0]) == 8 && plan_high(&p, &p.phases[0]) == 18);
    assert_true(plan_low(&p, &p.phases[1]) == 6 && plan_high(&p, &p.phases[1]) == 24);
    p.rates.spread = p.rates.faster = 3;
    assert_true(plan_low(&p, &p.phases[1]) == 4 && plan_high(&p, &p.phases[1]) == 36);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_jobs),           cmocka_unit_test(test_stuck),
        cmocka_unit_test(test_kept),           cmocka_unit_test(test_lead),
        cmocka_unit_test(test_range_of_disks), cmocka_unit_test(test_passes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
