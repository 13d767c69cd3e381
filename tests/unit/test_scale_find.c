/* How scales are found: the closed form against what must come out for known energies, against
 * perturbations of its answer, and in any order of windows; the objective of the norms against a
 * plain double of itself and its differences, and against cases whose optimum is known. */
#include "base/gemm.h"
#include "pipeline/learn/scale_closed.h"
#include "pipeline/learn/scale_norm.h"
#include "tests/unit/small_model.h"

static llama_config some_config(void) {
    return (llama_config){
        .hidden = 32, .intermediate = 40, .layers = 3, .heads = 6, .kv_heads = 2, .head_dim = 8};
}

static const scale_places places = {
    .of = {HOOK_PLACES, HOOK_PLACES, HOOK_O_IN, HOOK_KEY, HOOK_DOWN_IN}};

/* Rows whose channel j has energy a_j^2 in every token, with signs. */
static float *signed_rows(const double *a, int64_t n, int64_t tokens) {
    float *v = room(n * tokens, sizeof *v);
    for (int64_t i = 0; i < n * tokens; i++)
        v[i] = (float)(a[i % n] * rng_sign(3, RNG_TEST, (uint64_t)i));
    return v;
}

static double *log_normal(int64_t n, double spread) {
    double *v = random_f64(n, spread);
    for (int64_t j = 0; j < n; j++) v[j] = (double)(float)exp(v[j]);
    return v;
}

static void show(scale_moments *m, hook_place place, int64_t width, const double *a,
                 const double *b, int64_t tokens) {
    const llama_hook hook = scale_moments_hook(m);
    assert_true(hook.places >> place & 1u);
    float *x = signed_rows(a, width, tokens), *g = signed_rows(b, width, tokens);
    assert_ok(hook.take(hook.ctx, 2, place, 0, tokens, width, x, g));
    mem_free(x);
    mem_free(g);
}

static double product_of_sums(const double *X, const double *G, const double *s, int64_t n) {
    double a = 0, b = 0;
    for (int64_t j = 0; j < n; j++) {
        a += X[j] / (s[j] * s[j]);
        b += G[j] * s[j] * s[j];
    }
    return a * b;
}

/* X, G: energies of each scale. */
static void check_best(const double *s, const double *X, const double *G, int64_t n) {
    double sum = 0, first = log(s[0]) - 0.25 * log(X[0] / G[0]), worst = 0;
    for (int64_t j = 0; j < n; j++) {
        sum += log(s[j]);
        worst = fmax(worst, fabs(log(s[j]) - 0.25 * log(X[j] / G[j]) - first));
    }
    assert_true(fabs(sum) <= 1e-12 * (double)n && worst <= 1e-7);
    const double best = product_of_sums(X, G, s, n);
    double t = 0;
    for (int64_t j = 0; j < n; j++) t += sqrt(X[j] * G[j]);
    assert_true(fabs(best / (t * t) - 1) <= 1e-7); /* Cauchy and Schwarz met */
    for (int i = 0; i < 20; i++) {
        double *d = random_f64(n, 0.1);
        for (int64_t j = 0; j < n; j++) d[j] = s[j] * exp(d[j]);
        assert_true(product_of_sums(X, G, d, n) > best);
        mem_free(d);
    }
}

