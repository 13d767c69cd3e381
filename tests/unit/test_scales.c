/* Scales change no function: a whole model in double, in plain loops, with the weights as they are
 * and with gains, rotations and scales folded in, must give the same logits to 1e-10; fp32 through
 * the program's own forward to 1e-4. What a set of scales takes and refuses. */
#include "base/gemm.h"
#include "model/fuse.h"
#include "tests/unit/product_bound.h"
#include "tests/unit/small_model.h"

enum { TOKENS = 11, LAYERS = 2 };
enum { Q, K, V, O, GATE, UP, DOWN };

/* A model in double. */
typedef struct wide_layer {
    double *w[LLAMA_LINEARS], *b[LLAMA_LINEARS], *norm[2];
    double *head_norm[2]; /* of queries and keys; NULL: none */
} wide_layer;

typedef struct wide_model {
    const llama_config *c;
    wide_layer layers[LAYERS];
    double *embed, *head, *final_norm;
    const rotation *R4; /* rotated at run time */
} wide_model;

static double *widened(const float *v, int64_t n) {
    double *w = room(n, sizeof *w);
    for (int64_t i = 0; i < n; i++) w[i] = (double)v[i];
    return w;
}

static wide_model as_it_is(small_model *m) {
    const llama_config *c = &m->cfg;
    wide_model w = {.c = c};
    for (int64_t l = 0; l < LAYERS; l++) {
        llama_layer *from = &m->stage.layers[l];
        for (int i = 0; i < LLAMA_LINEARS; i++) {
            const wmat *a = llama_layer_linear(from, i);
            const float *b = *llama_layer_bias(from, i);
            w.layers[l].w[i] = widened(a->data, a->rows * a->cols);
            if (b) w.layers[l].b[i] = widened(b, a->rows);
        }
        w.layers[l].norm[0] = widened(from->attn_norm, c->hidden);
        w.layers[l].norm[1] = widened(from->mlp_norm, c->hidden);
        if (!c->qk_norm) continue;
        w.layers[l].head_norm[0] = widened(from->q_norm, c->head_dim);
        w.layers[l].head_norm[1] = widened(from->k_norm, c->head_dim);
    }
    w.embed = widened(m->stage.embed.data, c->vocab * c->hidden);
    w.head = widened(m->stage.head.data, c->vocab * c->hidden);
    w.final_norm = widened(m->stage.final_norm, c->hidden);
    return w;
}

static void clear(wide_model *w) {
    for (int64_t l = 0; l < LAYERS; l++) {
        for (int i = 0; i < LLAMA_LINEARS; i++) mem_free(w->layers[l].w[i]);
        for (int i = 0; i < LLAMA_LINEARS; i++) mem_free(w->layers[l].b[i]);
        for (int i = 0; i < 2; i++) mem_free(w->layers[l].norm[i]);
        for (int i = 0; i < 2; i++) mem_free(w->layers[l].head_norm[i]);
    }
    mem_free(w->embed);
    mem_free(w->head);
    mem_free(w->final_norm);
}

typedef struct collected {
    double *to;
    int64_t cols;
} collected;

static err collect(void *arg, int64_t row0, int64_t rows, const double *w) {
    collected *c = arg;
    memcpy(c->to + row0 * c->cols, w, (size_t)(rows * c->cols) * sizeof *w);
    return err_none();
}

static double *fuse_one(rotation_set *set, llama_role role, int64_t layer, const wmat *from,
                        const float *gain) {
    fuse_plan plan;
    assert_ok(fuse_plan_init(role, layer, set, &plan));
    plan.job.source = from->data;
    plan.job.dtype = FUSE_F32;
    plan.job.rows = from->rows;
    plan.job.cols = from->cols;
    plan.job.in_gain = gain;
    collected c = {room(from->rows * from->cols, sizeof(double)), from->cols};
    assert_ok(fuse_matrix_wide(&plan.job, collect, &c));
    fuse_plan_clear(&plan);
    return c.to;
}

