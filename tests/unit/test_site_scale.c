/* The gradient of scales, dL / d log s. A site alone against the long way, where scales are fused
 * into the weights and biases on both sides, the chain rule goes through these and through the
 * range of the quantizer, and s gets what it has of the fused weights' gradients: plain loops in
 * fp64. A whole block, with biases and with norms of heads, against five-point differences of a
 * slow one whose quantizers hold their residuals in steps. One number times all scales of a vector
 * changes nothing: its derivative is 0. */
#include "base/gemm.h"
#include "base/mem.h"
#include "model/site_scale.h"
#include "tests/unit/slow_block.h"

#include <omp.h>

/* ---- the long way ---- */

/* u [n] becomes Q(u); dq [n] becomes du with the range followed: q = u + rho step, rho held. */
static void quantize_and_back(const site *s, double *u, double *dq, bool back) {
    const int64_t n = site_range(s);
    const double codes =
        s->quant.symmetric ? pow(2, s->quant.bits - 1) - 1 : pow(2, s->quant.bits) - 1;
    for (int64_t r = 0; r < s->n; r += n) {
        double q[256], d_step = 0;
        int64_t hi = r, lo = r;
        const double step = step_of(&s->quant, s->include_zero, u + r, n);
        fake_quant_rows_f64(&s->quant, s->include_zero, u + r, 1, n, n, q);
        for (int64_t j = r; j < r + n; j++) {
            if (u[j] > u[hi]) hi = j;
            if (u[j] < u[lo]) lo = j;
            if (back) d_step += dq[j] * (q[j - r] - u[j]) / step;
        }
        if (back) {
            const double clips[] = {(double)s->quant.clip[0], (double)s->quant.clip[1]};
            const bool about_zero = s->include_zero || s->quant.symmetric;
            const double mean = (clips[0] + clips[1]) / 2, /* of a range clipped about its middle */
                a = about_zero ? clips[0] : mean, b = about_zero ? clips[1] : mean;
            const bool at_hi = !s->quant.symmetric || b * u[hi] >= -a * u[lo];
            const bool at_lo = !s->quant.symmetric || !at_hi;
            if (at_hi && (u[hi] > 0 || !s->include_zero)) dq[hi] += b * d_step / codes;
            if (at_lo && (u[lo] < 0 || !s->include_zero)) dq[lo] -= a * d_step / codes;
        } else {
            memcpy(u + r, q, (size_t)n * sizeof *u);
        }
    }
}

/* What stands about a site: x = h A^T + bias, y = x^ W^T, L = sum sin(y). */
typedef struct surroundings {
    int64_t before, after;
    double *h, *A, *bias, *W;
} surroundings;

/* v [rows, cols] with its rows, then its columns, times these powers. */
static void scale_sides(double *v, int64_t rows, int64_t cols, const double *by_row,
                        double row_power, const double *by_col, double col_power) {
    for (int64_t i = 0; i < rows * cols; i++)
        v[i] *= (by_row ? pow(by_row[i / cols], row_power) : 1) *
                (by_col ? pow(by_col[i % cols], col_power) : 1);
}

static double *copy_of(const double *v, int64_t n) {
    double *to = room(n, sizeof *to);
    memcpy(to, v, (size_t)n * sizeof *v);
    return to;
}

/* dS [n] of each channel of the row, from the gradients of the fused weights
 *     A1 = Sa^-1 R^T Sb^-1 A,  b1 = Sa^-1 R^T Sb^-1 bias,  W1 = W Sb R Sa. */
