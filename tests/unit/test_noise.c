/* Rows drawn by importance: estimates without bias and in any order of windows; the cost of a
 * quantizer on them against matrices in plain double; the search of clips against every single move
 * on its list; R3 from keys. */
#include "base/gemm.h"
#include "pipeline/learn/key_moments.h"
#include "pipeline/learn/noise_cost.h"
#include "tests/unit/small_sites.h"

enum { WINDOW = 64, WINDOWS = 5, LAYERS_DRAWN = 40 };

/* Gradients whose rows differ by orders of magnitude, as those of tokens do. */
static void make_rows(int64_t layer, int64_t window, int64_t width, float *x, float *g) {
    for (int64_t t = 0; t < WINDOW; t++) {
        const uint64_t at = (uint64_t)((layer * WINDOWS + window) * WINDOW + t) << 12;
        const double loud = exp(2 * rng_normal(5, RNG_TEST, at + 4095));
        for (int64_t j = 0; j < width; j++) {
            x[t * width + j] = (float)rng_normal(5, RNG_TEST, at + (uint64_t)j);
            g[t * width + j] = (float)(loud * rng_normal(6, RNG_TEST, at + (uint64_t)j));
        }
    }
}

static noise_rows *drawn(const llama_config *cfg, int64_t layers, int64_t rows, bool backwards) {
    noise_rows *p;
    assert_ok(noise_rows_create(cfg, 0, layers, 1u << CLIP_ATTN, WINDOW, rows, &p));
    int64_t now = 0;
    const llama_hook hook = noise_rows_hook(p, &now);
    assert_true(hook.places == 1u << HOOK_ATTN_IN);
    float *x = room(WINDOW * cfg->hidden, sizeof *x), *g = room(WINDOW * cfg->hidden, sizeof *g);
    for (int64_t i = 0; i < layers * WINDOWS; i++) {
        const int64_t layer = i / WINDOWS, w = i % WINDOWS,
                      window = backwards ? WINDOWS - 1 - w : w;
        make_rows(layer, window, cfg->hidden, x, g);
        now = window;
        assert_ok(hook.take(hook.ctx, layer, HOOK_ATTN_IN, 0, WINDOW, cfg->hidden, x, g));
    }
    noise_rows_finish(p);
    mem_free(x);
    mem_free(g);
    return p;
}

/* p of a row as it is kept: gradients were rounded to bf16, 2^-8 of each. */
static double size_of_row(const noise_set *s, int64_t i) {
    double sum = 0;
    for (int64_t j = 0; j < s->width; j++) {
        const double v = (double)half_from_bf16(s->g[i * s->width + j]);
        sum += v * v;
    }
    return pow(sum, 0.75);
}

/* Subset sums of priority sampling have a relative variance of at most 1/(m - 1) for the sum of all
 * sizes (Szegedy, The DLT priority sampling is essentially optimal, STOC 2006); the layers are
 * draws of their own. Five standard deviations, and rounding. */
static void test_estimates(void **state) {
    (void)state;
    enum { ROWS = 33 };
    const llama_config cfg = some_config();
    noise_rows *few = drawn(&cfg, LAYERS_DRAWN, ROWS, false),
               *all = drawn(&cfg, LAYERS_DRAWN, WINDOW * WINDOWS, false);
    double mean = 0;
    for (int64_t l = 0; l < LAYERS_DRAWN; l++) {
        const noise_set a = noise_rows_get(all, CLIP_ATTN, l),
                        f = noise_rows_get(few, CLIP_ATTN, l);
        double want = 0, got = 0;
        assert_true(a.n == WINDOW * WINDOWS && f.n == ROWS && f.width == HIDDEN);
        for (int64_t i = 0; i < a.n; i++) {
            assert_true(a.weight[i] == 1);
            want += size_of_row(&a, i);
        }
        for (int64_t i = 0; i < f.n; i++) {
            assert_true(f.weight[i] >= 1);
            got += f.weight[i] * size_of_row(&f, i);
        }
        mean += got / want / LAYERS_DRAWN;
    }
    print_message("sum of sizes, drawn over all: %.4f\n", mean);
    assert_true(fabs(mean - 1) <= 5 / sqrt((ROWS - 1.0) * LAYERS_DRAWN) + 0.75 * 0x1p-7);
    noise_rows_destroy(&few);
    noise_rows_destroy(&all);
}

static void test_any_order(void **state) {
    (void)state;
    const llama_config cfg = some_config();
    noise_rows *one = drawn(&cfg, 2, 20, false), *two = drawn(&cfg, 2, 20, true);
    for (int64_t l = 0; l < 2; l++) {
        const noise_set a = noise_rows_get(one, CLIP_ATTN, l),
                        b = noise_rows_get(two, CLIP_ATTN, l);
        assert_true(a.n == b.n);
        for (int64_t i = 0; i < a.n; i++) {
            assert_true(a.weight[i] == b.weight[i]);
            const size_t bytes = (size_t)a.width * sizeof *a.x;
            assert_memory_equal(a.x + i * a.width, b.x + i * b.width, bytes);
            assert_memory_equal(a.g + i * a.width, b.g + i * b.width, bytes);
        }
    }
    noise_rows_destroy(&one);
    noise_rows_destroy(&two);
}