static void test_closed(void **state) {
    (void)state;
    const llama_config c = some_config();
    scale_moments *m;
    assert_ok(scale_moments_create(&c, 2, 1, &places, &m));
    double *a = log_normal(48, 0.6), *b = log_normal(48, 0.6), s[48], X[48] = {0}, G[48] = {0};
    show(m, HOOK_DOWN_IN, 40, a, b, 5);
    show(m, HOOK_DOWN_IN, 40, a, b, 9);
    scale_closed(m, SCALE_UD, 2, s);
    for (int j = 0; j < 40; j++) {
        X[j] = a[j] * a[j];
        G[j] = b[j] * b[j];
    }
    check_best(s, X, G, 40);

    memset(X, 0, sizeof X);
    memset(G, 0, sizeof G);
    show(m, HOOK_O_IN, 48, a, b, 7); /* three query heads share the scales of a KV head */
    scale_closed(m, SCALE_VO, 2, s);
    for (int j = 0; j < 48; j++) {
        X[j / 24 * 8 + j % 8] += a[j] * a[j];
        G[j / 24 * 8 + j % 8] += b[j] * b[j];
    }
    check_best(s, X, G, 16);

    show(m, HOOK_KEY, 16, a, b, 7); /* pairs i, i + 4 of a head */
    scale_closed(m, SCALE_QK, 2, s);
    double half[8], Xp[8], Gp[8];
    for (int j = 0; j < 8; j++) {
        const int at = j / 4 * 8 + j % 4;
        assert_true(s[at] == s[at + 4]);
        half[j] = s[at];
        Xp[j] = a[at] * a[at] + a[at + 4] * a[at + 4];
        Gp[j] = b[at] * b[at] + b[at + 4] * b[at + 4];
    }
    check_best(half, Xp, Gp, 8);
    scale_moments_destroy(&m);
    mem_free(a);
    mem_free(b);
}

/* Sums are exact: the order of windows is not seen. Ends of the range; nothing at all. */
static void test_order_and_ends(void **state) {
    (void)state;
    const llama_config c = some_config();
    enum { WINDOWS = 6, TOKENS = 11, N = 40 };
    double *x[WINDOWS], *g[WINDOWS], s[2][N], ones[N];
    for (int w = 0; w < WINDOWS; w++) {
        x[w] = log_normal(N, 2);
        g[w] = log_normal(N, 2);
    }
    for (int way = 0; way < 2; way++) {
        scale_moments *m;
        assert_ok(scale_moments_create(&c, 2, 1, &places, &m));
        for (int w = 0; w < WINDOWS; w++) {
            const int at = way ? (w * 5 + 3) % WINDOWS : w;
            show(m, HOOK_DOWN_IN, N, x[at], g[at], TOKENS);
        }
        scale_closed(m, SCALE_UD, 2, s[way]);
        scale_moments_destroy(&m);
    }
    assert_memory_equal(s[0], s[1], sizeof s[0]);
    scale_moments *m;
    assert_ok(scale_moments_create(&c, 2, 1, &places, &m));
    scale_closed(m, SCALE_UD, 2, s[0]); /* nothing was seen */
    for (int j = 0; j < N; j++) assert_true(s[0][j] == 1);
    for (int j = 0; j < N; j++) ones[j] = 1;
    x[0][3] = 0; /* a dead channel, a channel without gradient */
    g[0][7] = 0;
    show(m, HOOK_DOWN_IN, N, x[0], ones, TOKENS);
    show(m, HOOK_DOWN_IN, N, ones, g[0], TOKENS);
    scale_closed(m, SCALE_UD, 2, s[0]);
    for (int j = 0; j < N; j++) assert_true(s[0][j] >= 1.0 / 64 && s[0][j] <= 64);
    float bad[N] = {NAN}, good[N] = {1};
    const llama_hook hook = scale_moments_hook(m);
    assert_int_equal(hook.take(hook.ctx, 2, HOOK_DOWN_IN, 0, 1, N, bad, good).code, ERR_NUMERICS);
    assert_int_equal(hook.take(hook.ctx, 2, HOOK_DOWN_IN, 0, 1, N, good, bad).code, ERR_NUMERICS);
    scale_moments_destroy(&m);
    for (int w = 0; w < WINDOWS; w++) {
        mem_free(x[w]);
        mem_free(g[w]);
    }
    double wild[4] = {1e9, 1e-9, 1, NAN};
    scale_settle(wild, 4);
    assert_true(wild[0] == 64 && wild[1] == 1.0 / 64 && wild[2] == wild[3]);
}

/* The norms. */

enum { WIDTH = 24, ROWS = 300 };

typedef struct site_case {
    row_set set;
    float *R;
    double *x, *g, *u, *t; /* what the program sees, in double */
    range_rule rule;
} site_case;

