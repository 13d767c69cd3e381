/* The gradient of a site. Detached: the skew part of g^T e R^T against the long way, where R is
 * multiplied into the weights on both sides and the chain rule goes through all of them, written
 * here in plain loops. Both readings of the range: a slow forward of a whole block in double that
 * holds what the quantizer rounded (the residual in steps, or the error itself) while x and the
 * rotations move, and five-point differences along random directions of the orthogonal group. */
#include "base/gemm.h"
#include "base/mem.h"
#include "base/rng.h"
#include "model/backward.h"
#include "model/site_backward.h"
#include "rotations/rotation.h"
#include "tests/unit/slow_block.h"

#include <omp.h>

/* The long way. */

static void slow_quantize(const site *s, double *u) {
    const int64_t n = s->range_per_segment ? s->segment : s->n;
    for (int64_t r = 0; r < s->n; r += n) {
        double lo = u[r], hi = u[r];
        for (int64_t j = r; j < r + n; j++) {
            lo = fmin(lo, u[j]);
            hi = fmax(hi, u[j]);
        }
        if (s->include_zero) {
            lo = fmin(lo, 0);
            hi = fmax(hi, 0);
        }
        const double top = pow(2, s->quant.bits) - 1, half = pow(2, s->quant.bits - 1);
        clip_range(&s->quant, s->include_zero, &lo, &hi);
        const double step = s->quant.symmetric ? fmax(hi, -lo) / (half - 1) : (hi - lo) / top;
        const double zero = s->quant.symmetric ? half : rint(-lo / step);
        for (int64_t j = r; j < r + n; j++)
            u[j] = (fmin(fmax(rint(u[j] / step) + zero, 0), top) - zero) * step;
    }
}

/* Sums of the diagonal blocks of a gradient of the block-diagonal matrix, one per rotation. */
static void fold_blocks(const site *s, const double *B, double *out) {
    const int64_t d = s->segment;
    for (int64_t i = 0; i < s->n / d; i++) {
        for (int64_t a = 0; a < d; a++) {
            for (int64_t b = 0; b < d; b++)
                out[(i / s->share * d + a) * d + b] += B[(i * d + a) * s->n + i * d + b];
        }
    }
}

/* (G R^T - R G^T) / 2. */
static void skew_part(const double *G, const double *R, int64_t n, double *out) {
    double *p = times(false, true, n, n, n, G, R);
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < n; j++) out[i * n + j] = (p[i * n + j] - p[j * n + i]) / 2;
    }
    mem_free(p);
}

/* a [m, n] with its rows, then its columns, times or over v. */
static void scale_sides(double *a, int64_t m, int64_t n, const double *rows, const double *cols) {
    for (int64_t i = 0; i < m * n; i++) a[i] *= (rows ? rows[i / n] : 1) * (cols ? cols[i % n] : 1);
}

/* What stands before and after a site: x = h A^T, y = x^ W^T, L = sum sin(y). The long way has
 * A' = S_after^-1 R^T S_before^-1 A, W' = W S_before R S_after, u = h A'^T, q = Q(u), y = q W'^T.
 */
static void long_way(const site *s, const double *B, int64_t rows, int64_t before, int64_t after,
                     const double *h, const double *A_in, const double *W_in, double *dR) {
    const int64_t n = s->n;
    double *b = scales_of_row(s, true), *a = scales_of_row(s, false);
    double *over_b = room(n, sizeof *b), *over_a = room(n, sizeof *a);
    double *A = room(n * before, sizeof *A), *W = room(after * n, sizeof *W);
    for (int64_t i = 0; i < n; i++) {
        over_b[i] = 1 / b[i];
        over_a[i] = 1 / a[i];
    }
    memcpy(A, A_in, (size_t)(n * before) * sizeof *A);
    memcpy(W, W_in, (size_t)(after * n) * sizeof *W);
    scale_sides(A, n, before, over_b, NULL);
    scale_sides(W, after, n, NULL, b);
    double *A1 = times(true, false, n, before, n, B, A),
           *W1 = times(false, false, after, n, n, W, B);
    scale_sides(A1, n, before, over_a, NULL);
    scale_sides(W1, after, n, NULL, a);
    double *u = times(false, true, rows, n, before, h, A1);
    for (int64_t i = 0; i < rows; i++) slow_quantize(s, u + i * n);
    double *y = times(false, true, rows, after, n, u, W1);
    for (int64_t i = 0; i < rows * after; i++) y[i] = cos(y[i]);
    double *dq = times(false, false, rows, n, after, y, W1); /* straight through: du = dq */
    double *dW1 = times(true, false, after, n, rows, y, u);
    double *dA1 = times(true, false, n, before, rows, dq, h);
    double *from_w = times(true, false, n, n, after, W, dW1);
    double *from_a = times(false, true, n, n, before, A, dA1);
    scale_sides(from_w, n, n, NULL, a);
    scale_sides(from_a, n, n, NULL, over_a);
    for (int64_t i = 0; i < n * n; i++) from_w[i] += from_a[i];
    fold_blocks(s, from_w, dR);
    double *all[] = {A1, W1, u, y, dq, dW1, dA1, from_w, from_a, a, b, over_a, over_b, A, W};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) mem_free(all[i]);
}