static void long_way(const site *s, const double *B, const surroundings *e, double *dS) {
    const int64_t n = s->n, rows = TOKENS, k = e->before, m = e->after;
    double *b = scales_of_row(s, true), *a = scales_of_row(s, false);
    double *A0 = copy_of(e->A, n * k), *b0 = copy_of(e->bias, n), *W0 = copy_of(e->W, m * n);
    scale_sides(A0, n, k, b, -1, NULL, 0);
    scale_sides(b0, n, 1, b, -1, NULL, 0);
    scale_sides(W0, m, n, NULL, 0, b, 1);
    double *A1 = times(true, false, n, k, n, B, A0), *b1 = times(true, false, n, 1, n, B, b0),
           *W1 = times(false, false, m, n, n, W0, B);
    scale_sides(A1, n, k, a, -1, NULL, 0);
    scale_sides(b1, n, 1, a, -1, NULL, 0);
    scale_sides(W1, m, n, NULL, 0, a, 1);
    double *u = times(false, true, rows, n, k, e->h, A1);
    for (int64_t i = 0; i < rows * n; i++) u[i] += b1[i % n];
    double *q = copy_of(u, rows * n);
    for (int64_t i = 0; i < rows; i++) quantize_and_back(s, q + i * n, NULL, false);
    double *y = times(false, true, rows, m, n, q, W1);
    for (int64_t i = 0; i < rows * m; i++) y[i] = cos(y[i]);
    double *du = times(false, false, rows, n, m, y, W1);
    for (int64_t i = 0; i < rows; i++) quantize_and_back(s, u + i * n, du + i * n, true);
    double *dW1 = times(true, false, m, n, rows, y, q),
           *dA1 = times(true, false, n, k, rows, du, e->h);
    double *db1 = room(n, sizeof *db1);
    for (int64_t i = 0; i < rows * n; i++) db1[i % n] += du[i];
    if (s->after) {
        for (int64_t j = 0; j < n; j++) {
            for (int64_t i = 0; i < m; i++) dS[j] += dW1[i * n + j] * W1[i * n + j];
            dS[j] -= dot_f64(dA1 + j * k, A1 + j * k, k) + db1[j] * b1[j];
        }
    } else { /* through R: dW0 = dW1 R^T, dA0 = R dA1 */
        double *dW0 = times(false, true, m, n, n, dW1, B),
               *dA0 = times(false, false, n, k, n, B, dA1),
               *db0 = times(false, false, n, 1, n, B, db1);
        for (int64_t j = 0; j < n; j++) {
            for (int64_t i = 0; i < m; i++) dS[j] += dW0[i * n + j] * W0[i * n + j];
            dS[j] -= dot_f64(dA0 + j * k, A0 + j * k, k) + db0[j] * b0[j];
        }
        void *some[] = {dW0, dA0, db0};
        for (size_t i = 0; i < 3; i++) mem_free(some[i]);
    }
    void *all[] = {b, a, A0, b0, W0, A1, b1, W1, u, q, y, du, dW1, dA1, db1};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) mem_free(all[i]);
}

/* Channels of a row that share a scale are added up. */
static double *folded(const site *s, double *dS) {
    double *to = room(s->n, sizeof *to);
    for (int64_t j = 0; j < s->n; j++)
        to[j / s->segment / s->before_share * s->segment + j % s->segment] += dS[j];
    mem_free(dS);
    return to;
}

static void check_site(const site *s, double *const *R) {
    const int64_t n = s->n;
    surroundings e = {.before = 30, .after = 40};
    e.h = random_f64(TOKENS * e.before, 1);
    e.A = random_f64(n * e.before, 0.3);
    e.bias = random_f64(n, 0.5);
    e.W = random_f64(e.after * n, 0.2);
    double *B = block_diagonal(s, R), *want = room(n, sizeof *want), *got = room(n, sizeof *got);
    long_way(s, B, &e, want);
    if (s->before) want = folded(s, want);
    double *x = times(false, true, TOKENS, n, e.before, e.h, e.A);
    for (int64_t i = 0; i < TOKENS * n; i++) x[i] += e.bias[i % n];
    double *x_in = copy_of(x, TOKENS * n);
    const site_saved saved = {.error = room(TOKENS * n, sizeof(double)),
                              .moved = room(TOKENS * n, sizeof(double)),
                              .ends = room(TOKENS * site_ranges(s), sizeof(site_ends_f64))};
    const uint64_t each = 8 * (uint64_t)(n + site_chunk_reals(s));
    const site_work work = {.compute = COMPUTE_F64,
                            .panel = room(5 * n, sizeof(double)),
                            .panel_room = 5 * n, /* several panels */
                            .slopes = room(2 * TOKENS * site_ranges(s), sizeof(double)),
                            .threads = room((int64_t)each * gemm_threads(), 1),
                            .thread_bytes = each};
    site_save_f64(s, x, TOKENS, NULL, &saved, &work);
    double *y = times(false, true, TOKENS, e.after, n, x, e.W);
    for (int64_t i = 0; i < TOKENS * e.after; i++) y[i] = cos(y[i]);
    double *g = times(false, false, TOKENS, n, e.after, y, e.W);
    site_scale_backward_f64(s, g, TOKENS, x_in, &saved, got, &work);
    double off = 0, size = 0, sum = 0, total = 0;
    for (int64_t j = 0; j < n / (s->before ? s->before_share : 1); j++) {
        off = fmax(off, fabs(got[j] - want[j]));
        size = fmax(size, fabs(want[j]));
        sum += got[j];
        total += fabs(got[j]);
    }
    print_message("n %d, scales %s R, %d bits%s: off by %.2g, all together %.2g\n", (int)n,
                  s->before ? "before" : "after", s->quant.bits,
                  s->quant.symmetric ? " symmetric" : "", off / size, fabs(sum) / total);
    assert_true(size > 1e-3 && off <= 1e-10 * size);
    assert_true(fabs(sum) <= 1e-12 * total);
    void *all[] = {e.h,         e.A,        e.bias,     e.W,         B,           want,
                   got,         x,          x_in,       y,           g,           saved.error,
                   saved.moved, saved.ends, work.panel, work.slopes, work.threads};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) mem_free(all[i]);
}

