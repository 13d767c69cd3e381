/* The activation quantizer: values worked out by hand, ties, and a slow independent reference. */
#include "base/rng.h"
#include "quant/fake_quant.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void check_row(const aquant *q, bool zero, int n, const float *x, const float *want) {
    float out[16];
    double wide[16], out64[16];
    fake_quant_rows(q, zero, x, 1, n, n, out);
    for (int j = 0; j < n; j++) wide[j] = x[j];
    fake_quant_rows_f64(q, zero, wide, 1, n, n, out64);
    for (int j = 0; j < n; j++) {
        assert_true(out[j] == want[j]);
        assert_true(out64[j] == want[j]);
    }
}

static void test_by_hand(void **state) {
    (void)state;
    const aquant two = {.bits = 2, .clip = {1, 1}};
    /* with zero: lo 0, hi 6, s 2, z 0. Ties go to even: 1/2 -> 0, 3/2 -> 2, 5/2 -> 2 */
    check_row(&two, true, 5, (float[]){1, 2, 3, 5, 6}, (float[]){0, 2, 4, 4, 6});
    /* without zero: lo 3, hi 9, s 2, z = rint(-1.5) = -2; codes rint(x/2) - 2 in 0..3:
       3/2 -> 2, 4/2 = 2, 5/2 -> 2, 9/2 -> 4 */
    check_row(&two, false, 4, (float[]){3, 4, 5, 9}, (float[]){4, 4, 4, 8});
    /* symmetric, 4 bits: s = 14/7 = 2, codes -8..7 */
    const aquant sym = {.bits = 4, .symmetric = true, .clip = {1, 1}};
    check_row(&sym, true, 5, (float[]){-14, 1, 3, 5, 7}, (float[]){-14, 0, 4, 4, 8});
    /* the other convention: s = 15/7.5 = 2; 15/2 = 7.5 -> 8, clamped to 7; -15 -> -8 */
    const aquant ct = {
        .bits = 4, .symmetric = true, .clip = {1, 1}, .compressed_tensors_scale = true};
    check_row(&ct, true, 3, (float[]){15, -15, 2.5f}, (float[]){14, -16, 2});
    /* clip halves the range: lo 0, hi 3, s 1 */
    const aquant clip = {.bits = 2, .clip = {0.5f, 0.5f}};
    check_row(&clip, true, 3, (float[]){1, 2, 6}, (float[]){1, 2, 3});
    /* both ends apart: lo -8 / 4 = -2, hi 2 / 2 = 1, s 1, z 2; -8 is held at -2, 2 at 1 */
    const aquant ends = {.bits = 2, .clip = {0.25f, 0.5f}};
    check_row(&ends, true, 4, (float[]){-8, -1, 0.75f, 2}, (float[]){-2, -1, 1, 1});
    /* symmetric: the greater of 28 / 4 and 16 7/8 is 14, so s is 2 */
    const aquant both = {.bits = 4, .symmetric = true, .clip = {0.25f, 0.875f}};
    check_row(&both, true, 3, (float[]){-28, 16, 3}, (float[]){-16, 14, 4});
    /* about the middle 6 where zero is not in the range: 2..10 becomes 4..7, s 1, z -4 */
    check_row(&(aquant){.bits = 2, .clip = {0.5f, 0.25f}}, false, 4, (float[]){2, 4.75f, 6, 10},
              (float[]){4, 5, 6, 7});
}