static double *fuse_one_vector(rotation_set *set, llama_role role, int64_t layer, const float *b,
                               int64_t n) {
    fuse_plan plan;
    double *wide = widened(b, n);
    assert_ok(fuse_plan_init(role, layer, set, &plan));
    assert_ok(fuse_bias_wide(&plan.job, wide, n));
    fuse_plan_clear(&plan);
    return wide;
}

/* The gain of a norm as what is folded, and what is left of it. */
static const float *split_gain(const rotation_set *set, llama_role norm, int64_t layer,
                               const float *gain, int64_t n, double **left) {
    *left = widened(gain, n);
    if (!fuse_folds_gain(set, norm, layer)) return NULL;
    float *rest = room(n, sizeof *rest);
    fuse_gain_left(set, norm, layer, n, rest);
    for (int64_t i = 0; i < n; i++) (*left)[i] = (double)rest[i];
    mem_free(rest);
    return gain;
}

static wide_model folded(small_model *m, rotation_set *set, bool tied) {
    const llama_config *c = &m->cfg;
    const int64_t n = c->hidden;
    wide_model w = {.c = c, .R4 = rotation_set_r4(set)};
    for (int64_t l = 0; l < LAYERS; l++) {
        llama_layer *from = &m->stage.layers[l];
        wide_layer *to = &w.layers[l];
        const float *attn = split_gain(set, ROLE_ATTN_NORM, l, from->attn_norm, n, &to->norm[0]);
        const float *mlp = split_gain(set, ROLE_MLP_NORM, l, from->mlp_norm, n, &to->norm[1]);
        for (int i = 0; i < LLAMA_LINEARS; i++) {
            const wmat *a = llama_layer_linear(from, i);
            const float *b = *llama_layer_bias(from, i);
            to->w[i] = fuse_one(set, llama_linears[i], l, a,
                                i <= V                 ? attn
                                : i == GATE || i == UP ? mlp
                                                       : NULL);
            if (b)
                to->b[i] = fuse_one_vector(set, llama_role_bias(llama_linears[i]), l, b, a->rows);
        }
    }
    for (int64_t l = 0; l < LAYERS && c->qk_norm; l++) {
        const llama_layer *from = &m->stage.layers[l];
        double **to = w.layers[l].head_norm;
        to[0] = fuse_one_vector(set, ROLE_Q_NORM, l, from->q_norm, c->head_dim);
        to[1] = fuse_one_vector(set, ROLE_K_NORM, l, from->k_norm, c->head_dim);
        for (int i = 0; i < 2; i++) /* powers of two: a bf16 gain would stay one */
            for (int64_t j = 0; j < c->head_dim; j++)
                assert_true(frexp(to[i][j], &(int){0}) ==
                            frexp((double)(i ? from->k_norm : from->q_norm)[j], &(int){0}));
    }
    const float *final =
        split_gain(set, ROLE_FINAL_NORM, -1, m->stage.final_norm, n, &w.final_norm);
    w.embed = fuse_one(set, ROLE_EMBED, -1, &m->stage.embed, NULL);
    w.head = fuse_one(set, ROLE_HEAD, -1, tied ? &m->stage.embed : &m->stage.head, final);
    return w;
}

/* The forward in double. */

static void linear(const double *w, const double *b, int64_t rows, int64_t cols, const double *x,
                   double *y) {
    for (int64_t i = 0; i < rows; i++) y[i] = (b ? b[i] : 0) + dot_f64(w + i * cols, x, cols);
}

static void norm(const double *x, const double *gain, int64_t n, double eps, double *y) {
    const double scale = 1 / sqrt(dot_f64(x, x, n) / (double)n + eps);
    for (int64_t j = 0; j < n; j++) y[j] = x[j] * scale * gain[j];
}

static void rope(double *x, int64_t heads, int64_t d, int64_t t) {
    for (int64_t i = 0; i < heads * d / 2; i++) {
        const int64_t h = i / (d / 2), j = i % (d / 2);
        const double a = (double)t * pow(10000, -2.0 * (double)j / (double)d);
        double *u = x + h * d + j, *v = u + d / 2, p = *u, q = *v;
        *u = p * cos(a) - q * sin(a);
        *v = q * cos(a) + p * sin(a);
    }
}

