/* exp and SiLU against the double functions of the C library over their whole range. */
#include "base/vecmath.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>

static void test_exp(void **state) {
    (void)state;
    double worst = 0;
    for (double x = -87.3; x < 88.3; x += 0.000731) {
        float f = (float)x;
        double want = exp((double)f), off = fabs((double)vec_exp(f) - want) / want;
        worst = off > worst ? off : worst;
    }
    print_message("exp: relative error %.3g\n", worst);
    assert_true(worst < 1.3e-7); /* about 2^-23 */
    assert_true(vec_exp(0) == 1);
}

static void test_exp_ends(void **state) {
    (void)state;
    assert_true(vec_exp(-88) == 0 && vec_exp(-1000) == 0 && vec_exp(-INFINITY) == 0);
    assert_true(isinf(vec_exp(88.5f)) && isinf(vec_exp(1000)) && isinf(vec_exp(INFINITY)));
    assert_true(isnan(vec_exp(NAN)) && isnan(vec_silu(NAN)));
    for (float x = -88; x < -86; x += 0.001f) assert_true(vec_exp(x) >= 0 && vec_exp(x) < 1e-37f);
    for (float x = 87; x < 89; x += 0.001f) assert_true(vec_exp(x) > 5e37f);
}

static void test_silu(void **state) {
    (void)state;
    for (double x = -80; x < 80; x += 0.00173) {
        float f = (float)x;
        double want = (double)f / (1 + exp(-(double)f));
        assert_true(fabs((double)vec_silu(f) - want) <= 4e-7 * fabs(want));
    }
    assert_true(vec_silu(-1000) == 0 && vec_silu(1000) == 1000 && vec_silu(0) == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exp),
        cmocka_unit_test(test_exp_ends),
        cmocka_unit_test(test_silu),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
