/* small_weights - what tests of weights in the loop share: a small model with them, its linears as
 * dense matrices, lines along which rotations turn. For tests alone; includes cmocka. */
#ifndef SPINSHARD_TESTS_UNIT_SMALL_WEIGHTS_H
#define SPINSHARD_TESTS_UNIT_SMALL_WEIGHTS_H

#include "base/gemm.h"
#include "model/capture.h"
#include "model/weight_site.h"
#include "tests/unit/small_sites.h"

enum { PARTS = 7, T = 24 };
enum { Q, K, V, O, GATE, UP, DOWN };

static const wquant plain_how = {.bits = 4, .symmetric = true, .scale_type = SCALE_F32};
enum { ALL_KINDS = (1 << SCALE_KINDS) - 1 };

typedef struct setting {
    small_model m;
    llama_sites sites;
    double *R1;
    double *R2[4]; /* dense, by layer and KV head */
    rotation *r1, *r4, *r2[4];
    llama_pass_shape shape;
    llama_work *work;
    llama_layers *layers;
    weight_site *w;
    scale_set *scales; /* NULL: none */
    wquant how;
} setting;

static inline wmat *linear_at(llama_stage *s, int64_t layer, int k) {
    return llama_layer_linear(&s->layers[layer], k);
}

/* linear_end: one layer after whose attention nothing comes. how: with scales of all kinds; NULL:
 * without any, in the plain way. r1: false where R2 and R4 are all that rotates, so that gains stay
 * in their norms (site_behind_gain). */
static inline void open_setting_as(setting *s, bool per_head, int act_bits, int64_t layers,
                                   bool linear_end, const wquant *how, bool r1) {
    *s = (setting){.sites = llama_sites_none(), .how = how ? *how : plain_how};
    s->m.cfg = (llama_config){.hidden = 48,
                              .intermediate = 80,
                              .layers = layers,
                              .heads = 6,
                              .kv_heads = 2,
                              .head_dim = 8,
                              .vocab = 16,
                              .max_positions = 64,
                              .rms_eps = 1e-5,
                              .rope_theta = 10000};
    small_model_fill(&s->m, true);
    if (linear_end) {
        wmat *down = linear_at(&s->m.stage, 0, DOWN);
        memset(down->data, 0, (size_t)(down->rows * down->cols) * sizeof(float));
    }
    const int64_t n = s->m.cfg.hidden, d = s->m.cfg.head_dim;
    if (r1) {
        s->R1 = random_orthogonal(n);
        assert_ok(rotation_create_dense(n, s->R1, &s->r1));
    }
    assert_ok(rotation_create_hadamard(s->m.cfg.intermediate, NULL, &s->r4));
    for (int i = 0; i < 4; i++) {
        s->R2[i] = random_orthogonal(d);
        assert_ok(rotation_create_dense(d, s->R2[i], &s->r2[i]));
    }
    s->sites.act = (aquant){.bits = act_bits, .clip = {1, 1}};
    s->sites.o_per_head = true;
    s->sites.R1 = s->r1;
    s->sites.R2 = (const rotation *const *)s->r2; /* [2 layers], or [2 layers, 2 KV heads] */
    s->sites.r2_per_head = per_head;
    s->sites.R4 = s->r4;
    if (how) s->scales = random_scales(&s->m.cfg, 0.5);
    s->sites.scales = s->scales;
    s->shape = (llama_pass_shape){.compute = COMPUTE_F64,
                                  .window = T,
                                  .slice = T,
                                  .r1 = r1,
                                  .r2 = true,
                                  .scales = how ? ALL_KINDS : 0};
    assert_ok(llama_work_create(&s->m.cfg, &s->sites, &s->shape, &s->work));
    if (r1) assert_ok(llama_work_put_r1(s->work, s->r1));
    assert_ok(
        llama_layers_create(&s->m.cfg, &s->sites, &s->shape, s->m.cfg.layers, false, &s->layers));
    assert_ok(weight_site_create(&s->m.stage, &s->how, &s->shape, &s->w));
    assert_ok(weight_site_refresh(s->w, &s->sites));
}

static inline void open_setting_of(setting *s, bool per_head, int act_bits, int64_t layers,
                                   bool linear_end, const wquant *how) {
    open_setting_as(s, per_head, act_bits, layers, linear_end, how, true);
}

static inline void open_setting(setting *s, bool per_head, int act_bits, int64_t layers,
                                bool linear_end) {
    open_setting_of(s, per_head, act_bits, layers, linear_end, NULL);
}

