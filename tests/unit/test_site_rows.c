/* Rows that the capture keeps for the report: which they are, in any order of windows and on any
 * layers, and what is told of both their sides, against rotations and scales taken the long way. */
#include "pipeline/learn/site_rows.h"

#include "base/half.h"
#include "model/sites.h"
#include "tests/unit/small_model.h"

#include <float.h>
#include <stdlib.h>

enum { LAYERS = 3, WINDOWS = 5, LENGTH = 40 };

static const llama_config CFG = {
    .hidden = 24, .layers = LAYERS, .heads = 6, .kv_heads = 3, .head_dim = 4, .intermediate = 20};
static const hook_place PLACES[STEP_COUNT] = {HOOK_ATTN_IN, HOOK_O_IN, HOOK_MLP_IN, HOOK_DOWN_IN};

/* Token t of a window at a step of a layer; exact in bf16, with a few large channels. */
static float entry(int64_t layer, int step, int64_t window, int64_t t, int64_t j) {
    const uint64_t at = (uint64_t)((((layer * 4 + step) * WINDOWS + window) * LENGTH + t) * 64 + j);
    const float v = (float)rng_normal(5, RNG_TEST, at) * (j % 11 == 3 ? 20 : 1);
    return half_from_bf16(half_to_bf16(v));
}

static void pass_window(const llama_hook *hook, int64_t first, int64_t n, int64_t window) {
    for (int64_t layer = first; layer < first + n; layer++)
        for (int s = 0; s < STEP_COUNT; s++) {
            const int64_t width = llama_step_width(&CFG, (llama_step)s);
            float *x = room(LENGTH * width, sizeof *x);
            for (int64_t i = 0; i < LENGTH * width; i++)
                x[i] = entry(layer, s, window, i / width, i % width);
            assert_ok(hook->take(hook->ctx, layer, PLACES[s], 0, LENGTH, width, x, NULL));
            mem_free(x);
        }
}

/* The windows in an order of their own through layers [first, first + n). */
static site_rows *kept(int64_t first, int64_t n, bool backwards, const llama_stage *behind) {
    site_rows *p;
    int64_t now = 0;
    assert_ok(site_rows_create(&CFG, first, n, WINDOWS, LENGTH, &p));
    if (behind) site_rows_behind(p, behind);
    const llama_hook hook = site_rows_hook(p, &now);
    for (int64_t i = 0; i < WINDOWS; i++) {
        now = backwards ? WINDOWS - 1 - i : i;
        pass_window(&hook, first, n, now);
    }
    return p;
}

/* 64 rows are wanted of so few channels: 12 of each window, which is every third token. */
enum { OF_WINDOW = 12, STRIDE = 3, ROWS = OF_WINDOW * WINDOWS };

static void rows_of(int64_t layer, int step, float *x) {
    const int64_t width = llama_step_width(&CFG, (llama_step)step);
    for (int64_t i = 0; i < ROWS * width; i++) {
        const int64_t window = i / width / OF_WINDOW, k = i / width % OF_WINDOW;
        x[i] = entry(layer, step, window, window % STRIDE + STRIDE * k, i % width);
    }
}

static void same_stats(const site_stats *a, const site_stats *b) {
    assert_int_equal(a->rows, b->rows);
    assert_int_equal(a->outlier, b->outlier);
    assert_true(a->most == b->most);
    assert_memory_equal(a->sum, b->sum, sizeof a->sum);
    assert_memory_equal(a->bins, b->bins, sizeof a->bins);
}

static void test_which_rows(void **state) {
    (void)state;
    float x[ROWS * 24];
    for (int64_t first = 0; first < LAYERS; first++) {
        site_rows *p = kept(first, LAYERS - first, first % 2 == 1, NULL);
        for (int i = 0; i < (LAYERS - first) * STEP_COUNT; i++) {
            const int64_t layer = first + i / STEP_COUNT;
            const int step = i % STEP_COUNT;
            site_look look;
            site_stats want = {.width = llama_step_width(&CFG, (llama_step)step)};
            assert_ok(site_rows_look(p, NULL, layer, (llama_step)step, &look));
            rows_of(layer, step, x);
            site_stats_add(&want, x, ROWS);
            same_stats(&look.before, &want);
            same_stats(&look.after, &want); /* nothing is rotated */
            assert_true(look.there && isfinite(look.log_det) && look.log_scales == 0);
            assert_int_equal(look.map.rows, layer == LAYERS / 2 ? SITE_MAP_ROWS : 0);
        }
        site_rows_destroy(&p);
    }
}

/* Behind the gains of the norms, and nowhere else. */
static void test_behind(void **state) {
    (void)state;
    small_model m = {.cfg = CFG};
    m.cfg.vocab = 8;
    small_model_fill(&m, false);
    site_rows *p = kept(0, LAYERS, false, &m.stage);
    float x[ROWS * 24];
    for (int s = 0; s < STEP_COUNT; s++) {
        const int64_t width = llama_step_width(&CFG, (llama_step)s);
        const llama_layer *l = &m.stage.layers[1];
        const float *gain = s == STEP_QKV ? l->attn_norm : s == STEP_GATE_UP ? l->mlp_norm : NULL;
        site_look look;
        site_stats want = {.width = width};
        rows_of(1, s, x);
        for (int64_t i = 0; gain && i < ROWS * width; i++)
            x[i] = half_from_bf16(half_to_bf16(x[i] * gain[i % width]));
        site_stats_add(&want, x, ROWS);
        assert_ok(site_rows_look(p, NULL, 1, (llama_step)s, &look));
        same_stats(&look.before, &want);
    }
    site_rows_destroy(&p);
    llama_stage_clear(&m.stage);
}

