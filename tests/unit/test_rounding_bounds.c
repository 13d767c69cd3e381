/* Bounds of sound roundings: all that rtn.h makes keeps them, also where scales end, and what is
 * not of its weights does not. */
#include "base/half.h"
#include "base/rng.h"
#include "quant/grid.h"
#include "quant/rounding_bounds.h"
#include "quant/scale_search.h"
#include "tests/unit/assert_ok.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N = 64 };

/* Weights of kinds that bring scales to their limits: ordinary, of one sign, one outlier, one
 * number, tiny, huge, none. */
static void fill(float *x, int kind, uint64_t seed) {
    static const double sizes[] = {1, 1, 1, 1, 1e-6, 3e6, 0, 1e-38};
    for (int i = 0; i < N; i++) {
        double v = rng_normal(seed, RNG_TEST, (uint64_t)i);
        if (kind == 1) v = fabs(v) + 3;
        if (kind == 2 && i == 7) v = -100;
        if (kind == 3) v = 0.3;
        x[i] = (float)(v * sizes[kind]);
    }
}

static void check_group(const wquant *how, const float *x, int kind) {
    qmatrix *q;
    float value[N];
    assert_ok(qmatrix_create(1, N, how, &q));
    rtn_quantize_rows(how, x, 1, N, 0, q);
    qmatrix_dequantize_rows(q, 0, 1, value);
    const float s = q->scales[0];
    const int z = q->zeros ? q->zeros[0] : grid_middle(how->bits);
    if (!rounding_scale_fits(how, x, N, s, z))
        fail_msg("kind %d: scale %g refused", kind, (double)s);
    const double most = rounding_most_steps(how, x, N, s);
    for (int i = 0; i < N; i++) {
        const double steps = fabs((double)value[i] - (double)x[i]) / (double)s;
        if (!(steps <= most)) fail_msg("kind %d: %.9g steps of at most %.9g", kind, steps, most);
    }
    qmatrix_destroy(&q);
}

static void sound_roundings_keep_them(void **state) {
    (void)state;
    float x[N];
    for (int k = 0; k < 7 * 2 * 2 * 3 * 8 * 10; k++) {
        const int kind = k / 10 % 8;
        const wquant how = {.bits = 2 + k / 80 % 7,
                            .symmetric = k / 560 % 2,
                            .search = k / 1120 % 2,
                            .scale_type = (scale_type)(k / 2240 % 3)};
        fill(x, kind, (uint64_t)k);
        check_group(&how, x, kind);
    }
}

/* A step and a half is no rounding to nearest, where nothing is clipped. */
static void far_codes_do_not(void **state) {
    (void)state;
    float x[N];
    fill(x, 0, 5);
    for (int bits = 2; bits <= 8; bits++)
        for (int symmetric = 0; symmetric < 2; symmetric++) {
            const wquant how = {.bits = bits, .symmetric = symmetric, .scale_type = SCALE_BF16};
            float lo, hi, s;
            int z;
            scale_range(x, N, &lo, &hi);
            scale_of_range(&how, lo, hi, 1, &s, &z);
            assert_true(rounding_most_steps(&how, x, N, s) < 0.5 + 0x1p-8 * grid_top(bits));
        }
}

static void other_scales_do_not(void **state) {
    (void)state;
    float x[N], lo, hi, s;
    int z;
    fill(x, 0, 9);
    wquant how = {.bits = 4, .scale_type = SCALE_BF16};
    scale_range(x, N, &lo, &hi);
    scale_of_range(&how, lo, hi, 1, &s, &z);
    assert_true(rounding_scale_fits(&how, x, N, s, z));
    assert_true(rounding_scale_fits(&how, x, N, s * (1 + 0x1p-7f), z + 1));
    assert_false(rounding_scale_fits(&how, x, N, s * 1.05f, z));
    assert_false(rounding_scale_fits(&how, x, N, s * 0.9f, z));
    assert_false(rounding_scale_fits(&how, x, N, s, z + 2));
    how.search = true;
    assert_true(rounding_scale_fits(&how, x, N, s * 0.5f, z));
    assert_false(rounding_scale_fits(&how, x, N, s * 0.19f, z));
    assert_false(rounding_scale_fits(&how, x, N, s * 1.05f, z));
    assert_false(rounding_scale_fits(&how, x, N, NAN, z));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sound_roundings_keep_them),
        cmocka_unit_test(far_codes_do_not),
        cmocka_unit_test(other_scales_do_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