/* Rows for a site: [n, width] in bf16, weights rising. */
typedef struct some_rows {
    noise_set set;
    bf16 *x, *g;
    double *weight;
} some_rows;

static some_rows rows_for(int64_t n, int64_t width) {
    some_rows r = {.x = room(n * width, sizeof(bf16)),
                   .g = room(n * width, sizeof(bf16)),
                   .weight = room(n, sizeof(double))};
    double *v = random_f64(2 * n * width, 1);
    for (int64_t i = 0; i < n * width; i++) {
        r.x[i] = half_to_bf16((float)v[i]);
        r.g[i] = half_to_bf16((float)v[n * width + i]);
    }
    for (int64_t i = 0; i < n; i++) {
        r.weight[i] = 1 + 0.5 * (double)i;
    }
    r.set = (noise_set){n, width, r.x, r.g, r.weight};
    mem_free(v);
    return r;
}

static void rows_clear(some_rows *r) {
    void *all[] = {r->x, r->g, r->weight};
    for (int i = 0; i < 3; i++) mem_free(all[i]);
}

/* D by matrices: M = S_before^-1 B S_after^-1 takes x to u, and its inverse transpose
 * S_before B S_after takes g to h, B orthogonal and block diagonal. */
static double long_way(const site *s, double *const *R, const noise_set *rows, double tokens) {
    const int64_t n = s->n, d = s->segment, range = site_range(s);
    double *before = scales_of_row(s, true), *after = scales_of_row(s, false);
    double *u = room(n, sizeof *u), *h = room(n, sizeof *h), *q = room(n, sizeof *q), total = 0;
    for (int64_t i = 0; i < rows->n; i++) {
        for (int64_t j = 0; j < n; j++) {
            const double *B = R[j / d / s->share];
            u[j] = h[j] = 0;
            for (int64_t k = 0; k < d; k++) {
                const int64_t from = j / d * d + k, at = i * n + from;
                u[j] += (double)half_from_bf16(rows->x[at]) / before[from] * B[k * d + j % d];
                h[j] += (double)half_from_bf16(rows->g[at]) * before[from] * B[k * d + j % d];
            }
            u[j] /= after[j];
            h[j] *= after[j];
        }
        fake_quant_rows_f64(&s->quant, s->include_zero, u, n / range, range, range, q);
        for (int64_t j = 0; j < n; j++)
            total += 0.5 * rows->weight[i] * pow(h[j] * (q[j] - u[j]), 2) / tokens;
    }
    double *all[] = {before, after, u, h, q};
    for (int i = 0; i < 5; i++) mem_free(all[i]);
    return total;
}

static const double list[] = {1.05, 1.02, 1,    0.97, 0.94, 0.91, 0.88,
                              0.85, 0.82, 0.79, 0.76, 0.73, 0.70, 0.67};

/* No single end on the list, within a tenth of the best number for both, costs less. */
static void check_search(noise_cost *c, const site *s) {
    double ends[2], before, after;
    noise_cost_search(c, ends, &before, &after);
    const double one[2] = {1, 1};
    assert_true(noise_cost_of(c, ends) == after && after <= before);
    assert_true(noise_cost_of(c, one) == before);
    double middle = 0, least = INFINITY;
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        const double both[2] = {list[i], list[i]}, d = noise_cost_of(c, both);
        if (d < least) middle = list[i];
        least = fmin(least, d);
    }
    assert_true(after <= least);
    for (size_t i = 0; !s->quant.symmetric && i < sizeof list / sizeof *list; i++) {
        for (int end = 0; end < 2; end++) {
            double next[2] = {ends[0], ends[1]};
            next[end] = list[i];
            if (fabs(list[i] - middle) <= 0.1) assert_true(noise_cost_of(c, next) >= after);
        }
    }
    print_message("clips %.2f %.2f: %.4g -> %.4g\n", ends[0], ends[1], before, after);
}

/* A rounding that falls to the other side in fp32 changes one error by a step: of the thousands
 * here none to a few, each a part in thousands. */
static void check_cost(const site *s, double *const *R) {
    enum { ROWS = 60, TOKENS_SEEN = 1000 };
    some_rows r = rows_for(ROWS, s->n);
    noise_cost *c;
    assert_ok(noise_cost_create(ROWS, s->n, &c));
    noise_cost_take(c, &r.set, s, TOKENS_SEEN);
    const double ends[2] = {(double)s->quant.clip[0], (double)s->quant.clip[1]};
    const double want = long_way(s, R, &r.set, TOKENS_SEEN), got = noise_cost_of(c, ends);
    print_message("n %d, %d bits: %.6g, the long way %.6g\n", (int)s->n, s->quant.bits, got, want);
    assert_true(want > 0 && fabs(got - want) <= 1e-2 * want);
    check_search(c, s);
    noise_cost_destroy(&c);
    rows_clear(&r);
}