/* The 4-bit cache of vLLM: halves go away from zero, the zero point is held to 0..15. */
static void test_runtime_cache(void **state) {
    (void)state;
    const aquant q = {.rule = AQUANT_CACHE_INT4, .bits = 4, .clip = {1, 1}};
    /* lo -3, hi 12, s 1, z 3: 0.5 + 3 -> 4, 1.5 + 3 -> 5, 0.5 -> 1, 2.5 -> 3 */
    check_row(&q, false, 6, (float[]){-3, 12, 0.5f, 1.5f, -2.5f, -0.5f},
              (float[]){-3, 12, 1, 2, -2, 0});
    /* z = 2.5 -> 3: the low end is at code 1, the high end at 16, held at 15 */
    check_row(&q, false, 2, (float[]){-2.5f, 12.5f}, (float[]){-2, 12});
    /* a range above zero has z -1, held at 0, and loses what is above 15 s; below zero likewise */
    check_row(&q, false, 3, (float[]){1, 16, 4}, (float[]){1, 15, 4});
    check_row(&q, false, 3, (float[]){-1, -16, -4}, (float[]){-1, -15, -4});
    /* s = 1.5/15 = 0x1.99999ap-4 in fp32: codes are read by it without its low four bits */
    const float x[3] = {0, 1.5f, 0.3f}, want = 0x1.99998p-4f;
    float out[3];
    fake_quant_rows(&q, false, x, 1, 3, 3, out);
    assert_true(out[0] == 0 && out[1] == 15 * want && out[2] == 3 * want);
    /* s is 1e-6 at least: of equal numbers little is left */
    const float flat[2] = {5, 5};
    fake_quant_rows(&q, false, flat, 1, 2, 2, out);
    assert_true(out[0] > 0 && out[0] <= 15e-6f && out[1] == out[0]);
    const float broken[3] = {1, NAN, 2};
    fake_quant_rows(&q, false, broken, 1, 3, 3, out);
    assert_true(isnan(out[1]));
}

static float e4m3(int code) {
    const int exponent = code >> 3, significand = code & 7;
    return exponent ? ldexpf((float)(8 + significand), exponent - 10)
                    : ldexpf((float)significand, -9);
}

/* FP8 by its definition: every number of E4M3 stays, halves between two go to the even code, what
 * is next to a half to its side. 0x7f is no number, 0x7e is 448, and whatever is larger. */
static void test_fp8(void **state) {
    (void)state;
    enum { LARGEST = 0x7e };
    const aquant q = {.rule = AQUANT_FP8, .bits = 8, .cache_scale = 1};
    for (int code = 0; code < LARGEST; code++) {
        const float a = e4m3(code), b = e4m3(code + 1), half = (a + b) / 2, even = code & 1 ? b : a;
        check_row(&q, false, 6,
                  (float[]){a, half, nextafterf(half, 0), nextafterf(half, 500), -half, -b},
                  (float[]){a, even, a, b, -even, -b});
    }
    check_row(&q, false, 5, (float[]){447, 464, 470, 1e30f, -500},
              (float[]){448, 448, 448, 448, -448});
    /* as PyTorch's float8_e4m3fn has them */
    check_row(&q, false, 5, (float[]){0.0146f, -0.3f, 3.14159f, -0.001f, 100},
              (float[]){0.013671875f, -0.3125f, 3.25f, -0.001953125f, 96});
    const aquant scaled = {.rule = AQUANT_FP8, .bits = 8, .cache_scale = 4};
    check_row(&scaled, false, 4, (float[]){4.25f, 4.75f, 1800, -2000},
              (float[]){4, 5, 1792, -1792});
    float out[2];
    fake_quant_rows(&q, false, (float[]){NAN, 1}, 1, 2, 2, out);
    assert_true(isnan(out[0]) && out[1] == 1);
}

static void test_flat_rows(void **state) {
    (void)state;
    const aquant q = {.bits = 4, .clip = {1, 1}},
                 sym = {.bits = 4, .symmetric = true, .clip = {1, 1}};
    check_row(&q, true, 3, (float[]){0, 0, 0}, (float[]){0, 0, 0});
    check_row(&sym, true, 3, (float[]){0, 0, 0}, (float[]){0, 0, 0});
    /* hi = lo = 3 without zero: s is 1, z = -3 */
    check_row(&q, false, 2, (float[]){3, 3}, (float[]){3, 3});
    /* hi = lo = 2.5: z = rint(-2.5) = -2, code clamp(2 - 2) = 0, value 2 */
    check_row(&q, false, 2, (float[]){2.5f, 2.5f}, (float[]){2, 2});
}

static void test_nan_is_not_hidden(void **state) {
    (void)state;
    const aquant q = {.bits = 4, .clip = {1, 1}};
    const float x[3] = {1, NAN, 2};
    float out[3];
    fake_quant_rows(&q, true, x, 1, 3, 3, out);
    assert_true(isnan(out[1]));
}

