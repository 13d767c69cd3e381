/* Rounding to nearest and the search of scales, against cases by hand and a slow reference that is
 * written from the rules of docs/CONVENTIONS.md and shares no code with quant/. */
#include "base/err.h"
#include "base/rng.h"
#include "quant/grid.h"
#include "quant/rtn.h"
#include "quant/scale_search.h"
#include "tests/unit/assert_ok.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static qmatrix *quantized(const wquant *how, const float *w, int64_t rows, int64_t cols) {
    qmatrix *q;
    assert_ok(qmatrix_create(rows, cols, how, &q));
    rtn_quantize_rows(how, w, rows, cols, 0, q);
    return q;
}

/* Quotients that are exact halves go to the even neighbour. */
static void ties_go_to_even(void **state) {
    (void)state;
    const float w[8] = {7.0f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, -7.0f};
    const uint8_t expected[8] = {15, 8, 10, 10, 8, 6, 6, 1};
    wquant how = {.bits = 4, .symmetric = true, .scale_type = SCALE_BF16};
    qmatrix *q = quantized(&how, w, 1, 8);
    assert_true(q->scales[0] == 1.0f);
    assert_memory_equal(q->codes, expected, 8);
    assert_null(q->zeros);
    qmatrix_destroy(&q);
    assert_null(q);
}

/* lo = -3, hi = 12: s = 1, z = 3. */
static void asymmetric_by_hand(void **state) {
    (void)state;
    const float w[8] = {-3.0f, 12.0f, 0.0f, 0.5f, 1.5f, -0.5f, -2.5f, 11.4f};
    const uint8_t expected[8] = {0, 15, 3, 3, 5, 3, 1, 14};
    wquant how = {.bits = 4, .symmetric = false, .scale_type = SCALE_F32};
    qmatrix *q = quantized(&how, w, 1, 8);
    assert_true(q->scales[0] == 1.0f);
    assert_int_equal(q->zeros[0], 3);
    assert_memory_equal(q->codes, expected, 8);
    float back[8];
    qmatrix_dequantize_rows(q, 0, 1, back);
    for (int i = 0; i < 8; i++) assert_true(back[i] == (float)(expected[i] - 3));
    qmatrix_destroy(&q);
}

/* All positive: the range is stretched to 0. All zero: scale 1. */
static void ranges_hold_zero(void **state) {
    (void)state;
    const float w[8] = {30.0f, 15.0f, 28.0f, 16.0f, 0, 0, 0, 0};
    wquant how = {.bits = 4, .group = 4, .symmetric = false, .scale_type = SCALE_FP16};
    qmatrix *q = quantized(&how, w, 1, 8);
    assert_true(q->scales[0] == 2.0f);
    assert_int_equal(q->zeros[0], 0);
    assert_int_equal(q->codes[0], 15);
    assert_int_equal(q->codes[1], 8); /* 7.5 */
    assert_true(q->scales[1] == 1.0f);
    assert_int_equal(q->zeros[1], 0);
    assert_int_equal(q->codes[7], 0);
    qmatrix_destroy(&q);
}

/* 1/3 is no bf16 number: codes follow the rounded scale. 7 w / 3 with s = 0.333984375. */
static void codes_follow_the_stored_scale(void **state) {
    (void)state;
    const float w[2] = {7.0f / 3.0f, 0.5f * 0.333984375f};
    wquant how = {.bits = 4, .symmetric = true, .scale_type = SCALE_BF16};
    qmatrix *q = quantized(&how, w, 1, 2);
    assert_true(q->scales[0] == 0.333984375f);
    assert_int_equal(q->codes[0], 15);
    assert_int_equal(q->codes[1], 8); /* an exact half of the stored scale */
    qmatrix_destroy(&q);
}

/* The ends of the storage types: nothing divides by zero, nothing is infinite. */
static void extreme_scales(void **state) {
    (void)state;
    const float w[3][2] = {{1e-9f, -1e-9f}, {3e8f, -3e8f}, {3e38f, -3e38f}};
    for (int type = SCALE_BF16; type <= SCALE_F32; type++)
        for (int k = 0; k < 3; k++)
            for (int flags = 0; flags < 4; flags++) {
                wquant how = {.bits = 4,
                              .symmetric = flags & 1,
                              .search = flags & 2,
                              .scale_type = (scale_type)type};
                qmatrix *q = quantized(&how, w[k], 1, 2);
                assert_true(isfinite(q->scales[0]) && q->scales[0] > 0);
                assert_true(q->codes[0] <= 15 && q->codes[1] <= 15);
                assert_true(q->codes[0] >= q->codes[1]);
                qmatrix_destroy(&q);
            }
    assert_true(scale_round(1e-9f, SCALE_FP16) == 0x1p-24f);
    assert_true(scale_round(1e9f, SCALE_FP16) == 65504.0f);
    assert_true(scale_round(65520.0f, SCALE_FP16) == 65504.0f);
    assert_true(scale_round(INFINITY, SCALE_BF16) == 0x1.fep127f);
    assert_true(scale_round(1.00390625f, SCALE_BF16) == 1.0f);      /* a tie, to even */
    assert_true(scale_round(1.01171875f, SCALE_BF16) == 1.015625f); /* a tie, to even */
    assert_true(scale_round(0.1f, SCALE_F32) == 0.1f);
}