static void test_cost(void **state) {
    (void)state;
    const llama_config cfg = some_config();
    double *R1 = random_orthogonal(HIDDEN), *R2[2] = {random_orthogonal(8), random_orthogonal(8)};
    rotation *r1 = dense(R1, HIDDEN), *r2[2] = {dense(R2[0], 8), dense(R2[1], 8)};
    const rotation *heads[4] = {r2[0], r2[1], r2[0], r2[1]};
    scale_set *scales = random_scales(&cfg, 0.5);
    for (int k = 0; k < 4; k++) {
        llama_sites s = llama_sites_none();
        s.act.bits = s.kv.bits = k % 2 ? 4 : 5;
        s.act.symmetric = s.kv.symmetric = k == 3;
        s.o_per_head = k < 2;
        s.scales = scales;
        s.R1 = r1;
        s.R2 = s.R3_heads = heads;
        s.r2_per_head = true;
        set_clips(&s, k > 0);
        const site sites[] = {sites_input(&s, &cfg, 1, NORM_MLP), sites_output(&s, &cfg, 1),
                              sites_keys(&s, &cfg, 1), sites_values(&s, &cfg, 1)};
        check_cost(&sites[0], &R1);
        for (int i = 1; i < 4; i++) check_cost(&sites[i], R2);
    }
    scale_set_destroy(&scales);
    rotation_destroy(&r1);
    for (int i = 0; i < 2; i++) {
        rotation_destroy(&r2[i]);
        mem_free(R2[i]);
    }
    mem_free(R1);
}

/* ---- R3 ---- */

static key_moments *keys_of(const llama_config *cfg, bool backwards) {
    const int64_t width = cfg->kv_heads * cfg->head_dim;
    key_moments *m;
    assert_ok(key_moments_create(cfg, 1, 1, &m));
    const llama_hook hook = key_moments_hook(m);
    float *x = room(WINDOW * width, sizeof *x);
    for (int64_t w = 0; w < WINDOWS; w++) {
        const int64_t window = backwards ? WINDOWS - 1 - w : w;
        for (int64_t i = 0; i < WINDOW * width;
             i++) { /* a mean of 3 in channel 2, -2 in channel 5 */
            const int64_t c = i % cfg->head_dim;
            x[i] = (float)rng_normal(8, RNG_TEST, (uint64_t)(window * WINDOW * width + i)) +
                   (c == 2   ? 3.0f
                    : c == 5 ? -2.0f
                             : 0.0f);
        }
        assert_ok(hook.take(hook.ctx, 1, HOOK_KEY, 0, WINDOW, width, x, x));
    }
    mem_free(x);
    return m;
}

static void check_r3(const double *R, int64_t d, const double *mean_direction, double apart) {
    for (int64_t i = 0; i < d; i++) {
        for (int64_t j = 0; j < d; j++) {
            double dot = 0;
            for (int64_t k = 0; k < d; k++) dot += R[k * d + i] * R[k * d + j];
            assert_true(fabs(dot - (i == j)) <= 1e-12);
        }
    }
    /* The mean, rotated, has one sign in all channels, up to `apart` of its length over sqrt(d). */
    double length = 0, least = INFINITY, most = -INFINITY;
    for (int64_t j = 0; j < d; j++) {
        double v = 0;
        for (int64_t k = 0; k < d; k++) v += mean_direction[k] * R[k * d + j];
        least = fmin(least, v);
        most = fmax(most, v);
        length += mean_direction[j] * mean_direction[j];
    }
    const double flat = sqrt(length / (double)d);
    print_message("mean key turned: %.3f to %.3f, flat would be %.3f\n", least, most, flat);
    assert_true(least > (1 - apart) * flat || most < -(1 - apart) * flat);
}

/* With 320 tokens the eigenvector is the mean's direction but for some 1/sqrt(320) in each of the
 * other seven: under a third of its even entries in any channel. Signs leave no channel below 0. */
static void test_r3(void **state) {
    (void)state;
    const llama_config cfg = some_config();
    key_moments *m = keys_of(&cfg, false), *other = keys_of(&cfg, true);
    double S[8], R[64], again[64];
    for (int j = 0; j < 8; j++) S[j] = j % 4 == 1 ? 2 : 1;
    for (int64_t h = 0; h < cfg.kv_heads; h++) {
        for (int scaled = 0; scaled < 2; scaled++) {
            const double mean[8] = {0, 0, 3, 0, 0, scaled ? -1 : -2, 0, 0};
            assert_ok(key_moments_pca(m, 1, h, scaled ? S : NULL, R));
            check_r3(R, 8, mean, 0.4);
            assert_ok(key_moments_pca(other, 1, h, scaled ? S : NULL, again));
            assert_memory_equal(R, again, sizeof R);
            assert_ok(key_moments_signs(m, 1, h, scaled ? S : NULL, R));
            check_r3(R, 8, mean, 1);
        }
    }
    key_moments_destroy(&m);
    key_moments_destroy(&other);
}

int main(void) {
    gemm_init(1);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_estimates),
                                       cmocka_unit_test(test_any_order),
                                       cmocka_unit_test(test_cost), cmocka_unit_test(test_r3)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