/* The rule read from its page, one element at a time, in fp32. */
static float slow(const aquant *q, bool zero, const float *x, int n, int j) {
    float lo = INFINITY, hi = -INFINITY;
    for (int i = 0; i < n; i++) {
        lo = fminf(lo, x[i]);
        hi = fmaxf(hi, x[i]);
    }
    if (zero) {
        lo = fminf(lo, 0);
        hi = fmaxf(hi, 0);
    }
    if (zero) {
        lo *= q->clip[0];
        hi *= q->clip[1];
    } else {
        const float half = (hi - lo) / 2;
        lo = lo + (1 - q->clip[0]) * half;
        hi = hi - (1 - q->clip[1]) * half;
    }
    if (q->symmetric) {
        float s = fmaxf(fabsf(lo), fabsf(hi)) / (float)(pow(2, q->bits - 1) - 1);
        if (s == 0) s = 1;
        float half = (float)pow(2, q->bits - 1);
        return fminf(fmaxf(nearbyintf(x[j] / s), -half), half - 1) * s;
    }
    float top = (float)pow(2, q->bits) - 1, s = hi == lo ? 1 : (hi - lo) / top;
    float z = nearbyintf(-lo / s);
    return (fminf(fmaxf(nearbyintf(x[j] / s) + z, 0), top) - z) * s;
}

static void test_against_slow(void **state) {
    (void)state;
    enum { ROWS = 7, STRIDE = 100 };
    float x[ROWS * STRIDE], out[ROWS * STRIDE];
    for (int variant = 0; variant < 56; variant++) {
        const float low = variant & 16 ? 0.9f : 1, high = variant % 5 == 0 ? 0.8f : low;
        aquant q = {.bits = 2 + variant % 7, .symmetric = variant & 8, .clip = {low, high}};
        bool zero = (variant & 32) || q.symmetric;
        int n = 1 + variant * 7 % 97;
        for (int i = 0; i < ROWS * STRIDE; i++) {
            uint64_t at = (uint64_t)variant * 10000 + (uint64_t)i;
            x[i] = (float)rng_normal(3, RNG_TEST, at) + (variant % 3 == 0 ? 4.0f : 0.0f);
        }
        memset(out, 0, sizeof out);
        fake_quant_rows(&q, zero, x, ROWS, n, STRIDE, out);
        for (int i = 0; i < ROWS; i++) {
            for (int j = 0; j < STRIDE; j++) {
                float want = j < n ? slow(&q, zero, x + i * STRIDE, n, j) : 0;
                assert_true(out[i * STRIDE + j] == want);
            }
        }
    }
}

/* The grid is a projection: what is on it stays, and nothing moves by more than half a step. */
static void test_bounds(void **state) {
    (void)state;
    float x[64], once[64];
    for (int i = 0; i < 64; i++) x[i] = (float)rng_normal(4, RNG_TEST, (uint64_t)i);
    float lo = 0, hi = 0;
    for (int i = 0; i < 64; i++) {
        lo = fminf(lo, x[i]);
        hi = fmaxf(hi, x[i]);
    }
    for (int bits = 2; bits <= 8; bits++) {
        const aquant q = {.bits = bits, .clip = {1, 1}};
        fake_quant_rows(&q, true, x, 1, 64, 64, once);
        float step = (hi - lo) / (float)((1 << bits) - 1);
        int levels = 0;
        float seen[256];
        for (int i = 0; i < 64; i++) {
            /* the zero point is rounded too, so the ends may move by half a step more */
            assert_true(fabsf(once[i] - x[i]) <= 1.001f * step);
            int k = 0;
            while (k < levels && seen[k] != once[i]) k++;
            if (k == levels) seen[levels++] = once[i];
        }
        assert_true(levels <= 1 << bits);
        assert_false(aquant_on(&(aquant){.bits = 16}));
        assert_true(aquant_on(&q));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_by_hand),
        cmocka_unit_test(test_runtime_cache),
        cmocka_unit_test(test_fp8),
        cmocka_unit_test(test_flat_rows),
        cmocka_unit_test(test_nan_is_not_hidden),
        cmocka_unit_test(test_against_slow),
        cmocka_unit_test(test_bounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