static void attend(const llama_config *c, int64_t t, const double *q, double (*k)[16],
                   double (*v)[16], double *o) {
    const int64_t d = c->head_dim, group = c->heads / c->kv_heads;
    for (int64_t h = 0; h < c->heads; h++) {
        double p[TOKENS], total = 0;
        for (int64_t s = 0; s <= t; s++)
            total += p[s] = exp(dot_f64(q + h * d, k[s] + h / group * d, d) / sqrt((double)d));
        for (int64_t j = 0; j < d; j++) {
            o[h * d + j] = 0;
            for (int64_t s = 0; s <= t; s++) o[h * d + j] += p[s] / total * v[s][h / group * d + j];
        }
    }
}

static void slow_layer(const wide_model *m, const wide_layer *l, double (*x)[48]) {
    const llama_config *c = m->c;
    const int64_t n = c->hidden, d = c->head_dim, kv = c->kv_heads * d, width = c->intermediate;
    static double k[TOKENS][16], v[TOKENS][16];
    double h[48], q[48], o[48], y[48], gate[80], up[80];
    for (int64_t t = 0; t < TOKENS; t++) {
        norm(x[t], l->norm[0], n, c->rms_eps, h);
        linear(l->w[Q], l->b[Q], c->heads * d, n, h, q);
        linear(l->w[K], l->b[K], kv, n, h, k[t]);
        linear(l->w[V], l->b[V], kv, n, h, v[t]);
        for (int64_t i = 0; i < c->heads && l->head_norm[0]; i++)
            norm(q + i * d, l->head_norm[0], d, c->rms_eps, q + i * d);
        for (int64_t i = 0; i < c->kv_heads && l->head_norm[1]; i++)
            norm(k[t] + i * d, l->head_norm[1], d, c->rms_eps, k[t] + i * d);
        rope(q, c->heads, d, t);
        rope(k[t], c->kv_heads, d, t);
        attend(c, t, q, k, v, o);
        linear(l->w[O], l->b[O], n, c->heads * d, o, y);
        for (int64_t j = 0; j < n; j++) x[t][j] += y[j];
        norm(x[t], l->norm[1], n, c->rms_eps, h);
        linear(l->w[GATE], l->b[GATE], width, n, h, gate);
        linear(l->w[UP], l->b[UP], width, n, h, up);
        for (int64_t j = 0; j < width; j++) up[j] *= gate[j] / (1 + exp(-gate[j]));
        rotation_apply_f64(m->R4, up, 1, width, false);
        linear(l->w[DOWN], l->b[DOWN], n, width, up, y);
        for (int64_t j = 0; j < n; j++) x[t][j] += y[j];
    }
}

static double *slow_logits(const wide_model *m, const int32_t *ids) {
    const llama_config *c = m->c;
    static double x[TOKENS][48], h[48];
    double *logits = room(TOKENS * c->vocab, sizeof *logits);
    for (int t = 0; t < TOKENS; t++) memcpy(x[t], m->embed + ids[t] * c->hidden, sizeof x[t]);
    for (int64_t l = 0; l < LAYERS; l++) slow_layer(m, &m->layers[l], x);
    for (int t = 0; t < TOKENS; t++) {
        norm(x[t], m->final_norm, c->hidden, c->rms_eps, h);
        linear(m->head, NULL, c->vocab, c->hidden, h, logits + t * c->vocab);
    }
    return logits;
}

