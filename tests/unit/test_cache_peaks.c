/* Peaks of keys and values against plain maxima, in any order of windows; the scales that they
 * give, by hand, and against rows under random rotations. */
#include "base/gemm.h"
#include "pipeline/learn/cache_peaks.h"
#include "pipeline/learn/scale_smooth.h"
#include "tests/unit/small_model.h"

#include <math.h>

enum { HEADS = 2, D = 8, WIDTH = HEADS * D, T = 5, WINDOWS = 3, FIRST = 1, LAYERS = 2 };
static const llama_config cfg = {.kv_heads = HEADS, .head_dim = D, .layers = 4};

static void test_peaks(void **state) {
    (void)state;
    static const hook_place places[2] = {HOOK_KEY, HOOK_VALUE};
    double want[LAYERS][2][WIDTH] = {{{0}}};
    float *rows[WINDOWS][LAYERS][2];
    cache_peaks *forth, *back;
    assert_ok(cache_peaks_create(&cfg, FIRST, LAYERS, &forth));
    assert_ok(cache_peaks_create(&cfg, FIRST, LAYERS, &back));
    for (int i = 0; i < WINDOWS * LAYERS * 2; i++) {
        float *x = rows[i / 4][i / 2 % 2][i % 2] = random_f32(T * WIDTH, 1 + i, 0);
        double *most = want[i / 2 % 2][i % 2];
        for (int j = 0; j < T * WIDTH; j++)
            most[j % WIDTH] = fmax(most[j % WIDTH], fabs((double)x[j]));
    }
    for (int i = 0; i < WINDOWS * LAYERS * 2; i++)
        for (int way = 0; way < 2; way++) {
            const int k = way ? WINDOWS * LAYERS * 2 - 1 - i : i;
            const llama_hook hook = cache_peaks_hook(way ? back : forth);
            assert_int_equal(hook.places, 1u << HOOK_KEY | 1u << HOOK_VALUE);
            assert_ok(hook.take(hook.ctx, FIRST + k / 2 % 2, places[k % 2], 0, T, WIDTH,
                                rows[k / 4][k / 2 % 2][k % 2], NULL));
        }
    for (int l = 0; l < LAYERS; l++)
        for (int j = 0; j < 2 * WIDTH; j++) {
            assert_true(cache_peaks_get(forth, FIRST + l)[j] == want[l][j / WIDTH][j % WIDTH]);
            assert_true(cache_peaks_get(back, FIRST + l)[j] == want[l][j / WIDTH][j % WIDTH]);
        }
    for (int i = 0; i < WINDOWS * LAYERS * 2; i++) mem_free(rows[i / 4][i / 2 % 2][i % 2]);
    cache_peaks_destroy(&forth);
    cache_peaks_destroy(&back);
    assert_null(forth);
}

static void test_scales_by_hand(void **state) {
    (void)state;
    const double peaks[4] = {300, 400, 1, 448}, S[4] = {1, 0.5, 4, 2};
    assert_true(cache_scale_of(peaks, NULL, 2, 2, false) == 1);        /* 448 just fits */
    assert_true(cache_scale_of(peaks, NULL, 2, 2, true) == 2);         /* |(300, 400)| = 500 */
    assert_true(cache_scale_of(peaks, S, 2, 2, false) == 2);           /* 400 / 0.5 = 800 */
    assert_true(cache_scale_of(peaks + 2, S + 2, 1, 2, false) == 0.5); /* 224 just fits */
    assert_true(cache_scale_of(peaks + 2, S + 2, 1, 2, true) == 1);    /* |(0.25, 224)| does not */
    assert_true(cache_scale_of((double[]){0, 0}, NULL, 1, 2, true) == 1);
    assert_true(isnan(cache_scale_of((double[]){NAN, 1}, NULL, 1, 2, false)));
    assert_true(isinf(cache_scale_of((double[]){1, INFINITY}, NULL, 1, 2, true)));
}

/* Whatever the rotation, no entry is beyond 448 scales; without one the scale is the least. */
static void test_scales_hold(void **state) {
    (void)state;
    double peaks[WIDTH] = {0}, rotated[D];
    double *u = random_f64(T * WIDTH, 100);
    for (int i = 0; i < T * WIDTH; i++) peaks[i % WIDTH] = fmax(peaks[i % WIDTH], fabs(u[i]));
    const double s = cache_scale_of(peaks, NULL, HEADS, D, true),
                 least = cache_scale_of(peaks, NULL, HEADS, D, false);
    double most = 0;
    for (int j = 0; j < WIDTH; j++) most = fmax(most, peaks[j]);
    assert_true(448 * least >= most && 448 * least / 2 < most);
    for (int round = 0; round < 20; round++) {
        double *R = random_orthogonal(D);
        for (int i = 0; i < T * HEADS; i++) {
            gemm_f64(GEMM_N, GEMM_N, 1, D, D, u + i * D, D, R, D, GEMM_SET, rotated, D);
            for (int j = 0; j < D; j++) assert_true(fabs(rotated[j]) <= 448 * s);
        }
        mem_free(R);
    }
    mem_free(u);
}

/* A NaN is still there after the numbers behind it, for the scales that share peaks out too. */
static void test_nan_stays(void **state) {
    (void)state;
    enum { HIDDEN = 4 };
    const llama_config small = {.hidden = HIDDEN,
                                .layers = 1,
                                .heads = 1,
                                .kv_heads = 1,
                                .head_dim = HIDDEN,
                                .intermediate = HIDDEN};
    float x[3 * HIDDEN] = {1, 2, 3, 4, 5, NAN, 7, 8, 9, 10, 11, 12};
    cache_peaks *cache;
    scale_peaks *smooth;
    assert_ok(cache_peaks_create(&small, 0, 1, &cache));
    assert_ok(scale_peaks_create(&small, 0, 1, 1u << SCALE_ATTN, &smooth));
    const llama_hook of_cache = cache_peaks_hook(cache), of_smooth = scale_peaks_hook(smooth);
    assert_ok(of_cache.take(of_cache.ctx, 0, HOOK_KEY, 0, 3, HIDDEN, x, NULL));
    assert_true(isnan(cache_peaks_get(cache, 0)[1]));
    assert_true(cache_peaks_get(cache, 0)[0] == 9);
    assert_int_equal(of_smooth.take(of_smooth.ctx, 0, HOOK_ATTN_IN, 0, 3, HIDDEN, x, NULL).code,
                     ERR_NUMERICS);
    cache_peaks_destroy(&cache);
    scale_peaks_destroy(&smooth);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_peaks), cmocka_unit_test(test_scales_by_hand),
        cmocka_unit_test(test_scales_hold), cmocka_unit_test(test_nan_stays)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