/* ---- the slow reference ---- */

/* Half to even by its definition. */
static double round_even(double v) {
    double low = floor(v), gap = v - low;
    if (gap > 0.5) return low + 1;
    if (gap < 0.5) return low;
    return fmod(low, 2) == 0 ? low : low + 1;
}

/* s to the 8 or 11 digits of the type, for normal numbers. */
static float reference_round(float s, scale_type type) {
    if (type == SCALE_F32) return s;
    int exponent;
    double digits = type == SCALE_BF16 ? 8 : 11, m = frexp(s, &exponent);
    return (float)ldexp(round_even(ldexp(m, (int)digits)), exponent - (int)digits);
}

typedef struct reference {
    float s;
    double z;
} reference;

static reference reference_scale(const wquant *how, const float *x, int64_t n, float p) {
    float lo = 0, hi = 0;
    for (int64_t i = 0; i < n; i++) {
        lo = fminf(lo, x[i]);
        hi = fmaxf(hi, x[i]);
    }
    double top = ldexp(1, how->bits) - 1;
    reference r = {.z = ldexp(1, how->bits - 1)};
    if (how->symmetric) {
        r.s = fmaxf(hi, -lo) * p / (float)(ldexp(1, how->bits - 1) - 1);
    } else {
        r.s = (hi - lo) * p / (float)top;
    }
    r.s = reference_round(r.s, how->scale_type);
    /* The quotient is rounded to fp32 before it is rounded to an integer. */
    /* A scale rounded down can push it past the last code, which is what an archive can hold. */
    if (!how->symmetric)
        r.z = fmin(top, round_even((double)(float)((double)(-lo * p) / (double)r.s)));
    return r;
}

static double reference_code(const wquant *how, reference r, float x) {
    double top = ldexp(1, how->bits) - 1;
    double u = round_even((double)(float)((double)x / (double)r.s)) + r.z;
    return u < 0 ? 0 : u > top ? top : u;
}

static double reference_error(const wquant *how, reference r, const float *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += pow(fabs((reference_code(how, r, x[i]) - r.z) * (double)r.s - (double)x[i]), 2.4);
    return sum;
}

static void fill_weights(float *w, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        double v = 0.05 * rng_normal(11, RNG_TEST, (uint64_t)i);
        w[i] = (float)(i % 97 == 5 ? 6 * v : v);
    }
}

static void check_against_reference(wquant how, const float *w, int64_t rows, int64_t cols) {
    qmatrix *q = quantized(&how, w, rows, cols);
    int64_t group = how.group ? how.group : cols;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t g = 0; g < cols / group; g++) {
            const float *x = w + r * cols + g * group;
            reference ref = reference_scale(&how, x, group, 1.0f);
            if (how.search) {
                /* The choice must be one of the candidates, and none may be better. */
                double least = INFINITY, ours = INFINITY;
                for (int k = 0; k < 80; k++) {
                    reference c = reference_scale(&how, x, group, (float)(1.0 - k / 100.0));
                    double e = reference_error(&how, c, x, group);
                    least = fmin(least, e);
                    double z = how.symmetric ? c.z : q->zeros[r * q->n_groups + g];
                    if (c.s == q->scales[r * q->n_groups + g] && c.z == z) {
                        ours = e;
                        ref = c;
                    }
                }
                assert_true(ours <= least * (1 + 2e-6));
            }
            assert_true(q->scales[r * q->n_groups + g] == ref.s);
            if (!how.symmetric) assert_int_equal(q->zeros[r * q->n_groups + g], (int)ref.z);
            for (int64_t i = 0; i < group; i++)
                assert_int_equal(q->codes[r * cols + g * group + i],
                                 (int)reference_code(&how, ref, x[i]));
        }
    qmatrix_destroy(&q);
}

static void all_kinds_against_the_reference(void **state) {
    (void)state;
    enum { ROWS = 3, COLS = 192 };
    float w[ROWS * COLS];
    fill_weights(w, ROWS * COLS);
    const int64_t groups[] = {0, 32, 64, 3};
    for (int bits = 2; bits <= 8; bits++)
        for (int g = 0; g < 4; g++)
            for (int flags = 0; flags < 4; flags++)
                for (int type = SCALE_BF16; type <= SCALE_F32; type++) {
                    wquant how = {bits, groups[g], flags & 1, flags & 2, (scale_type)type};
                    check_against_reference(how, w, ROWS, COLS);
                }
}