/* The program's forward in fp32 with the folded weights. */
static double *program_logits(small_model *m, const wide_model *w, const int32_t *ids) {
    const llama_config *c = &m->cfg;
    llama_stage s;
    assert_ok(llama_stage_init(&s, c, 0, LAYERS));
    for (int64_t l = 0; l < LAYERS; l++) {
        llama_layer *to = &s.layers[l];
        for (int i = 0; i < LLAMA_LINEARS; i++) {
            const wmat *like = llama_layer_linear(&m->stage.layers[l], i);
            assert_ok(
                wmat_init(llama_layer_linear(to, i), WMAT_F32, like->rows, like->cols, "test"));
            for (int64_t j = 0; j < like->rows * like->cols; j++)
                ((float *)llama_layer_linear(to, i)->data)[j] = (float)w->layers[l].w[i][j];
            if (!w->layers[l].b[i]) continue;
            *llama_layer_bias(to, i) = room(like->rows, sizeof(float));
            for (int64_t j = 0; j < like->rows; j++)
                (*llama_layer_bias(to, i))[j] = (float)w->layers[l].b[i][j];
        }
        for (int i = 0; i < 2 && c->qk_norm; i++) {
            float *gain = room(c->head_dim, sizeof *gain);
            for (int64_t j = 0; j < c->head_dim; j++) gain[j] = (float)w->layers[l].head_norm[i][j];
            *llama_layer_vector(to, LLAMA_HEAD_NORMS_AT + i) = gain;
        }
        to->attn_norm = room(c->hidden, sizeof(float));
        to->mlp_norm = room(c->hidden, sizeof(float));
        for (int64_t j = 0; j < c->hidden; j++) {
            to->attn_norm[j] = (float)w->layers[l].norm[0][j];
            to->mlp_norm[j] = (float)w->layers[l].norm[1][j];
        }
    }
    assert_ok(wmat_init(&s.embed, WMAT_F32, c->vocab, c->hidden, "test"));
    assert_ok(wmat_init(&s.head, WMAT_F32, c->vocab, c->hidden, "test"));
    s.final_norm = room(c->hidden, sizeof(float));
    for (int64_t j = 0; j < c->vocab * c->hidden; j++) {
        ((float *)s.embed.data)[j] = (float)w->embed[j];
        ((float *)s.head.data)[j] = (float)w->head[j];
    }
    for (int64_t j = 0; j < c->hidden; j++) s.final_norm[j] = (float)w->final_norm[j];
    llama_sites sites = llama_sites_none();
    sites.R4 = w->R4;
    sites.r4_fused = w->R4 != NULL;
    llama_scratch *scratch;
    float *x = room(TOKENS * c->hidden, sizeof *x);
    double *logits = room(TOKENS * c->vocab, sizeof *logits);
    assert_ok(llama_scratch_create(c, &sites, COMPUTE_F32, TOKENS, &scratch));
    assert_ok(llama_embed(&s, COMPUTE_F32, ids, TOKENS, x));
    assert_ok(llama_layers_forward(&s, &sites, TOKENS, x, scratch));
    assert_ok(llama_head_logits(&s, TOKENS, x, scratch, logits));
    llama_scratch_destroy(&scratch);
    llama_stage_clear(&s);
    mem_free(x);
    return logits;
}

static double worst_row(const double *got, const double *want, int64_t vocab) {
    double worst = 0;
    for (int t = 0; t < TOKENS; t++) {
        double d = 0, s = 0;
        for (int64_t i = t * vocab; i < (t + 1) * vocab; i++) {
            d += (got[i] - want[i]) * (got[i] - want[i]);
            s += want[i] * want[i];
        }
        worst = fmax(worst, sqrt(d / s));
    }
    return worst;
}

static void fill_scales(const llama_config *c, rotation_set *set, unsigned kinds, double spread) {
    scale_set *scales;
    assert_ok(rotation_set_new_scales(set, &scales));
    for (int k = 0; k < SCALE_KINDS; k++) {
        if (!(kinds >> k & 1)) continue;
        assert_ok(scale_set_add(scales, (scale_kind)k));
        const int64_t n = scale_set_length(scales, (scale_kind)k), d = c->head_dim;
        for (int64_t l = 0; l < LAYERS; l++) {
            double *v = random_f64(n, spread);
            for (int64_t j = 0; j < n; j++) v[j] = exp(v[j]);
            for (int64_t j = 0; k == SCALE_QK && j < n; j++) {
                if (j % d >= d / 2) v[j] = v[j - d / 2];
                if (c->qk_norm) v[j] = v[j % d]; /* all heads share the gains */
            }
            assert_ok(scale_set_put(scales, (scale_kind)k, l, v));
            mem_free(v);
        }
    }
    rotation_set_put_scales(set, &scales);
}