static void test_sites(void **state) {
    (void)state;
    const llama_config c = some_config();
    double *R1 = random_orthogonal(HIDDEN), *R2[2] = {random_orthogonal(8), random_orthogonal(8)},
           *R4 = random_orthogonal(80);
    rotation *r1 = dense(R1, HIDDEN), *r2[2] = {dense(R2[0], 8), dense(R2[1], 8)},
             *r4 = dense(R4, 80);
    const rotation *layers[4] = {r2[0], r2[1], r2[0], r2[1]};
    scale_set *scales = random_scales(&c, 0.7);
    for (int k = 0; k < 12; k++) {
        llama_sites s = llama_sites_none();
        s.scales = scales;
        s.act.bits = s.kv.bits = k % 3 == 0 ? 4 : k % 3 == 1 ? 3 : 8;
        s.act.symmetric = s.kv.symmetric = k % 2;
        s.act.group = k == 2 || k == 5 ? 16 : 0;
        set_clips(&s, k >= 6);
        s.o_per_head = k % 4 < 2;
        s.r2_per_head = k % 5 < 2;
        s.R1 = r1;
        s.R2 = layers;
        s.R3_heads = layers;
        s.R4 = r4;
        const site sites[] = {sites_input(&s, &c, 0, NORM_ATTN),
                              sites_input(&s, &c, 1, NORM_MLP),
                              sites_values(&s, &c, 0),
                              sites_output(&s, &c, 0),
                              sites_keys(&s, &c, 0),
                              sites_down(&s, &c, 1)};
        double *const *of[] = {&R1, &R1, R2, R2, R2, &R4};
        for (int i = 0; i < 6; i++) check_site(&sites[i], of[i]);
    }
    scale_set_destroy(&scales);
    rotation *all[] = {r1, r2[0], r2[1], r4};
    for (int i = 0; i < 4; i++) rotation_destroy(&all[i]);
    double *dense_all[] = {R1, R2[0], R2[1], R4};
    for (int i = 0; i < 4; i++) mem_free(dense_all[i]);
}

/* ---- a whole block ---- */

enum { ALL_KINDS = (1 << SCALE_KINDS) - 1 };

typedef struct gradients {
    double *g, *R1, *R2, *s[SCALE_KINDS];
} gradients;

static const scale_vector *vector_of(const block_case *b, int kind) {
    return scale_set_get(b->sites.scales, (scale_kind)kind, 0);
}

static gradients take_gradients(block_case *b, int64_t slice) {
    gradients o = {.g = room(TOKENS * HIDDEN, sizeof(double)),
                   .R1 = room(HIDDEN * HIDDEN, sizeof(double)),
                   .R2 = room(128, sizeof(double))};
    rotation_grads to = {.R1 = o.R1, .R2 = o.R2};
    for (int k = 0; k < SCALE_KINDS; k++) {
        o.s[k] = room(vector_of(b, k)->n, sizeof(double));
        if (b->scales) to.scales[k] = o.s[k];
    }
    fast_gradients(b, slice, o.g, &to);
    return o;
}

static void free_gradients(gradients *o) {
    void *all[] = {o->g, o->R1, o->R2};
    for (int i = 0; i < 3; i++) mem_free(all[i]);
    for (int k = 0; k < SCALE_KINDS; k++) mem_free(o->s[k]);
}

/* The slow block with the scales of a kind moved by t along v in their logarithms. */
static double moved_by(block_case *b, int kind, const double *v, double t) {
    const scale_vector *at = vector_of(b, kind);
    double *was = copy_of(at->s, at->n);
    for (int64_t j = 0; j < at->n; j++) at->s[j] *= exp(t * v[j]);
    const double y = slow_block(b, b->x);
    memcpy(at->s, was, (size_t)at->n * sizeof *was);
    mem_free(was);
    return y;
}

