/* The gradient of a site. Detached: the skew part of g^T e R^T against the long way, where R is
 * turned into the weights on both sides and the chain rule goes through all of them, written here
 * in plain loops. Both readings of the range: a slow forward of a whole block in double that holds
 * what the quantizer rounded (the residual in steps, or the error itself) while x and the rotations
 * move, and five-point differences along random directions of the orthogonal group. */
#include "base/gemm.h"
#include "base/mem.h"
#include "base/rng.h"
#include "model/backward.h"
#include "model/site_backward.h"
#include "rotations/rotation.h"
#include "tests/unit/small_sites.h"

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

/* The matrix of all segments' rotations, [n, n]. */
static double *block_diagonal(const site *s, double *const *R) {
    double *B = room(s->n * s->n, sizeof *B);
    for (int64_t i = 0; i < s->n / s->segment; i++) {
        for (int64_t a = 0; a < s->segment; a++) {
            memcpy(B + (i * s->segment + a) * s->n + i * s->segment,
                   R[i / s->share] + a * s->segment, (size_t)s->segment * sizeof *B);
        }
    }
    return B;
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
    site_kept kept = {.error = room(TOKENS * n, sizeof(double))};
    const uint64_t each = (uint64_t)site_chunk_reals(s) * sizeof(double) + 8 * (uint64_t)n;
    const site_work work = {.compute = COMPUTE_F64,
                            .panel = room(TOKENS * n, sizeof(double)),
                            .panel_room = TOKENS * n,
                            .parts = room(site_parts_room(s, TOKENS), sizeof(double)),
                            .threads = room((int64_t)each * gemm_threads(), 1),
                            .thread_bytes = each};
    site_keep_f64(s, x, TOKENS, NULL, &kept, &work);
    double *y = times(false, true, TOKENS, after, n, x, W);
    for (int64_t i = 0; i < TOKENS * after; i++) y[i] = cos(y[i]);
    double *g = times(false, false, TOKENS, n, after, y, W);
    site_back_f64(s, g, TOKENS, NULL, &kept, got, &work);

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
    void *all[] = {h, A, W, B, want, got, x, kept.error, work.panel, work.parts, work.threads,
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

/* A slow block in double whose quantizers are held. */

typedef struct held {
    bool record, through;
    int64_t at;
    double v[60000]; /* residual in steps (through), or the error */
} held;

typedef struct block_case {
    small_model m;
    llama_sites sites;
    bool through;
    double *R1, *R2[2], *R3, *R4; /* R2: one, or one per KV head */
    held *h;
    double x[TOKENS * HIDDEN], c[TOKENS * HIDDEN];
} block_case;

static void turn(const double *R, int64_t n, double *x, bool back) {
    double y[128];
    for (int64_t j = 0; j < n; j++) {
        y[j] = 0;
        for (int64_t k = 0; k < n; k++) y[j] += x[k] * (back ? R[j * n + k] : R[k * n + j]);
    }
    memcpy(x, y, (size_t)n * sizeof *x);
}

/* x + e R^T for a row of equal heads (heads 1: the whole row), a range each or one for all; with
 * scales, before the rotation (of heads / parts heads together) or after it. */
typedef struct slow_scales {
    const scale_vector *before, *after;
    int64_t parts;
} slow_scales;

static void slow_site(block_case *b, const aquant *q, bool zero, bool per_head, int64_t heads,
                      int64_t d, double *const *R, int64_t share, slow_scales sc, double *x) {
    double u[128], before[128], after[128];
    const int64_t n = heads * d, range = per_head ? d : n;
    held *h = b->h;
    if (q->bits >= 16) return;
    for (int64_t j = 0; j < n; j++) {
        const int64_t part = sc.before ? j / d / (heads / sc.parts) * d + j % d : 0;
        before[j] = sc.before ? sc.before->s[part] : 1;
        after[j] = sc.after ? sc.after->s[j] : 1;
        u[j] = x[j] / before[j];
    }
    for (int64_t i = 0; i < heads; i++) turn(R[i / share], d, u + i * d, false);
    for (int64_t j = 0; j < n; j++) u[j] /= after[j];
    for (int64_t r = 0; r < n; r += range) {
        const double step = step_of(q, zero, u + r, range);
        if (h->record) {
            double e[128];
            fake_quant_rows_f64(q, zero, u + r, 1, range, range, e);
            for (int64_t j = 0; j < range; j++)
                h->v[h->at + j] = (e[j] - u[r + j]) / (h->through ? step : 1);
        }
        for (int64_t j = 0; j < range; j++) u[r + j] = h->v[h->at++] * (h->through ? step : 1);
        assert_true(h->at < (int64_t)(sizeof h->v / sizeof *h->v));
    }
    for (int64_t j = 0; j < n; j++) u[j] *= after[j];
    for (int64_t i = 0; i < heads; i++) turn(R[i / share], d, u + i * d, true);
    for (int64_t j = 0; j < n; j++) x[j] += u[j] * before[j];
}

static void slow_linear(const wmat *w, const float *bias, const double *x, double *y) {
    const float *v = w->data;
    for (int64_t i = 0; i < w->rows; i++) {
        y[i] = bias ? (double)bias[i] : 0;
        for (int64_t j = 0; j < w->cols; j++) y[i] += x[j] * (double)v[i * w->cols + j];
    }
}

static const scale_vector *scales_at(const block_case *b, scale_kind kind) {
    return scale_set_get(b->sites.scales, kind, 0);
}

static void slow_norm_site(block_case *b, const double *x, const float *gain, scale_kind kind,
                           double *y) {
    double sum = 0;
    for (int64_t j = 0; j < HIDDEN; j++) sum += x[j] * x[j];
    for (int64_t j = 0; j < HIDDEN; j++) y[j] = x[j] / sqrt(sum / HIDDEN + b->m.cfg.rms_eps);
    const slow_scales sc = {.after = scales_at(b, kind)};
    slow_site(b, &b->sites.act, true, false, 1, HIDDEN, &b->R1, 1, sc, y);
    for (int64_t j = 0; j < HIDDEN; j++) y[j] *= (double)gain[j];
}

static void slow_rope(double *x, int64_t d, int64_t t) {
    for (int64_t i = 0; i < d / 2; i++) {
        const double a = (double)t * pow(10000, -2.0 * (double)i / (double)d);
        const double u = x[i], v = x[i + d / 2];
        x[i] = u * cos(a) - v * sin(a);
        x[i + d / 2] = v * cos(a) + u * sin(a);
    }
}

/* A head of queries or keys, through its norm and by its position. */
static void slow_place(const llama_config *c, const float *gain, int64_t t, double *x) {
    const int64_t d = c->head_dim;
    const double rms = sqrt(dot_f64(x, x, d) / (double)d + c->rms_eps);
    for (int64_t j = 0; gain && j < d; j++) x[j] *= (double)gain[j] / rms;
    slow_rope(x, d, t);
}

/* <c, block(x)>. */
static double slow_block(block_case *b, const double *x) {
    const llama_layer *l = &b->m.stage.layers[0];
    const llama_config *c = &b->m.cfg;
    const int64_t d = c->head_dim, kv = c->kv_heads * d;
    const int64_t group = c->heads / c->kv_heads;
    const int64_t share = b->sites.r2_per_head ? 1 : c->kv_heads;
    static double k[TOKENS][16], v[TOKENS][16];
    double h[HIDDEN], q[48], o[48], y[HIDDEN], gate[80], up[80], sum = 0;
    b->h->at = 0;
    for (int64_t t = 0; t < TOKENS; t++) {
        double *R3[1] = {b->R3}, *R4[1] = {b->R4}, xt[HIDDEN];
        memcpy(xt, x + t * HIDDEN, sizeof xt);
        const slow_scales qk = {.before = scales_at(b, SCALE_QK), .parts = c->kv_heads};
        const slow_scales vo = {.before = scales_at(b, SCALE_VO), .parts = c->kv_heads};
        const slow_scales ud = {.before = scales_at(b, SCALE_UD), .parts = 1};
        slow_norm_site(b, xt, l->attn_norm, SCALE_ATTN, h);
        slow_linear(&l->q, l->bq, h, q);
        slow_linear(&l->k, l->bk, h, k[t]);
        slow_linear(&l->v, l->bv, h, v[t]);
        for (int64_t i = 0; i < c->heads; i++) slow_place(c, l->q_norm, t, q + i * d);
        for (int64_t i = 0; i < c->kv_heads; i++) slow_place(c, l->k_norm, t, k[t] + i * d);
        slow_site(b, &b->sites.kv, true, true, c->kv_heads, d, R3, kv, qk, k[t]);
        slow_site(b, &b->sites.kv, false, true, c->kv_heads, d, b->R2, share, vo, v[t]);
        for (int64_t i = 0; i < c->heads; i++) {
            double p[TOKENS], total = 0;
            for (int64_t s = 0; s <= t; s++) {
                p[s] = exp(dot_f64(q + i * d, k[s] + i / group * d, d) / sqrt((double)d));
                total += p[s];
            }
            for (int64_t j = 0; j < d; j++) {
                o[i * d + j] = 0;
                for (int64_t s = 0; s <= t; s++)
                    o[i * d + j] += p[s] / total * v[s][i / group * d + j];
            }
        }
        slow_site(b, &b->sites.act, !b->sites.o_per_head, b->sites.o_per_head, c->heads, d, b->R2,
                  share * group, vo, o);
        slow_linear(&l->o, l->bo, o, y);
        for (int64_t j = 0; j < HIDDEN; j++) xt[j] += y[j];
        slow_norm_site(b, xt, l->mlp_norm, SCALE_MLP, h);
        slow_linear(&l->gate, l->bgate, h, gate);
        slow_linear(&l->up, l->bup, h, up);
        for (int64_t j = 0; j < c->intermediate; j++) up[j] *= gate[j] / (1 + exp(-gate[j]));
        slow_site(b, &b->sites.act, true, false, 1, c->intermediate, R4, 1, ud, up);
        slow_linear(&l->down, l->bdown, up, y);
        for (int64_t j = 0; j < HIDDEN; j++) xt[j] += y[j];
        sum += dot_f64(xt, b->c + t * HIDDEN, HIDDEN);
    }
    return sum;
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

/* The program's gradients. */
static void fast_gradients(block_case *b, int64_t slice, double *g, double *G1, double *G2) {
    const llama_config *c = &b->m.cfg;
    const llama_pass_shape shape = {.compute = COMPUTE_F64,
                                    .window = TOKENS,
                                    .slice = slice,
                                    .through = b->through,
                                    .r1 = true,
                                    .r2 = true};
    rotation *r1 = dense(b->R1, HIDDEN), *r3 = dense(b->R3, 8), *r4 = dense(b->R4, c->intermediate);
    rotation *r2[2] = {dense(b->R2[0], 8), dense(b->R2[1], 8)};
    const rotation *layers[2] = {r2[0], r2[1]};
    llama_sites s = b->sites;
    s.R1 = r1;
    s.R2 = layers;
    s.R3 = r3;
    s.R4 = r4;
    llama_work *work;
    llama_stash *stash;
    assert_ok(llama_work_create(c, &s, &shape, &work));
    assert_ok(llama_work_put_r1(work, r1));
    assert_ok(llama_stash_create(c, &s, &shape, &stash));
    const rotation_grads grads = {.R1 = G1, .R2 = G2};
    double *x = room(TOKENS * HIDDEN, sizeof *x);
    memcpy(x, b->x, sizeof b->x);
    memcpy(g, b->c, sizeof b->c);
    for (int64_t t = 0; t < TOKENS; t += slice)
        assert_ok(
            llama_block_forward_keep(&b->m.stage, 0, &s, t, slice, x + t * HIDDEN, stash, work));
    for (int64_t t = TOKENS - slice; t >= 0; t -= slice)
        assert_ok(llama_block_backward(&b->m.stage, 0, &s, t, slice, g + t * HIDDEN, stash, &grads,
                                       NULL, work));
    /* the same function as the slow block's */
    b->h->record = true;
    b->h->through = b->through;
    const double slow = slow_block(b, b->x), fast = dot_f64(x, b->c, TOKENS * HIDDEN);
    b->h->record = false;
    assert_true(fabs(slow - fast) <= 1e-11 * (1 + fabs(slow)));
    mem_free(x);
    llama_stash_destroy(&stash);
    llama_work_destroy(&work);
    rotation *all[] = {r1, r2[0], r2[1], r3, r4};
    for (int i = 0; i < 5; i++) rotation_destroy(&all[i]);
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
    fast_gradients(b, TOKENS, g, G1, G2);
    double worst[4] = {0};
    for (int i = 0; i < count; i++) {
        direction dir = {.b = b, .what = i % (b->sites.r2_per_head ? 4 : 3)};
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
        worst[dir.what] = fmax(worst[dir.what], fabs(got - want) / (fabs(want) + size));
        mem_free(dir.v);
    }
    print_message(
        "%s, %d bits%s%s%s%s: x %.1g, R1 %.1g, R2 %.1g\n", b->through ? "through" : "detached",
        b->sites.act.bits, b->sites.act.symmetric ? ", symmetric" : "",
        b->sites.o_per_head ? "" : ", o per token", b->sites.r2_per_head ? ", R2 per head" : "",
        b->sites.scales ? ", scales" : "", worst[0], worst[1], fmax(worst[2], worst[3]));
    for (int i = 0; i < 4; i++) assert_true(worst[i] <= 1e-6);

    double *g2 = room(TOKENS * HIDDEN, sizeof *g), *H1 = room(HIDDEN * HIDDEN, sizeof *G1);
    double *H2 = room(2 * 64, sizeof *G2);
    const int threads = omp_get_max_threads();
    omp_set_num_threads(threads == 1 ? 3 : 1);
    fast_gradients(b, TOKENS, g2, H1, H2);
    assert_memory_equal(g, g2, TOKENS * HIDDEN * sizeof *g);
    assert_memory_equal(G1, H1, HIDDEN * HIDDEN * sizeof *g);
    assert_memory_equal(G2, H2, 2 * 64 * sizeof *g);
    omp_set_num_threads(threads);
    memset(H1, 0, HIDDEN * HIDDEN * sizeof *H1);
    memset(H2, 0, 2 * 64 * sizeof *H2);
    fast_gradients(b, 7, g2, H1, H2);
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
    block_case *b = room(1, sizeof *b);
    b->h = room(1, sizeof *b->h);
    b->m.cfg = some_config();
    small_model_fill(&b->m, true);
    fill_normal(b->x, TOKENS * HIDDEN, 1);
    /* The o_proj inputs of the first tokens are sums of few values on a grid: two channels may both
     * be the greatest, and there is no derivative. These tokens have no weight. */
    fill_normal(b->c + 6 * HIDDEN, (TOKENS - 6) * HIDDEN, 1);
    b->R1 = random_orthogonal(HIDDEN);
    b->R2[0] = random_orthogonal(8);
    b->R2[1] = random_orthogonal(8);
    b->R3 = random_orthogonal(8);
    b->R4 = random_orthogonal(80);
    scale_set *scales = random_scales(&b->m.cfg, 0.5);
    for (int i = 0; i < 18; i++) {
        const int k = i % 8;
        b->sites = llama_sites_none();
        if (i >= 8) b->sites.scales = scales;
        if (i == 16) { /* the rest with norms of heads */
            b->m.cfg.qk_norm = true;
            b->m.stage.layers[0].q_norm = random_f32(8, 0.3, 1);
            b->m.stage.layers[0].k_norm = random_f32(8, 0.3, 1);
        }
        b->sites.act.bits = b->sites.kv.bits = k % 3 == 2 ? 6 : 4;
        b->sites.act.symmetric = b->sites.kv.symmetric = k / 2 % 2;
        set_clips(&b->sites, k >= 4);
        b->sites.o_per_head = k % 4 != 1;
        b->sites.r2_per_head = k >= 4;
        b->through = k % 2 == 0 || k == 5;
        check_directions(b, k == 0 ? 100 : 40);
    }
    scale_set_destroy(&scales);
    double *all[] = {b->R1, b->R2[0], b->R2[1], b->R3, b->R4};
    for (int i = 0; i < 5; i++) mem_free(all[i]);
    llama_stage_clear(&b->m.stage);
    mem_free(b->h);
    mem_free(b);
}

int main(void) {
    gemm_init(1);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_identity),
                                       cmocka_unit_test(test_range)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