enum { ALL_KINDS = (1 << SCALE_KINDS) - 1 };

static void check_function(bool biases, bool tied, bool qk_norm, rotation_options opts,
                           unsigned kinds) {
    small_model m;
    small_model_make(&m, biases, 0);
    if (qk_norm) {
        llama_stage_clear(&m.stage);
        m.cfg.qk_norm = true;
        small_model_fill(&m, biases);
    }
    if (tied)
        memcpy(m.stage.head.data, m.stage.embed.data,
               (size_t)(m.cfg.vocab * m.cfg.hidden) * sizeof(float));
    const llama_config *c = &m.cfg;
    const rotation_sizes sizes = {c->hidden,   c->layers,       c->heads,  c->kv_heads,
                                  c->head_dim, c->intermediate, c->qk_norm};
    rotation_set *set;
    assert_ok(rotation_set_create(&opts, &sizes, &set));
    fill_scales(c, set, kinds, 1);
    int32_t ids[TOKENS];
    for (int t = 0; t < TOKENS; t++) ids[t] = (int32_t)((t * 131 + 7) % c->vocab);
    wide_model plain = as_it_is(&m), fused = folded(&m, set, tied);
    double *want = slow_logits(&plain, ids), *got = slow_logits(&fused, ids);
    double *narrow = program_logits(&m, &fused, ids);
    const double off = worst_row(got, want, c->vocab), off32 = worst_row(narrow, want, c->vocab);
    print_message("kinds %2u%s%s%s: fp64 %.2g, fp32 %.2g\n", kinds, biases ? ", biases" : "",
                  tied ? ", tied" : "", opts.r1 ? "" : ", R1 none", off, off32);
    assert_true(off <= 1e-10 && off32 <= 1e-4);
    mem_free(want);
    mem_free(got);
    mem_free(narrow);
    clear(&plain);
    clear(&fused);
    rotation_set_destroy(&set);
    llama_stage_clear(&m.stage);
}

static void test_function(void **state) {
    (void)state;
    const rotation_options all = {
        .r1 = true, .r2 = R2_HEAD, .r3 = true, .r4 = true, .start = START_HAD, .seed = 3};
    rotation_options layer = all, none = {.start = START_IDENTITY};
    layer.r2 = R2_LAYER;
    layer.r4 = false;
    for (int k = 0; k < SCALE_KINDS; k++) check_function(true, false, false, all, 1u << k);
    check_function(true, false, false, all, ALL_KINDS);
    check_function(true, false, true, all, 1u << SCALE_QK);
    check_function(true, false, true, all, ALL_KINDS);
    check_function(false, true, false, all, ALL_KINDS);
    check_function(false, false, false, layer, ALL_KINDS);
    check_function(true, false, false, none, ALL_KINDS);
}

/* A factor large and dense goes another way: scales on all sides against plain loops. */
static void test_large(void **state) {
    (void)state;
    const int64_t n = 264, rows = 40;
    double *R = random_orthogonal(n), *in = random_f64(n, 1), *after = random_f64(n, 1);
    double *out = random_f64(rows, 1), *got = room(rows * n, sizeof *got);
    wmat w = random_matrix(rows, n);
    rotation *r;
    assert_ok(rotation_create_dense(n, R, &r));
    fuse_job job = {.source = w.data,
                    .rows = rows,
                    .cols = n,
                    .dtype = FUSE_F32,
                    .in = r,
                    .in_scale = in,
                    .out_scale = out,
                    .after_scale = after};
    collected c = {got, n};
    assert_ok(fuse_matrix_wide(&job, collect, &c));
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < n; j++) {
            double want = 0, size = 0;
            for (int64_t k = 0; k < n; k++) {
                const double term =
                    out[i] * (double)((float *)w.data)[i * n + k] * in[k] * R[k * n + j] * after[j];
                want += term;
                size += fabs(term);
            }
            assert_true(fabs(got[i * n + j] - want) <= product_bound(n + 4, DBL_EPSILON) * size);
        }
    }
    void *all[] = {R, in, after, out, got};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) mem_free(all[i]);
    wmat_clear(&w);
    rotation_destroy(&r);
}