static void check_identity(const site *s, double *const *R) {
    const int64_t n = s->n, d = s->segment, count = site_rotations(s), before = 30, after = 40;
    double *h = random_f64(TOKENS * before, 1), *A = random_f64(n * before, 0.3);
    double *W = random_f64(after * n, 0.2), *B = block_diagonal(s, R);
    double *want = room(count * d * d, sizeof *want), *got = room(count * d * d, sizeof *got);
    long_way(s, B, TOKENS, before, after, h, A, W, want);

    double *x = times(false, true, TOKENS, n, before, h, A);
    site_saved saved = {.error = room(TOKENS * n, sizeof(double))};
    const uint64_t each = (uint64_t)site_chunk_reals(s) * sizeof(double) + 8 * (uint64_t)n;
    const site_work work = {.compute = COMPUTE_F64,
                            .panel = room(TOKENS * n, sizeof(double)),
                            .panel_room = TOKENS * n,
                            .parts = room(site_parts_room(s, TOKENS), sizeof(double)),
                            .threads = room((int64_t)each * gemm_threads(), 1),
                            .thread_bytes = each};
    site_save_f64(s, x, TOKENS, NULL, &saved, &work);
    double *y = times(false, true, TOKENS, after, n, x, W);
    for (int64_t i = 0; i < TOKENS * after; i++) y[i] = cos(y[i]);
    double *g = times(false, false, TOKENS, n, after, y, W);
    site_backward_f64(s, g, TOKENS, NULL, &saved, got, &work);

    for (int64_t r = 0; r < count; r++) {
        skew_part(want + r * d * d, R[r], d, want + r * d * d);
        skew_part(got + r * d * d, R[r], d, got + r * d * d);
    }
    double off = 0, size = 0;
    for (int64_t i = 0; i < count * d * d; i++) {
        off = fmax(off, fabs(got[i] - want[i]));
        size = fmax(size, fabs(want[i]));
    }
    print_message("n %d, %d rotations of %d, %d bits%s%s: skew part off by %.2g\n", (int)n,
                  (int)count, (int)d, s->quant.bits, s->quant.symmetric ? " symmetric" : "",
                  s->before || s->after ? ", scales" : "", off / size);
    assert_true(size > 1e-3 && off <= 1e-12 * size);
    void *all[] = {h, A, W, B, want, got, x, saved.error, work.panel, work.parts, work.threads,
                   y, g};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) mem_free(all[i]);
}

static void test_identity(void **state) {
    (void)state;
    const llama_config c = some_config();
    double *R1 = random_orthogonal(HIDDEN), *R2[2] = {random_orthogonal(8), random_orthogonal(8)};
    rotation *r1 = dense(R1, HIDDEN), *r2[2] = {dense(R2[0], 8), dense(R2[1], 8)};
    const rotation *layers[4] = {r2[0], r2[1], r2[0], r2[1]};
    scale_set *scales = random_scales(&c, 0.7);
    for (int k = 0; k < 24; k++) {
        llama_sites s = llama_sites_none();
        if (k >= 12) s.scales = scales;
        s.act.bits = s.kv.bits = k % 3 == 0 ? 4 : k % 3 == 1 ? 3 : 8;
        s.act.symmetric = s.kv.symmetric = k % 2;
        set_clips(&s, k >= 6);
        s.o_per_head = k % 4 < 2;
        s.r2_per_head = k % 5 < 2;
        s.R1 = r1;
        s.R2 = layers;
        s.R3_heads = layers; /* a matrix a KV head, as R3 from keys is */
        const site sites[] = {sites_input(&s, &c, 0, NORM_ATTN), sites_values(&s, &c, 0),
                              sites_output(&s, &c, 0), sites_keys(&s, &c, 0)};
        check_identity(&sites[0], &R1);
        check_identity(&sites[1], R2);
        check_identity(&sites[2], R2);
        check_identity(&sites[3], R2);
    }
    llama_config one = c; /* a single segment goes another way */
    one.kv_heads = 1;
    scale_set *few = random_scales(&one, 0.7);
    const llama_sites s = {.act = {.bits = 4, .clip = {1, 1}},
                           .kv = {.bits = 4, .clip = {1, 1}},
                           .R2 = layers,
                           .scales = few};
    const site values = sites_values(&s, &one, 1);
    check_identity(&values, &R2[1]);
    scale_set_destroy(&few);
    scale_set_destroy(&scales);
    mem_free(R1);
    rotation_destroy(&r1);
    for (int i = 0; i < 2; i++) {
        mem_free(R2[i]);
        rotation_destroy(&r2[i]);
    }
}

