/* exp and SiLU against the double functions of the C library over their whole range; every fp16
 * number widened. */
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

static void test_every_fp16(void **state) {
    (void)state;
    static fp16 all[65536];
    static float wide[65536];
    for (int i = 0; i < 65536; i++) all[i] = (fp16)i;
    half_array_from_fp16(all, 65536, wide);
    for (int i = 0; i < 65536; i++) {
        int exponent = i >> 10 & 31, fraction = i & 1023;
        double want = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
        if (exponent == 31) want = fraction ? NAN : INFINITY;
        if (i & 0x8000) want = -want;
        if (isnan(want)) {
            assert_true(isnan(wide[i]));
        } else {
            assert_true(wide[i] == want && !signbit(wide[i]) == !signbit(want));
        }
        assert_true(isnan(want) || half_bits(wide[i]) == half_bits(half_from_fp16((fp16)i)));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exp),
        cmocka_unit_test(test_exp_ends),
        cmocka_unit_test(test_silu),
        cmocka_unit_test(test_every_fp16),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