static void check_differences(block_case *b) {
    const double h = 2e-6; /* small: rarely over a change of the ends */
    gradients got = take_gradients(b, TOKENS);
    for (int k = 0; k < SCALE_KINDS; k++) {
        const int64_t n = vector_of(b, k)->n;
        double worst = 0, sum = 0, total = 0;
        for (int i = 0; i < 6; i++) {
            double *v = random_f64(n, 0.1);
            const double want = (8 * (moved_by(b, k, v, h) - moved_by(b, k, v, -h)) -
                                 (moved_by(b, k, v, 2 * h) - moved_by(b, k, v, -2 * h))) /
                                (12 * h);
            const double size = 0.1 * sqrt(dot_f64(got.s[k], got.s[k], n));
            assert_true(size > 1e-3);
            worst = fmax(worst, fabs(dot_f64(got.s[k], v, n) - want) / (fabs(want) + size));
            mem_free(v);
        }
        for (int64_t j = 0; j < n; j++) {
            sum += got.s[k][j];
            total += fabs(got.s[k][j]);
        }
        print_message("kind %d%s: differences %.1g, all together %.1g\n", k,
                      b->m.cfg.qk_norm ? ", norms of heads" : "", worst, fabs(sum) / total);
        assert_true(worst <= 1e-6);
        /* A range follows a factor of all scales, so that it changes nothing; the steps of FP8 do
         * not follow. */
        const bool fixed = b->sites.kv.rule == AQUANT_FP8 && (k == SCALE_VO || k == SCALE_QK);
        if (!fixed) assert_true(fabs(sum) <= 1e-11 * total);
    }
    free_gradients(&got);
}

static void check_cuts(block_case *b) {
    const int threads = omp_get_max_threads();
    gradients one = take_gradients(b, TOKENS), sliced = take_gradients(b, 7);
    omp_set_num_threads(threads == 1 ? 3 : 1);
    gradients other = take_gradients(b, TOKENS);
    omp_set_num_threads(threads);
    for (int k = 0; k < SCALE_KINDS; k++) {
        const int64_t n = vector_of(b, k)->n;
        assert_memory_equal(one.s[k], other.s[k], (size_t)n * sizeof(double));
        for (int64_t j = 0; j < n; j++)
            assert_true(fabs(one.s[k][j] - sliced.s[k][j]) <= 1e-11 * (1 + fabs(one.s[k][j])));
    }
    free_gradients(&one);
    free_gradients(&sliced);
    free_gradients(&other);
}

/* Wanting gradients of scales leaves the others as they are; with the range held for these, that of
 * the last scales on the way forward, which no other range stands behind, is the one through it. */
static void check_detached(block_case *b) {
    b->through = true;
    gradients through = take_gradients(b, TOKENS);
    b->through = false;
    gradients detached = take_gradients(b, TOKENS);
    b->scales = 0;
    gradients plain = take_gradients(b, TOKENS);
    b->scales = ALL_KINDS;
    b->through = true;
    assert_memory_equal(detached.g, plain.g, TOKENS * HIDDEN * sizeof(double));
    assert_memory_equal(detached.R1, plain.R1, HIDDEN * HIDDEN * sizeof(double));
    assert_memory_equal(detached.R2, plain.R2, 128 * sizeof(double));
    assert_memory_equal(detached.s[SCALE_UD], through.s[SCALE_UD], 80 * sizeof(double));
    assert_true(memcmp(detached.R1, through.R1, HIDDEN * HIDDEN * sizeof(double)) != 0);
    free_gradients(&through);
    free_gradients(&detached);
    free_gradients(&plain);
}

static void test_block(void **state) {
    (void)state;
    block_case *b = block_case_create();
    scale_set *scales = random_scales(&b->m.cfg, 0.5);
    b->through = true;
    b->scales = ALL_KINDS;
    for (int k = 0; k < 6; k++) {
        b->sites = llama_sites_none();
        b->sites.scales = scales;
        if (k == 4) block_case_norm_heads(b);
        b->sites.act.bits = b->sites.kv.bits = k % 3 == 2 ? 6 : 4;
        b->sites.act.symmetric = b->sites.kv.symmetric = k % 2;
        set_clips(&b->sites, k / 2 % 2);
        b->sites.act.group = k == 2 || k == 5 ? 16 : 0;
        b->sites.o_per_head = k % 4 != 1;
        b->sites.r2_per_head = k >= 3;
        check_differences(b);
    }
    b->sites.kv = fp8_cache(0.00390625f); /* scales move what is rounded, but no range of it */
    check_differences(b);
    check_cuts(b);
    check_detached(b);
    scale_set_destroy(&scales);
    block_case_destroy(b);
}

int main(void) {
    gemm_init(1);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sites), cmocka_unit_test(test_block)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