/* R <- e^(t S) R for a skew S, by the series. */
static void move_rotation(const double *S, int64_t n, double t, const double *from, double *to) {
    double *term = room(n * n, sizeof *term);
    memcpy(to, from, (size_t)(n * n) * sizeof *to);
    memcpy(term, from, (size_t)(n * n) * sizeof *term);
    for (int k = 1; k < 8; k++) {
        double *next = times(false, false, n, n, n, S, term);
        for (int64_t i = 0; i < n * n; i++) {
            term[i] = next[i] * t / k;
            to[i] += term[i];
        }
        mem_free(next);
    }
    mem_free(term);
}

static double *random_skew(int64_t n) {
    double *a = random_f64(n * n, 1), *s = room(n * n, sizeof *s);
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < n; j++)
            s[i * n + j] = (a[i * n + j] - a[j * n + i]) / sqrt(2.0 * (double)n);
    }
    mem_free(a);
    return s;
}

/* <dR, S R>. */
static double along_skew(const double *dR, const double *S, const double *R, int64_t n) {
    double *m = times(false, false, n, n, n, S, R);
    const double sum = dot_f64(dR, m, n * n);
    mem_free(m);
    return sum;
}

/* Moves x, R1 or R2 by t along v. */
typedef struct direction {
    block_case *b;
    int what; /* 0: x, 1: R1, 2: R2 (of head 0), 3: R2 of head 1 */
    double *v;
} direction;

static double at_distance(const direction *dir, double t) {
    block_case *b = dir->b;
    if (dir->what == 0) {
        double x[TOKENS * HIDDEN];
        for (int64_t i = 0; i < TOKENS * HIDDEN; i++) x[i] = b->x[i] + t * dir->v[i];
        return slow_block(b, x);
    }
    double **slot = dir->what == 1 ? &b->R1 : &b->R2[dir->what - 2], *old = *slot;
    const int64_t n = dir->what == 1 ? HIDDEN : 8;
    *slot = room(n * n, sizeof **slot);
    move_rotation(dir->v, n, t, old, *slot);
    const double y = slow_block(b, b->x);
    mem_free(*slot);
    *slot = old;
    return y;
}

static double five_point(const direction *dir, double h) {
    return (8 * (at_distance(dir, h) - at_distance(dir, -h)) -
            (at_distance(dir, 2 * h) - at_distance(dir, -2 * h))) /
           (12 * h);
}

static void check_directions(block_case *b, int count) {
    double *g = room(TOKENS * HIDDEN, sizeof *g), *G1 = room(HIDDEN * HIDDEN, sizeof *G1);
    double *G2 = room(2 * 64, sizeof *G2);
    fast_gradients(b, TOKENS, g, &(rotation_grads){.R1 = G1, .R2 = G2});
    double worst[4] = {0};
    for (int i = 0; i < count; i++) {
        direction dir = {.b = b, .what = i % (b->sites.r2_per_head ? 4 : 3)};
        if (b->plain_r1 && dir.what == 1) continue;
        double got, size;
        if (dir.what == 0) {
            dir.v = random_f64(TOKENS * HIDDEN, 0.05);
            got = dot_f64(g, dir.v, TOKENS * HIDDEN);
            size = 0.05 * sqrt(dot_f64(g, g, TOKENS * HIDDEN));
        } else {
            const int64_t n = dir.what == 1 ? HIDDEN : 8;
            const double *G = dir.what == 1 ? G1 : G2 + (dir.what - 2) * 64;
            const double *R = dir.what == 1 ? b->R1 : b->R2[dir.what - 2];
            dir.v = random_skew(n);
            got = along_skew(G, dir.v, R, n);
            size = 1e-1 * sqrt(dot_f64(G, G, n * n));
        }
        const double want = five_point(&dir, 2e-6); /* small: rarely over a change of the ends */
        const double off = fabs(got - want);        /* where nothing depends on it both are zero */
        if (!(off == 0)) worst[dir.what] = fmax(worst[dir.what], off / (fabs(want) + size));
        mem_free(dir.v);
    }
    print_message(
        "%s, %d bits%s%s%s%s%s: x %.1g, R1 %.1g, R2 %.1g\n", b->through ? "through" : "detached",
        b->sites.act.bits, b->sites.act.symmetric ? ", symmetric" : "",
        b->sites.o_per_head ? "" : ", o per token", b->sites.r2_per_head ? ", R2 per head" : "",
        b->sites.scales ? ", scales" : "", b->sites.act.group ? ", groups" : "", worst[0], worst[1],
        fmax(worst[2], worst[3]));
    for (int i = 0; i < 4; i++) assert_true(worst[i] <= 1e-6);

    double *g2 = room(TOKENS * HIDDEN, sizeof *g), *H1 = room(HIDDEN * HIDDEN, sizeof *G1);
    double *H2 = room(2 * 64, sizeof *G2);
    const int threads = omp_get_max_threads();
    omp_set_num_threads(threads == 1 ? 3 : 1);
    fast_gradients(b, TOKENS, g2, &(rotation_grads){.R1 = H1, .R2 = H2});
    assert_memory_equal(g, g2, TOKENS * HIDDEN * sizeof *g);
    assert_memory_equal(G1, H1, HIDDEN * HIDDEN * sizeof *g);
    assert_memory_equal(G2, H2, 2 * 64 * sizeof *g);
    omp_set_num_threads(threads);
    memset(H1, 0, HIDDEN * HIDDEN * sizeof *H1);
    memset(H2, 0, 2 * 64 * sizeof *H2);
    fast_gradients(b, 7, g2, &(rotation_grads){.R1 = H1, .R2 = H2});
    for (int64_t i = 0; i < HIDDEN * HIDDEN; i++)
        assert_true(fabs(G1[i] - H1[i]) <= 1e-11 * (1 + fabs(G1[i])));
    for (int64_t i = 0; i < 128; i++) assert_true(fabs(G2[i] - H2[i]) <= 1e-11 * (1 + fabs(G2[i])));
    for (int64_t i = 0; i < TOKENS * HIDDEN; i++)
        assert_true(fabs(g[i] - g2[i]) <= 1e-11 * (1 + fabs(g[i])));
    void *all[] = {g, G1, G2, g2, H1, H2};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) mem_free(all[i]);
}