/* What the set keeps and refuses. */

static void test_set(void **state) {
    (void)state;
    const scale_sizes sizes = {
        .hidden = 6, .layers = 2, .kv_heads = 2, .head_dim = 4, .intermediate = 5};
    scale_set *s;
    assert_ok(scale_set_create(&sizes, &s));
    assert_null(scale_set_get(s, SCALE_UD, 0));
    assert_null(scale_set_get(NULL, SCALE_UD, 0));
    for (int k = 0; k < SCALE_KINDS; k++) assert_ok(scale_set_add(s, (scale_kind)k));
    assert_true(scale_set_get(s, SCALE_QK, 1)->s[3] == 1);
    const double good[] = {0.3, 3, 1e-3, 7.77, 1, 2};
    assert_ok(scale_set_put(s, SCALE_MLP, 1, good));
    assert_ok(scale_set_put(s, SCALE_UD, 1, good));
    const scale_vector *mlp = scale_set_get(s, SCALE_MLP, 1), *ud = scale_set_get(s, SCALE_UD, 1);
    for (int j = 0; j < 6; j++) { /* the gain 1/S is a bf16 number, near what was given */
        assert_true((double)half_from_bf16(half_to_bf16(mlp->inverse32[j])) == mlp->inverse[j]);
        assert_true(fabs(mlp->s[j] / good[j] - 1) <= 0x1p-8);
        assert_true(fabs(mlp->s[j] * mlp->inverse[j] - 1) <= 0x1p-52);
    }
    for (int j = 0; j < 5; j++) assert_true(ud->s[j] == good[j] && ud->inverse[j] == 1 / good[j]);
    double again[6], bad[8];
    memcpy(again, mlp->s, sizeof again); /* kept once, kept for ever */
    assert_ok(scale_set_put(s, SCALE_MLP, 0, again));
    assert_memory_equal(scale_set_get(s, SCALE_MLP, 0)->s, again, sizeof again);
    const double wrong[] = {0, -1, NAN, INFINITY, 1e9, 1e-9};
    for (int i = 0; i < 6; i++) {
        memcpy(bad, good, sizeof good);
        bad[2] = wrong[i];
        assert_int_equal(scale_set_put(s, SCALE_MLP, 0, bad).code, ERR_INPUT);
    }
    assert_memory_equal(scale_set_get(s, SCALE_MLP, 0)->s, again, sizeof again);
    double pairs[8] = {1, 2, 1, 2, 3, 4, 3, 4};
    assert_ok(scale_set_put(s, SCALE_QK, 0, pairs));
    assert_ok(scale_set_put(s, SCALE_VO, 0, pairs));
    pairs[7] = 5;
    assert_ok(scale_set_put(s, SCALE_VO, 0, pairs));
    assert_int_equal(scale_set_put(s, SCALE_QK, 0, pairs).code, ERR_INPUT);
    scale_set_destroy(&s);
}

/* Norms of heads: one scale for all heads, a power of two. */
static void test_set_of_norms(void **state) {
    (void)state;
    const scale_sizes sizes = {
        .hidden = 6, .layers = 1, .kv_heads = 2, .head_dim = 4, .intermediate = 5, .qk_norm = true};
    const double given[8] = {3, 0.3, 3, 0.3, 3, 0.3, 3, 0.3}, by_head[8] = {1, 2, 1, 2, 3, 2, 3, 2};
    scale_set *s;
    assert_ok(scale_set_create(&sizes, &s));
    assert_ok(scale_set_add(s, SCALE_QK));
    assert_ok(scale_set_put(s, SCALE_QK, 0, given));
    for (int j = 0; j < 8; j++)
        assert_true(scale_set_get(s, SCALE_QK, 0)->s[j] == (j % 2 ? 0.25 : 4));
    assert_int_equal(scale_set_put(s, SCALE_QK, 0, by_head).code, ERR_INPUT);
    scale_set_destroy(&s);
}

int main(void) {
    gemm_init(1);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_function),
                                       cmocka_unit_test(test_large), cmocka_unit_test(test_set),
                                       cmocka_unit_test(test_set_of_norms)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