static void make_case(site_case *c, range_rule rule, double spread) {
    *c = (site_case){.rule = rule, .set = {.n = ROWS, .width = WIDTH}};
    double *scale = log_normal(WIDTH, spread), *R = random_orthogonal(WIDTH);
    c->set.x = room(ROWS * WIDTH, sizeof(bf16));
    c->set.g = room(ROWS * WIDTH, sizeof(bf16));
    c->set.w = room(ROWS, sizeof(float));
    c->R = room(WIDTH * WIDTH, sizeof(float));
    c->x = random_f64(ROWS * WIDTH, 1);
    c->g = random_f64(ROWS * WIDTH, 1);
    c->u = room(ROWS * WIDTH, sizeof(double));
    c->t = room(WIDTH, sizeof(double));
    for (int i = 0; i < WIDTH * WIDTH; i++) c->R[i] = (float)R[i];
    for (int r = 0; r < ROWS; r++) {
        double y[WIDTH], h[WIDTH];
        for (int j = 0; j < WIDTH; j++) { /* in the rotated basis channels differ */
            y[j] = c->x[r * WIDTH + j] * scale[j];
            h[j] = c->g[r * WIDTH + j] * scale[(j + 5) % WIDTH];
        }
        c->set.w[r] = (float)exp(0.5 * c->g[r * WIDTH]);
        for (int k = 0; k < WIDTH; k++) {
            double a = 0, b = 0;
            for (int j = 0; j < WIDTH; j++) {
                a += y[j] * (double)c->R[k * WIDTH + j];
                b += h[j] * (double)c->R[k * WIDTH + j];
            }
            c->set.x[r * WIDTH + k] = half_to_bf16((float)a);
            c->set.g[r * WIDTH + k] = half_to_bf16((float)b);
        }
    }
    double sum = 0;
    for (int r = 0; r < ROWS; r++) {
        for (int j = 0; j < WIDTH; j++) {
            double a = 0, b = 0;
            for (int k = 0; k < WIDTH; k++) {
                const double w = (double)c->R[k * WIDTH + j];
                a += (double)half_from_bf16(c->set.x[r * WIDTH + k]) * w;
                b += (double)half_from_bf16(c->set.g[r * WIDTH + k]) * w;
            }
            c->u[r * WIDTH + j] = a;
            c->t[j] += b * b;
        }
    }
    for (int j = 0; j < WIDTH; j++) sum += c->t[j];
    for (int j = 0; j < WIDTH; j++) c->t[j] *= WIDTH / sum;
    mem_free(scale);
    mem_free(R);
}

static void clear_case(site_case *c) {
    void *all[] = {c->set.x, c->set.g, c->set.w, c->R, c->x, c->g, c->u, c->t};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) mem_free(all[i]);
}

/* Channels first .. first + width - 1, which share a range: noise times what is felt of it. */
static double plain_group(const site_case *c, const double *ls, int first, int width) {
    double noise = 0, felt = 0;
    for (int r = 0; r < ROWS; r++) {
        double lo = c->rule.include_zero ? 0 : INFINITY, hi = c->rule.include_zero ? 0 : -INFINITY;
        for (int j = first; j < first + width; j++) {
            const double y = c->u[r * WIDTH + j] * exp(-ls[j]);
            lo = fmin(lo, y);
            hi = fmax(hi, y);
        }
        const double range = c->rule.symmetric ? 2 * fmax(hi, -lo) : hi - lo;
        noise += (double)c->set.w[r] * range * range / ROWS;
    }
    for (int j = first; j < first + width; j++) felt += exp(2 * ls[j]) * c->t[j] / WIDTH;
    return noise * felt;
}

static double plain_objective(const site_case *c, const double *ls) {
    const int width = c->rule.group ? (int)c->rule.group : WIDTH;
    double total = 0;
    for (int first = 0; first < WIDTH; first += width) total += plain_group(c, ls, first, width);
    return log(total);
}