static inline void close_setting(setting *s) {
    weight_site_destroy(&s->w);
    scale_set_destroy(&s->scales);
    llama_work_destroy(&s->work);
    llama_layers_destroy(&s->layers);
    rotation_destroy(&s->r1);
    rotation_destroy(&s->r4);
    for (int i = 0; i < 4; i++) {
        rotation_destroy(&s->r2[i]);
        mem_free(s->R2[i]);
    }
    mem_free(s->R1);
    llama_stage_clear(&s->m.stage);
}

static const double *r2_of(const setting *s, int64_t layer, int64_t kv) {
    return s->R2[s->sites.r2_per_head ? layer * s->m.cfg.kv_heads + kv : layer];
}

/* W, with its gains where R1 has them folded in, as the products of 16-bit weights would take it.
 */
static inline double *plain_of(setting *s, int64_t layer, int k) {
    const wmat *w = linear_at(&s->m.stage, layer, k);
    const llama_layer *l = &s->m.stage.layers[layer];
    const float *gain = !s->R1                 ? NULL
                        : k < O                ? l->attn_norm
                        : k == GATE || k == UP ? l->mlp_norm
                                               : NULL;
    double *out = room(w->rows * w->cols, sizeof *out);
    for (int64_t i = 0; i < w->rows * w->cols; i++) {
        const float v = ((const float *)w->data)[i];
        out[i] = (double)(gain ? v * gain[i % w->cols] : v);
    }
    return out;
}

/* to = op(A) from op(B), A [rows, rows] and B [cols, cols] as dense matrices. */
static inline void sandwich(const double *A, gemm_op op_a, const double *from, const double *B,
                            gemm_op op_b, int64_t rows, int64_t cols, double *to) {
    double *half = room(rows * cols, sizeof *half);
    gemm_f64(op_a, GEMM_N, rows, cols, rows, A, rows, from, cols, GEMM_SET, half, cols);
    gemm_f64(GEMM_N, op_b, rows, cols, cols, half, cols, B, cols, GEMM_SET, to, cols);
    mem_free(half);
}

static inline double *identity(int64_t n) {
    double *I = room(n * n, sizeof *I);
    for (int64_t i = 0; i < n; i++) I[i * n + i] = 1;
    return I;
}

/* [n / d] copies or parts of R2-like blocks on the diagonal: block h is blocks[h / share]. */
static inline double *diagonal(double *const *blocks, int64_t n, int64_t d, int64_t share) {
    double *out = room(n * n, sizeof *out);
    for (int64_t h = 0; h < n / d; h++)
        for (int64_t i = 0; i < d; i++)
            memcpy(out + (h * d + i) * n + h * d, blocks[h / share] + i * d,
                   (size_t)d * sizeof *out);
    return out;
}

/* What stands on the outputs (A) and inputs (B) of a linear; blocks: one for each KV head. */
static inline double *side_of(const setting *s, int k, bool outputs, const double *whole,
                              double *const *blocks) {
    const llama_config *c = &s->m.cfg;
    const int64_t n = c->hidden, d = c->head_dim;
    const bool r1 = outputs ? k == O || k == DOWN : k != O && k != DOWN;
    if (r1 && !s->R1) return identity(n);
    if (r1) {
        double *out = room(n * n, sizeof *out);
        memcpy(out, whole, (size_t)(n * n) * sizeof *out);
        return out;
    }
    if (k == V) return diagonal(blocks, c->kv_heads * d, d, 1);
    if (k == O) return diagonal(blocks, c->heads * d, d, c->heads / c->kv_heads);
    return identity(outputs && k < O ? linear_at((llama_stage *)&s->m.stage, 0, k)->rows
                                     : c->intermediate);
}

/* exp(t S) by its series; |t S| is below 1. */
static inline double *turn_by(const double *S, int64_t n, double t) {
    double *out = identity(n), *term = identity(n), *next = room(n * n, sizeof *next);
    for (int k = 1; k < 14; k++) {
        gemm_f64(GEMM_N, GEMM_N, n, n, n, term, n, S, n, GEMM_SET, next, n);
        for (int64_t i = 0; i < n * n; i++) out[i] += term[i] = next[i] * t / k;
    }
    mem_free(term);
    mem_free(next);
    return out;
}

static inline double *random_skew(int64_t n) {
    double *a = random_f64(n * n, 0.5 / sqrt((double)n)), *S = room(n * n, sizeof *S);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) S[i * n + j] = a[i * n + j] - a[j * n + i];
    mem_free(a);
    return S;
}

typedef struct line {
    setting *s;
    llama_stage moved; /* matrices of its own */
    double *D[2][PARTS], *W[2][PARTS];
    double *S1, *S2[4]; /* directions of R1 and each R2 */
    const double *x, *c;
    uint32_t parts; /* bit k: linears that move */
} line;