/* ---- the other side ---- */

static rotation_set *set_with_scales(void) {
    static const scale_kind kinds[] = {SCALE_ATTN, SCALE_MLP, SCALE_VO, SCALE_UD};
    const rotation_options o = {
        .r1 = true, .r2 = R2_HEAD, .r4 = true, .r4_block = 4, .start = START_HAD, .seed = 3};
    const rotation_sizes sizes = {.hidden = CFG.hidden,
                                  .layers = LAYERS,
                                  .heads = CFG.heads,
                                  .kv_heads = CFG.kv_heads,
                                  .head_dim = CFG.head_dim,
                                  .intermediate = CFG.intermediate};
    const scale_sizes z = llama_scale_sizes(&CFG);
    rotation_set *set;
    scale_set *scales;
    assert_ok(rotation_set_create(&o, &sizes, &set));
    assert_ok(scale_set_create(&z, &scales));
    for (int k = 0; k < 4; k++) {
        assert_ok(scale_set_add(scales, kinds[k]));
        for (int64_t l = 0; l < LAYERS; l++) {
            const int64_t n = scale_set_length(scales, kinds[k]);
            double *v = random_f64(n, 0.5);
            for (int64_t j = 0; j < n; j++) v[j] = exp(v[j]);
            assert_ok(scale_set_put(scales, kinds[k], l, v));
            mem_free(v);
        }
    }
    rotation_set_put_scales(set, &scales);
    return set;
}

/* Row by row and channel by channel in fp64, from the matrices whole: CONVENTIONS.md, Scales. */
static void rotate_long(rotation_set *set, int64_t layer, int step, const float *x, float *out) {
    enum { MOST = 24 };
    const scale_kind kind[STEP_COUNT] = {SCALE_ATTN, SCALE_VO, SCALE_MLP, SCALE_UD};
    const scale_vector *S = scale_set_get(rotation_set_scales(set), kind[step], layer);
    const bool stream = step == STEP_QKV || step == STEP_GATE_UP;
    const int64_t width = llama_step_width(&CFG, (llama_step)step),
                  d = step == STEP_O ? CFG.head_dim : width, share = CFG.heads / CFG.kv_heads;
    assert_ok(rotation_set_prepare_r2(set, layer));
    for (int64_t t = 0; t < ROWS; t++)
        for (int64_t h = 0; h < width / d; h++) {
            const int64_t kv = step == STEP_O ? h / share : 0;
            const rotation *R = stream           ? rotation_set_r1(set)
                                : step == STEP_O ? rotation_set_r2(set, layer, kv)
                                                 : rotation_set_r4(set);
            for (int64_t j = 0; j < d; j++) {
                double sum = 0;
                for (int64_t i = 0; i < d; i++) {
                    double row[MOST] = {0};
                    row[i] = 1; /* row i of R */
                    rotation_apply_f64(R, row, 1, d, false);
                    const double v = (double)x[t * width + h * d + i];
                    sum += (stream ? v : v / S->s[kv * d + i]) * row[j];
                }
                out[t * width + h * d + j] = (float)(stream ? sum / S->s[j] : sum);
            }
        }
}

/* Entries in fp32 are off by some eps of the largest of their row, which is at most `most`; the
 * k-th moments by k times as much of it. */
static void near_stats(const site_stats *got, const site_stats *want) {
    const double off = 4 * (double)want->width * FLT_EPSILON * want->most, n = want->sum[0];
    assert_int_equal(got->rows, want->rows);
    assert_true(fabs(got->most - want->most) <= off);
    for (int k = 0; k < 5; k++)
        assert_true(fabs(got->sum[k] - want->sum[k]) <= n * k * off * pow(want->most, k - 1));
}

/* An eigenvalue of a covariance of fp32 rows is off by width eps of the largest, which is some 1e4
 * times the least: channels differ by 20 in size, and scales by 5. */
#define LOG_DET_OFF (24 * FLT_EPSILON * 1e4)

static void test_both_sides(void **state) {
    (void)state;
    rotation_set *set = set_with_scales();
    site_rows *p = kept(0, LAYERS, false, NULL);
    float x[ROWS * 24], rotated[ROWS * 24];
    for (int s = 0; s < STEP_COUNT; s++) {
        const int64_t width = llama_step_width(&CFG, (llama_step)s);
        site_look look, back;
        site_stats before = {.width = width}, after = before;
        double log_det;
        rows_of(1, s, x);
        rotate_long(set, 1, s, x, rotated);
        site_stats_add(&before, x, ROWS);
        site_stats_add(&after, rotated, ROWS);
        assert_ok(site_log_det(rotated, ROWS, width, &log_det));
        assert_ok(site_rows_look(p, set, 1, (llama_step)s, &look));
        near_stats(&look.before, &before);
        near_stats(&look.after, &after);
        assert_true(fabs(site_kurtosis(&look.before) - site_kurtosis(&look.after)) > 0.1);
        assert_true(fabs(look.log_det + 2 * look.log_scales - log_det) < LOG_DET_OFF);
        assert_ok(
            site_look_take(&CFG, set, 1, (llama_step)s, SITE_AFTER, true, rotated, ROWS, &back));
        near_stats(&back.before, &before);
        near_stats(&back.after, &after);
        assert_true(fabs(back.log_det - look.log_det) < LOG_DET_OFF);
        assert_true(back.log_scales == look.log_scales);
    }
    site_rows_destroy(&p);
    rotation_set_destroy(&set);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_which_rows),
        cmocka_unit_test(test_behind),
        cmocka_unit_test(test_both_sides),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