static void search_beats_the_full_range(void **state) {
    (void)state;
    enum { N = 4096 };
    static float w[N];
    fill_weights(w, N);
    wquant how = {.bits = 4, .symmetric = true, .scale_type = SCALE_BF16};
    qerror plain = {0}, searched = {0};
    qmatrix *q = quantized(&how, w, 1, N);
    plain = qmatrix_row_error(q, w, 0);
    qmatrix_destroy(&q);
    how.search = true;
    q = quantized(&how, w, 1, N);
    searched = qmatrix_row_error(q, w, 0);
    qmatrix_destroy(&q);
    assert_true(searched.sum_sq_error < 0.9 * plain.sum_sq_error);
}

static void power_is_accurate(void **state) {
    (void)state;
    float e[4096], x[4096];
    for (int i = 0; i < 4096; i++) x[i] = e[i] = (float)exp(-18.0 + 0.005 * i);
    e[0] = x[0] = 0;
    scale_pow24(e, 4096);
    assert_true(e[0] == 0);
    for (int i = 1; i < 4096; i++)
        assert_true(fabs((double)e[i] / pow((double)x[i], 2.4) - 1) < 1e-6);
}

/* Numbers below the smallest square of fp32 are searched as well as others: same codes after a
 * shift by a power of two. */
static void search_does_not_underflow(void **state) {
    (void)state;
    float w[64], tiny[64];
    fill_weights(w, 64);
    for (int i = 0; i < 64; i++) tiny[i] = ldexpf(w[i], -90);
    wquant how = {.bits = 4, .symmetric = false, .search = true, .scale_type = SCALE_BF16};
    qmatrix *a = quantized(&how, w, 1, 64), *b = quantized(&how, tiny, 1, 64);
    assert_memory_equal(a->codes, b->codes, 64);
    assert_true(b->scales[0] == ldexpf(a->scales[0], -90));
    qmatrix_destroy(&a);
    qmatrix_destroy(&b);
}

static void error_by_hand(void **state) {
    (void)state;
    const float w[4] = {7.0f, 0.25f, -1.5f, 0.0f}; /* values 7, 0, -2, 0 */
    wquant how = {.bits = 4, .symmetric = true, .scale_type = SCALE_F32};
    qmatrix *q = quantized(&how, w, 1, 4);
    qerror sum = {0};
    sum = qmatrix_row_error(q, w, 0);
    assert_true(sum.sum_sq_error == 0.0625 + 0.25);
    assert_true(sum.sum_sq_weight == 49 + 0.0625 + 2.25);
    assert_true(sum.max_error == 0.5);
    qmatrix_destroy(&q);
}

/* Rows in one call, or one by one as tiles arrive. */
static void tiles_make_no_difference(void **state) {
    (void)state;
    enum { ROWS = 67, COLS = 96 };
    static float w[ROWS * COLS];
    fill_weights(w, ROWS * COLS);
    wquant how = {
        .bits = 3, .group = 32, .symmetric = false, .search = true, .scale_type = SCALE_FP16};
    qmatrix *a = quantized(&how, w, ROWS, COLS), *b;
    assert_ok(qmatrix_create(ROWS, COLS, &how, &b));
    for (int r = 0; r < ROWS; r++) rtn_quantize_rows(&how, w + r * COLS, 1, COLS, r, b);
    assert_memory_equal(a->codes, b->codes, ROWS * COLS);
    assert_memory_equal(a->scales, b->scales, sizeof(float) * ROWS * 3);
    assert_memory_equal(a->zeros, b->zeros, ROWS * 3);
    qmatrix_destroy(&a);
    qmatrix_destroy(&b);
}

static void wrong_sizes_are_named(void **state) {
    (void)state;
    wquant how = {.bits = 4, .group = 128, .symmetric = true};
    qmatrix *q;
    err e = qmatrix_create(10, 576, &how, &q);
    assert_int_equal(e.code, ERR_USAGE);
    assert_null(q);
    assert_non_null(strstr(e.what, "128"));
    assert_non_null(strstr(e.what, "576"));
    how.group = 64;
    assert_int_equal(wquant_check(&how, 10, 576).code, ERR_OK);
    how.bits = 9;
    assert_int_equal(wquant_check(&how, 10, 576).code, ERR_USAGE);
    how.bits = 1;
    assert_int_equal(wquant_check(&how, 10, 576).code, ERR_USAGE);
    how.bits = 4;
    how.group = -1;
    assert_int_equal(wquant_check(&how, 10, 576).code, ERR_USAGE);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ties_go_to_even),
        cmocka_unit_test(asymmetric_by_hand),
        cmocka_unit_test(ranges_hold_zero),
        cmocka_unit_test(codes_follow_the_stored_scale),
        cmocka_unit_test(extreme_scales),
        cmocka_unit_test(all_kinds_against_the_reference),
        cmocka_unit_test(search_beats_the_full_range),
        cmocka_unit_test(power_is_accurate),
        cmocka_unit_test(search_does_not_underflow),
        cmocka_unit_test(error_by_hand),
        cmocka_unit_test(tiles_make_no_difference),
        cmocka_unit_test(wrong_sizes_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