static void check_objective(range_rule rule) {
    site_case c;
    make_case(&c, rule, 0.4);
    scale_norm *s;
    assert_ok(scale_norm_create(WIDTH, ROWS, 4, &s));
    scale_norm_take(s, &c.set, c.R, rule);
    double *ls = random_f64(WIDTH, 0.3), got[WIDTH], sum = 0, worst = 0, size = 0;
    const double value = scale_norm_objective(s, ls, got);
    assert_true(fabs(value - plain_objective(&c, ls)) <= 1e-5);
    for (int j = 0; j < WIDTH; j++) {
        const double h = 1e-6, at = ls[j];
        ls[j] = at + h;
        const double up = plain_objective(&c, ls);
        ls[j] = at - h;
        const double down = plain_objective(&c, ls);
        ls[j] = at;
        worst = fmax(worst, fabs(got[j] - (up - down) / (2 * h)));
        size = fmax(size, fabs(got[j]));
        sum += got[j];
    }
    print_message("objective of a norm, %s: gradient off by %.1g of %.2g\n",
                  rule.symmetric ? "symmetric" : "asymmetric", worst, size);
    assert_true(size > 1e-2 && worst <= 1e-5);
    assert_true(fabs(sum) <= 1e-6); /* the size of s is not seen */

    double scale[WIDTH], before, after, zero[WIDTH] = {0}, mean = 0;
    scale_norm_learn(s, 60, 0.02, scale, &before, &after);
    assert_true(fabs(before - plain_objective(&c, zero)) <= 1e-5);
    for (int j = 0; j < WIDTH; j++) {
        ls[j] = log(scale[j]);
        mean += ls[j];
    }
    assert_true(fabs(mean) <= 1e-12 * WIDTH);
    assert_true(fabs(after - plain_objective(&c, ls)) <= 1e-5);
    print_message("  %.4f -> %.4f\n", before, after);
    assert_true(after < before - 0.1);
    scale_norm_destroy(&s);
    mem_free(ls);
    clear_case(&c);
}

static void test_objective(void **state) {
    (void)state;
    check_objective((range_rule){.include_zero = true});
    check_objective((range_rule){.symmetric = true});
    check_objective((range_rule){.symmetric = true, .group = WIDTH / 4});
}

/* Rows (+-A_j): the range is max A_j / s_j whatever the signs, and what is felt, sum s_j^2 t_j, is
 * least for a given range where all A_j / s_j are equal: s = A, whatever t. */
static void test_known_optimum(void **state) {
    (void)state;
    double *A = log_normal(WIDTH, 0.25), *t = log_normal(WIDTH, 0.5), mean = 0;
    row_set set = {.n = ROWS, .width = WIDTH};
    set.x = room(ROWS * WIDTH, sizeof(bf16));
    set.g = room(ROWS * WIDTH, sizeof(bf16));
    set.w = room(ROWS, sizeof(float));
    for (int i = 0; i < ROWS * WIDTH; i++) {
        const double sign = rng_sign(4, RNG_TEST, (uint64_t)i);
        set.x[i] = half_to_bf16((float)(sign * A[i % WIDTH]));
        set.g[i] = half_to_bf16((float)(sign * t[i % WIDTH]));
        set.w[i / WIDTH] = 1;
    }
    scale_norm *s;
    double scale[WIDTH], before, after;
    assert_ok(scale_norm_create(WIDTH, ROWS, 4, &s));
    scale_norm_take(s, &set, NULL, (range_rule){.symmetric = true});
    scale_norm_learn(s, 400, 0.005, scale, &before, &after);
    for (int j = 0; j < WIDTH; j++) mean += log(A[j]) / WIDTH;
    for (int j = 0; j < WIDTH; j++) assert_true(fabs(log(scale[j]) - (log(A[j]) - mean)) <= 0.05);
    scale_norm_destroy(&s);
    void *all[] = {A, t, set.x, set.g, set.w};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) mem_free(all[i]);
}

int main(void) {
    gemm_init(1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_closed), cmocka_unit_test(test_order_and_ends),
        cmocka_unit_test(test_objective), cmocka_unit_test(test_known_optimum)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