static const double *s2_of(const line *l, int64_t layer, int64_t kv) {
    return l->S2[l->s->sites.r2_per_head ? layer * l->s->m.cfg.kv_heads + kv : layer];
}

static inline void open_line(line *l, setting *s, uint32_t parts) {
    const llama_stage *used = weight_site_stage(s->w);
    *l = (line){.s = s, .moved = *used, .parts = parts};
    l->moved.layers = room(s->m.cfg.layers, sizeof(llama_layer));
    for (int64_t layer = 0; layer < s->m.cfg.layers; layer++) {
        l->moved.layers[layer] = used->layers[layer];
        for (int k = 0; k < PARTS; k++) {
            wmat *to = linear_at(&l->moved, layer, k);
            const float *from = to->data;
            const int64_t all = to->rows * to->cols;
            l->W[layer][k] = plain_of(s, layer, k);
            l->D[layer][k] = room(all, sizeof(double));
            for (int64_t i = 0; i < all; i++)
                l->D[layer][k][i] = (double)from[i] - l->W[layer][k][i];
            assert_ok(wmat_init(to, WMAT_F32, to->rows, to->cols, "test"));
        }
    }
    l->S1 = random_skew(s->m.cfg.hidden);
    for (int i = 0; i < 4; i++) l->S2[i] = random_skew(s->m.cfg.head_dim);
    l->x = random_f64(T * s->m.cfg.hidden, 1);
    l->c = random_f64(T * s->m.cfg.hidden, 1);
}

static inline void close_line(line *l) {
    for (int64_t layer = 0; layer < l->s->m.cfg.layers; layer++)
        for (int k = 0; k < PARTS; k++) {
            wmat_clear(linear_at(&l->moved, layer, k));
            mem_free(l->W[layer][k]);
            mem_free(l->D[layer][k]);
        }
    mem_free(l->moved.layers);
    mem_free(l->S1);
    for (int i = 0; i < 4; i++) mem_free(l->S2[i]);
    mem_free((double *)l->x);
    mem_free((double *)l->c);
}

/* <dL/dR, S R> summed over R1 and the R2 of all layers, by the program; only places of `places`. */
static inline double slope_of(line *l, uint32_t places) {
    setting *s = l->s;
    const llama_config *c = &s->m.cfg;
    const int64_t n = c->hidden, d = c->head_dim, heads = s->sites.r2_per_head ? c->kv_heads : 1;
    const llama_stage *used = weight_site_stage(s->w);
    llama_hook hook = weight_site_hook(s->w, &s->sites);
    double *G1 = room(n * n, sizeof *G1), *SR = room(n * n, sizeof *SR), sum = 0,
           *x = room(T * n, sizeof *x), *g = room(T * n, sizeof *g);
    hook.places &= places;
    memcpy(x, l->x, (size_t)(T * n) * sizeof *x);
    memcpy(g, l->c, (size_t)(T * n) * sizeof *g);
    llama_saved *saved[2];
    for (int64_t i = 0; i < c->layers; i++) {
        assert_ok(llama_saved_create(c, &s->sites, &s->shape, &saved[i]));
        assert_ok(llama_block_forward_save(used, i, &s->sites, 0, T, x, saved[i], s->work));
    }
    for (int64_t i = c->layers - 1; i >= 0; i--) {
        double G2[2 * 8 * 8] = {0};
        const rotation_grads grads = {.R1 = G1, .R2 = G2};
        assert_ok(
            llama_block_backward(used, i, &s->sites, 0, T, g, saved[i], NULL, &hook, s->work));
        weight_site_add(s->w, i, &grads);
        for (int64_t h = 0; h < heads; h++) {
            gemm_f64(GEMM_N, GEMM_N, d, d, d, s2_of(l, i, h), d, r2_of(s, i, h), d, GEMM_SET, SR,
                     d);
            sum += dot_f64(G2 + h * d * d, SR, d * d);
        }
        llama_saved_destroy(&saved[i]);
    }
    if (s->R1) {
        gemm_f64(GEMM_N, GEMM_N, n, n, n, l->S1, n, s->R1, n, GEMM_SET, SR, n);
        sum += dot_f64(G1, SR, n * n);
    }
    mem_free(G1);
    mem_free(SR);
    mem_free(x);
    mem_free(g);
    return sum;
}

/* D and the sums are fp32: 2^-24 of W in D, which is a tenth of it; over two layers. */
static inline void near(double got, double want) {
    if (fabs(got - want) > 2e-4 * fabs(want)) print_error("%.9g where %.9g is wanted\n", got, want);
    assert_true(fabs(got - want) <= 2e-4 * fabs(want));
}

#endif