static void test_range(void **state) {
    (void)state;
    block_case *b = block_case_create();
    scale_set *scales = random_scales(&b->m.cfg, 0.5);
    for (int i = 0; i < 18; i++) {
        const int k = i % 8;
        b->sites = llama_sites_none();
        if (i >= 8) b->sites.scales = scales;
        if (i == 16) block_case_norm_heads(b); /* the rest with them */
        b->sites.act.bits = b->sites.kv.bits = k % 3 == 2 ? 6 : 4;
        b->sites.act.symmetric = b->sites.kv.symmetric = k / 2 % 2;
        set_clips(&b->sites, k >= 4);
        b->sites.act.group = k == 2 || k == 4 ? 16 : 0; /* parts of what R1 and R4 mix; two heads */
        b->sites.o_per_head = k % 4 != 1;
        b->sites.r2_per_head = k >= 4;
        b->through = k % 2 == 0 || k == 5;
        check_directions(b, k == 0 ? 100 : 40);
    }
    /* An FP8 cache: nothing moves with a range, whether gradients go through those of inputs or
     * not. The scale is so small that some entries are held at 448. */
    for (int k = 0; k < 4; k++) {
        b->sites = llama_sites_none();
        b->sites.act.bits = k == 3 ? 16 : 4;
        b->sites.kv = fp8_cache(k < 2 ? 0.00390625f : 0.5f);
        b->sites.o_per_head = true;
        b->sites.r2_per_head = k >= 2;
        b->sites.scales = k % 3 ? scales : NULL;
        b->through = k != 1;
        check_directions(b, 40);
    }
    /* The 4-bit cache as the runtime has it: rotated once more behind R2. */
    b->T = random_orthogonal(8);
    for (int k = 0; k < 4; k++) {
        b->sites = llama_sites_none();
        b->sites.act.bits = b->sites.kv.bits = 4;
        b->sites.kv.rule = AQUANT_CACHE_INT4;
        b->sites.o_per_head = true;
        b->sites.r2_per_head = k >= 2;
        b->sites.scales = k % 3 ? scales : NULL;
        b->through = k % 2 == 0;
        check_directions(b, 40);
    }
    /* Without R1: inputs are quantized behind the gains of norms, or, with scales, before them. */
    mem_free(b->T);
    b->T = NULL;
    b->plain_r1 = true;
    memset(b->R1, 0, HIDDEN * HIDDEN * sizeof *b->R1);
    for (int64_t i = 0; i < HIDDEN; i++) b->R1[i * HIDDEN + i] = 1;
    for (int k = 0; k < 3; k++) {
        b->sites = llama_sites_none();
        b->sites.act.bits = 4;
        b->sites.o_per_head = true;
        b->sites.scales = k == 2 ? scales : NULL;
        b->through = k != 1;
        check_directions(b, 40);
    }
    scale_set_destroy(&scales);
    block_case_destroy(b);
}

int main(void) {
    gemm_init(1);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_identity),
                                       cmocka_unit_test(test_range)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
