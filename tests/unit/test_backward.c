/* The backward in full precision: fp64 against five-point finite differences of the forward, each
 * operation and a whole block; slices, recompute and threads; fp32 and bf16 against fp64; capture
 * against differences of the loss. */
#include "base/gemm.h"
#include "base/mem.h"
#include "base/rng.h"
#include "model/attention.h"
#include "model/capture.h"
#include "model/norm.h"
#include "model/objective.h"
#include "model/rope.h"
#include "model/wmat_backward.h"
#include "tests/unit/product_bound.h"
#include "tests/unit/small_model.h"

#include <omp.h>

/* Derivative of a function of a line by five points. */
typedef double (*line)(void *ctx, double t);

static double five_point(line f, void *ctx, double h) {
    return (8 * (f(ctx, h) - f(ctx, -h)) - (f(ctx, 2 * h) - f(ctx, -2 * h))) / (12 * h);
}

static void near_relative(double got, double want, double tolerance) {
    if (fabs(got - want) > tolerance * fabs(want))
        print_error("%.17g where %.17g is wanted (%.2g)\n", got, want, fabs(got / want - 1));
    assert_true(fabs(got - want) <= tolerance * fabs(want));
}

/* Operations. */

typedef struct row_line {
    const double *x, *v, *c;
    int64_t n;
    int kind; /* 0: norm, 1: RoPE */
    const double *cos_t, *sin_t;
} row_line;

static double along_row(void *ctx, double t) {
    const row_line *l = ctx;
    double y[64];
    for (int64_t j = 0; j < l->n; j++) y[j] = l->x[j] + t * l->v[j];
    if (l->kind == 0)
        norm_rows_f64(y, 1, l->n, 1e-5, NULL, y);
    else
        rope_head_f64(y, l->n / 2, l->cos_t, l->sin_t);
    return dot_f64(y, l->c, l->n);
}

static void test_norm_and_rope(void **state) {
    (void)state;
    const int64_t n = 48;
    for (int i = 0; i < 10; i++) {
        double *x = random_f64(n, 1), *v = random_f64(n, 1), *c = random_f64(n, 1), y[64], g[64];
        double cos_t[32], sin_t[32];
        for (int j = 0; j < n / 2; j++) {
            cos_t[j] = cos(0.3 * j + i);
            sin_t[j] = sin(0.3 * j + i);
        }
        row_line l = {.x = x, .v = v, .c = c, .n = n, .cos_t = cos_t, .sin_t = sin_t};
        norm_rows_f64(x, 1, n, 1e-5, NULL, y);
        memset(g, 0, sizeof g);
        norm_backward_f64(y, norm_scale_f64(x, n, 1e-5), c, n, g);
        near_relative(dot_f64(g, v, n), five_point(along_row, &l, 1e-3), 1e-8);
        l.kind = 1;
        memcpy(g, c, (size_t)n * sizeof *c);
        rope_head_backward_f64(g, n / 2, cos_t, sin_t);
        near_relative(dot_f64(g, v, n), five_point(along_row, &l, 1e-3), 1e-8);
        mem_free(x);
        mem_free(v);
        mem_free(c);
    }
}

/* dx = dy W for every kind of matrix, against plain loops over its expanded values. */
static void check_product(const wmat *w, compute_type compute) {
    const int64_t m = 37;
    const double eps = compute == COMPUTE_F64 ? DBL_EPSILON : (double)FLT_EPSILON;
    double *dy = random_f64(m * w->rows, 1), *wide = room(w->rows * w->cols, sizeof *wide);
    wmat_expand_f64(w, 0, w->rows, 0, w->cols, wide, w->cols);
    const size_t real = compute_sum_bytes(compute);
    char *in = room(m * w->rows, sizeof(double)), *out = room(m * w->cols, real);
    for (int64_t i = 0; i < m * w->rows; i++) {
        if (compute == COMPUTE_F64) {
            ((double *)in)[i] = dy[i];
        } else if (compute == COMPUTE_F32) {
            dy[i] = ((float *)in)[i] = (float)dy[i];
        } else {
            ((bf16 *)in)[i] = half_to_bf16((float)dy[i]);
            dy[i] = (double)half_from_bf16(((bf16 *)in)[i]);
        }
    }
    const uint64_t each = wmat_tile_scratch_bytes(compute) + 64;
    void *scratch = room((int64_t)each * gemm_threads(), 1);
    for (int add = 0; add < 2; add++) {
        const wmat_backward_term terms[] = {{w, in}, {w, in}};
        wmat_backward_products(terms, 1 + add, compute, m, out, scratch, each);
        for (int64_t i = 0; i < m; i++) {
            for (int64_t j = 0; j < w->cols; j++) {
                double want = 0, size = 0;
                for (int64_t k = 0; k < w->rows; k++) {
                    want += dy[i * w->rows + k] * wide[k * w->cols + j];
                    size += fabs(dy[i * w->rows + k] * wide[k * w->cols + j]);
                }
                double got = compute == COMPUTE_F64 ? ((double *)out)[i * w->cols + j]
                                                    : (double)((float *)out)[i * w->cols + j];
                const int64_t terms_added = (1 + add) * w->rows;
                assert_true(fabs(got - (1 + add) * want) <=
                            product_bound(terms_added, eps) * (1 + add) * size);
            }
        }
    }
    mem_free(dy);
    mem_free(wide);
    mem_free(in);
    mem_free(out);
    mem_free(scratch);
}

static void test_products(void **state) {
    (void)state;
    wmat f32 = random_matrix(310, 290), half, packed;
    assert_ok(wmat_init(&half, WMAT_BF16, 310, 290, "test"));
    for (int64_t i = 0; i < 310 * 290; i++)
        ((bf16 *)half.data)[i] = half_to_bf16(((float *)f32.data)[i]);
    assert_ok(wmat_init_packed(&packed, 70, 64, 4, 32, false, "test"));
    for (int64_t i = 0; i < 70 * packed.words; i++)
        ((uint32_t *)packed.data)[i] = (uint32_t)i * 2654435761u;
    for (int64_t i = 0; i < 70 * packed.n_groups; i++) {
        packed.scales[i] = 0.01f * (float)(i % 7 + 1);
        packed.zeros[i] = (uint8_t)(i % 16);
    }
    check_product(&f32, COMPUTE_F32);
    check_product(&f32, COMPUTE_F64);
    check_product(&half, COMPUTE_F32);
    check_product(&half, COMPUTE_F64);
    check_product(&half, COMPUTE_BF16);
    check_product(&packed, COMPUTE_F64);
    wmat_clear(&f32);
    wmat_clear(&half);
    wmat_clear(&packed);
}

/* Attention alone, long enough for several blocks of keys and queries and parts of keys. */

typedef struct attention_line {
    attention_shape s;
    const double *at[3], *v[3], *c; /* q, k, v and their direction */
    double *moved[3], *out;
    void *threads;
    uint64_t thread_bytes;
    double *lse;
} attention_line;

static int64_t attention_count(const attention_shape *s, int which) {
    return s->tokens * s->head_dim * (which == 0 ? s->heads : s->kv_heads);
}

static double along_attention(void *ctx, double t) {
    attention_line *l = ctx;
    for (int i = 0; i < 3; i++) {
        for (int64_t j = 0; j < attention_count(&l->s, i); j++)
            l->moved[i][j] = l->at[i][j] + t * l->v[i][j];
    }
    attention_f64(&l->s, l->moved[0], l->moved[1], l->moved[2], l->out, l->lse, l->threads,
                  l->thread_bytes);
    return dot_f64(l->out, l->c, attention_count(&l->s, 0));
}

static void check_attention(int64_t tokens, int64_t heads, int64_t kv_heads, int64_t window) {
    attention_line l = {.s = {.tokens = tokens,
                              .heads = heads,
                              .kv_heads = kv_heads,
                              .head_dim = 6,
                              .sliding_window = window,
                              .compute = COMPUTE_F64}};
    const attention_shape *s = &l.s;
    const int64_t d = s->head_dim, group = heads / kv_heads, n = attention_count(s, 0);
    uint64_t back = attention_backward_thread_bytes(s), forward = attention_thread_bytes(s);
    l.thread_bytes = ((back > forward ? back : forward) + 63) / 64 * 64;
    l.threads = room((int64_t)l.thread_bytes * gemm_threads(), 1);
    double *g[3];
    for (int i = 0; i < 3; i++) {
        l.at[i] = random_f64(attention_count(s, i), 1);
        l.v[i] = random_f64(attention_count(s, i), 1);
        l.moved[i] = room(attention_count(s, i), sizeof(double));
        g[i] = room(attention_count(s, i), sizeof(double));
    }
    l.c = random_f64(n, 1);
    l.out = room(n, sizeof(double));
    l.lse = room(tokens * heads, sizeof(double));
    const double want = five_point(along_attention, &l, 1e-3);

    along_attention(&l, 0);
    double *d_out = room(n, sizeof(double)), *dot = room(tokens * heads, sizeof(double));
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t h = 0; h < heads; h++) {
            const int64_t at = (h / group * tokens + t) * group + h % group;
            memcpy(d_out + at * d, l.c + (t * heads + h) * d, (size_t)d * sizeof *d_out);
            dot[at] = dot_f64(l.c + (t * heads + h) * d, l.out + (t * heads + h) * d, d);
        }
    }
    double *dq = room(attention_backward_parts(s) * n, sizeof(double));
    attention_backward_f64(s, l.at[0], l.at[1], l.at[2], l.lse, d_out, dot, dq, g[1], g[2],
                           l.threads, l.thread_bytes);
    double *row = room(heads * d, sizeof(double));
    for (int64_t t = 0; t < tokens; t++) {
        attention_backward_query_f64(s, dq, t, row);
        for (int64_t h = 0; h < heads; h++) {
            const int64_t at = (h / group * tokens + t) * group + h % group;
            memcpy(g[0] + at * d, row + h * d, (size_t)d * sizeof *row);
        }
    }
    double got = 0;
    for (int i = 0; i < 3; i++) got += dot_f64(g[i], l.v[i], attention_count(s, i));
    near_relative(got, want, 1e-8);
    void *all[] = {l.threads, (void *)l.c, l.out, l.lse, d_out, dot, dq, row};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) mem_free(all[i]);
    for (int i = 0; i < 3; i++) {
        mem_free((void *)l.at[i]);
        mem_free((void *)l.v[i]);
        mem_free(l.moved[i]);
        mem_free(g[i]);
    }
}

static void test_attention(void **state) {
    (void)state;
    check_attention(40, 4, 2, 0);
    check_attention(1100, 4, 2, 0);
    check_attention(700, 3, 3, 300);
    check_attention(600, 3, 1, 5);
}

/* Blocks. */

typedef struct pass {
    small_model m;
    llama_pass_shape shape;
    int64_t tokens;
    llama_work *work;
    llama_layers *layers;
} pass;

static void pass_open(pass *p, compute_type compute, int64_t tokens, int64_t sliding, bool varied) {
    small_model_make_varied(&p->m, true, sliding, varied);
    p->tokens = tokens;
    p->shape =
        (llama_pass_shape){.compute = compute, .window = tokens, .slice = tokens, .head = true};
    assert_ok(llama_work_create(&p->m.cfg, NULL, &p->shape, &p->work));
    assert_ok(llama_layers_create(&p->m.cfg, NULL, &p->shape, p->m.cfg.layers, false, &p->layers));
}

static void pass_close(pass *p) {
    llama_work_destroy(&p->work);
    llama_layers_destroy(&p->layers);
    llama_stage_clear(&p->m.stage);
}

typedef struct block_line {
    pass *p;
    const double *x, *v, *c;
    double *y;
} block_line;

static double along_block(void *ctx, double t) {
    block_line *l = ctx;
    const int64_t n = l->p->tokens * l->p->m.cfg.hidden;
    for (int64_t i = 0; i < n; i++) l->y[i] = l->x[i] + t * l->v[i];
    assert_ok(
        llama_layers_save(l->p->layers, &l->p->m.stage, NULL, l->p->tokens, l->y, l->p->work));
    return dot_f64(l->y, l->c, n);
}

static void check_block(int64_t tokens, int64_t sliding, bool varied) {
    pass p;
    pass_open(&p, COMPUTE_F64, tokens, sliding, varied);
    const int64_t n = tokens * p.m.cfg.hidden;
    double *x = random_f64(n, 1), *c = random_f64(n, 1), *g = room(n, sizeof *g);
    double *y = room(n, sizeof *y);
    memcpy(y, x, (size_t)n * sizeof *x);
    memcpy(g, c, (size_t)n * sizeof *c);
    assert_ok(llama_layers_save(p.layers, &p.m.stage, NULL, tokens, y, p.work));
    assert_ok(
        llama_layers_backward(p.layers, &p.m.stage, NULL, tokens, g, NULL, NULL, NULL, p.work));
    for (int i = 0; i < 5; i++) {
        double *v = random_f64(n, 1);
        block_line l = {.p = &p, .x = x, .v = v, .c = c, .y = y};
        near_relative(dot_f64(g, v, n), five_point(along_block, &l, 2e-4), 1e-7);
        mem_free(v);
    }
    mem_free(x);
    mem_free(c);
    mem_free(g);
    mem_free(y);
    pass_close(&p);
}

static void test_blocks(void **state) {
    (void)state;
    check_block(23, 0, false);
    check_block(70, 9, false);
    check_block(70, 9, true);
}

/* The forward that keeps gives the bits of the one that does not. */
static void test_save_is_forward(void **state) {
    (void)state;
    for (int variant = 0; variant < 4; variant++) {
        pass p;
        const bool wide = variant & 1;
        pass_open(&p, wide ? COMPUTE_F64 : COMPUTE_F32, 300, 0, variant & 2);
        const size_t bytes = (size_t)(300 * p.m.cfg.hidden) * llama_real_bytes(p.shape.compute);
        double *x = random_f64(300 * p.m.cfg.hidden, 1);
        if (!wide)
            for (int64_t i = 0; i < 300 * p.m.cfg.hidden; i++) ((float *)x)[i] = (float)x[i];
        void *a = room((int64_t)bytes, 1), *b = room((int64_t)bytes, 1);
        memcpy(a, x, bytes);
        memcpy(b, x, bytes);
        llama_scratch *scratch;
        assert_ok(llama_scratch_create(&p.m.cfg, NULL, p.shape.compute, 300, &scratch));
        assert_ok(llama_layers_forward(&p.m.stage, NULL, 300, a, scratch));
        assert_ok(llama_layers_save(p.layers, &p.m.stage, NULL, 300, b, p.work));
        assert_memory_equal(a, b, bytes);
        llama_scratch_destroy(&scratch);
        mem_free(a);
        mem_free(b);
        mem_free(x);
        pass_close(&p);
    }
}

/* A window in slices against the window whole; recompute; threads. */
static void backward_in_slices(const small_model *m, int64_t tokens, int64_t slice, bool recompute,
                               const double *x, const double *c, double *y, double *g) {
    const llama_pass_shape shape = {.compute = COMPUTE_F64, .window = tokens, .slice = slice};
    const int64_t h = m->cfg.hidden;
    llama_work *work;
    llama_saved *saved;
    assert_ok(llama_work_create(&m->cfg, NULL, &shape, &work));
    assert_ok(llama_saved_create(&m->cfg, NULL, &shape, &saved));
    memcpy(g, c, (size_t)(tokens * h) * sizeof *c);
    for (int again = 0; again < (recompute ? 2 : 1); again++) {
        memcpy(y, x, (size_t)(tokens * h) * sizeof *x);
        for (int64_t t = 0; t < tokens; t += slice) {
            const int64_t n = t + slice < tokens ? slice : tokens - t;
            assert_ok(llama_block_forward_save(&m->stage, 1, NULL, t, n, y + t * h, saved, work));
        }
    }
    for (int64_t t = (tokens - 1) / slice * slice; t >= 0; t -= slice) {
        const int64_t n = t + slice < tokens ? slice : tokens - t;
        assert_ok(
            llama_block_backward(&m->stage, 1, NULL, t, n, g + t * h, saved, NULL, NULL, work));
    }
    llama_saved_destroy(&saved);
    llama_work_destroy(&work);
}

static void test_slices(void **state) {
    (void)state;
    small_model m;
    small_model_make_varied(&m, true, 0, true);
    const int64_t tokens = 1300, n = tokens * m.cfg.hidden;
    double *x = random_f64(n, 1), *c = random_f64(n, 1);
    double *y[2], *g[2];
    for (int i = 0; i < 2; i++) {
        y[i] = room(n, sizeof(double));
        g[i] = room(n, sizeof(double));
    }
    backward_in_slices(&m, tokens, tokens, false, x, c, y[0], g[0]);
    const int64_t slices[] = {512, 100, 1299};
    for (int k = 0; k < 3; k++) {
        backward_in_slices(&m, tokens, slices[k], false, x, c, y[1], g[1]);
        for (int64_t i = 0; i < n; i++) {
            assert_true(fabs(y[1][i] - y[0][i]) <= 1e-12 * (1 + fabs(y[0][i])));
            assert_true(fabs(g[1][i] - g[0][i]) <= 1e-11 * (1 + fabs(g[0][i])));
        }
    }
    const int threads = omp_get_max_threads();
    for (int t = 1; t <= 3; t += 2) {
        omp_set_num_threads(t);
        backward_in_slices(&m, tokens, 512, t == 1, x, c, y[t / 2], g[t / 2]);
    }
    omp_set_num_threads(threads);
    assert_memory_equal(y[0], y[1], (size_t)n * sizeof(double));
    assert_memory_equal(g[0], g[1], (size_t)n * sizeof(double));
    for (int i = 0; i < 2; i++) {
        mem_free(y[i]);
        mem_free(g[i]);
    }
    mem_free(x);
    mem_free(c);
    llama_stage_clear(&m.stage);
}

static int32_t *some_targets(int64_t rows, int64_t vocab) {
    int32_t *next = room(rows, sizeof *next);
    for (int64_t t = 0; t < rows; t++) next[t] = t % 7 == 3 ? -1 : (int32_t)(t * 37 % vocab);
    return next;
}

/* Capture: gradients at every place against differences of the whole loss. */

typedef struct captured {
    int seen[HOOK_PLACES];
    float *x[HOOK_PLACES], *g[HOOK_PLACES];
    int64_t layer;
} captured;

static err take(void *ctx, int64_t layer, hook_place place, int64_t t0, int64_t n_tokens,
                int64_t width, const float *x, const float *g) {
    captured *c = ctx;
    assert_int_equal(t0, 0);
    if (layer != c->layer) return err_none();
    c->seen[place]++;
    c->g[place] = room(n_tokens * width, sizeof(float));
    memcpy(c->g[place], g, (size_t)(n_tokens * width) * sizeof *g);
    if (!x) return err_none();
    c->x[place] = room(n_tokens * width, sizeof(float));
    memcpy(c->x[place], x, (size_t)(n_tokens * width) * sizeof *x);
    return err_none();
}

typedef struct capture_line {
    pass *p;
    const int32_t *ids;
    double *x;
    float *bias;
    float from;
    int64_t n;
} capture_line;

static double loss_of_ids(void *ctx, double t) {
    capture_line *l = ctx;
    pass *p = l->p;
    const float old = *l->bias;
    double sum;
    *l->bias = l->from + (float)t;
    const double moved = (double)*l->bias - (double)l->from; /* what fp32 made of t */
    assert_ok(llama_embed(&p->m.stage, COMPUTE_F64, l->ids, p->tokens, l->x));
    assert_ok(llama_layers_save(p->layers, &p->m.stage, NULL, p->tokens, l->x, p->work));
    llama_scratch *scratch;
    assert_ok(llama_scratch_create(&p->m.cfg, NULL, COMPUTE_F64, p->tokens, &scratch));
    assert_ok(llama_head_nll(&p->m.stage, p->tokens, l->x, l->ids, scratch, &sum, NULL));
    llama_scratch_destroy(&scratch);
    *l->bias = old;
    assert_true(moved == t);
    return sum;
}

/* A bias moves every row of an output: its derivative is the sum of the gradients of the rows. */
static void check_bias(capture_line *l, float *bias, const float *g, int64_t width, int64_t j) {
    double sum = 0, size = 0;
    for (int64_t t = 0; t < l->p->tokens; t++) {
        sum += (double)g[t * width + j];
        size += fabs((double)g[t * width + j]);
    }
    l->bias = bias + j;
    bias[j] = ldexpf(rintf(ldexpf(bias[j], 16)), -16); /* so that steps of 2^-12 are exact */
    l->from = bias[j];
    const double want = five_point(loss_of_ids, l, 0x1p-10);
    assert_true(fabs(sum - want) <= 1e-4 * size);
}

static void check_capture(bool varied) {
    pass p;
    pass_open(&p, COMPUTE_F64, 40, 0, varied);
    const llama_config *c = &p.m.cfg;
    int32_t ids[40];
    for (int t = 0; t < 40; t++) ids[t] = t * 131 % 700;
    captured got = {.layer = 0};
    const llama_hook hook = {.places = (1u << HOOK_PLACES) - 1, .take = take, .ctx = &got};
    double nll, want_nll;
    assert_ok(llama_capture(&p.m.stage, ids, 40, &hook, &nll, p.layers, p.work));
    capture_line l = {.p = &p, .ids = ids, .x = room(40 * c->hidden, sizeof(double))};
    llama_layer *layer = &p.m.stage.layers[0];
    l.bias = layer->bq;
    l.from = *l.bias;
    want_nll = loss_of_ids(&l, 0);
    near_relative(nll, want_nll, 1e-12);
    for (int i = 0; i < HOOK_PLACES; i++) assert_int_equal(got.seen[i], 1);
    for (int64_t j = 3; j < 16; j += 5) {
        check_bias(&l, layer->bq, got.g[HOOK_QUERY_OUT], c->heads * c->head_dim, j);
        check_bias(&l, layer->bk, got.g[HOOK_KEY_OUT], c->kv_heads * c->head_dim, j);
        check_bias(&l, layer->bv, got.g[HOOK_VALUE], c->kv_heads * c->head_dim, j);
        check_bias(&l, layer->bo, got.g[HOOK_O_OUT], c->hidden, j);
        check_bias(&l, layer->bgate, got.g[HOOK_GATE_OUT], c->intermediate, j);
        check_bias(&l, layer->bup, got.g[HOOK_UP_OUT], c->intermediate, j);
        check_bias(&l, layer->bdown, got.g[HOOK_DOWN_OUT], c->hidden, j);
    }
    /* inputs: g of an input is g of the output times W, x of it gives the output itself */
    const float *down = layer->down.data, *v = layer->v.data;
    for (int64_t t = 0; t < 40; t += 13) {
        for (int64_t i = 0; i < 5; i++) {
            double sum = 0, value = (double)layer->bv[i];
            for (int64_t j = 0; j < c->hidden; j++) {
                sum += (double)got.g[HOOK_DOWN_OUT][t * c->hidden + j] *
                       (double)down[j * c->intermediate + i];
                value += (double)got.x[HOOK_ATTN_IN][t * c->hidden + j] *
                         (double)layer->attn_norm[j] * (double)v[i * c->hidden + j];
            }
            assert_true(fabs(sum - (double)got.g[HOOK_DOWN_IN][t * c->intermediate + i]) <= 1e-5);
            assert_true(fabs(value - (double)got.x[HOOK_VALUE][t * 16 + i]) <= 1e-5);
        }
    }
    for (int i = 0; i < HOOK_PLACES; i++) {
        mem_free(got.x[i]);
        mem_free(got.g[i]);
    }
    mem_free(l.x);
    pass_close(&p);
}

static void test_capture(void **state) {
    (void)state;
    check_capture(false);
    check_capture(true);
}

/* fp32 and bf16 against fp64. */
static void gradient_of_type(const small_model *m, compute_type compute, bool recompute,
                             const int32_t *ids, int64_t tokens, double *g, double *loss) {
    const llama_pass_shape shape = {
        .compute = compute, .window = tokens, .slice = tokens, .head = true};
    llama_work *work;
    llama_layers *layers;
    const int64_t n = tokens * m->cfg.hidden;
    assert_ok(llama_work_create(&m->cfg, NULL, &shape, &work));
    assert_ok(llama_layers_create(&m->cfg, NULL, &shape, m->cfg.layers, recompute, &layers));
    void *x = room(n, sizeof(double));
    int32_t *next = some_targets(tokens, m->cfg.vocab);
    assert_ok(llama_embed(&m->stage, compute, ids, tokens, x));
    assert_ok(llama_layers_save(layers, &m->stage, NULL, tokens, x, work));
    assert_ok(llama_ce_backward(&m->stage, tokens, x, next, 1, x, loss, NULL, work));
    assert_ok(llama_layers_backward(layers, &m->stage, NULL, tokens, x, NULL, NULL, NULL, work));
    for (int64_t i = 0; i < n; i++)
        g[i] = compute == COMPUTE_F64 ? ((double *)x)[i] : (double)((float *)x)[i];
    mem_free(x);
    mem_free(next);
    llama_layers_destroy(&layers);
    llama_work_destroy(&work);
}

static void test_types(void **state) {
    (void)state;
    small_model m;
    small_model_make(&m, true, 0);
    const int64_t tokens = 333, n = tokens * m.cfg.hidden;
    int32_t ids[333];
    for (int t = 0; t < tokens; t++) ids[t] = t * 53 % 700;
    double *g[4], loss[4];
    for (int i = 0; i < 4; i++) g[i] = room(n, sizeof(double));
    gradient_of_type(&m, COMPUTE_F64, false, ids, tokens, g[0], &loss[0]);
    gradient_of_type(&m, COMPUTE_F32, false, ids, tokens, g[1], &loss[1]);
    gradient_of_type(&m, COMPUTE_F32, true, ids, tokens, g[3], &loss[3]);
    assert_memory_equal(g[1], g[3], (size_t)n * sizeof(double));
    assert_ok(llama_stage_prepare(&m.stage, COMPUTE_BF16));
    gradient_of_type(&m, COMPUTE_BF16, false, ids, tokens, g[2], &loss[2]);
    const double tolerance[] = {0, 3e-6, 0.05};
    for (int k = 1; k < 3; k++) {
        double off = 0, size = 0;
        for (int64_t i = 0; i < n; i++) {
            off += (g[k][i] - g[0][i]) * (g[k][i] - g[0][i]);
            size += g[0][i] * g[0][i];
        }
        print_message("type %d: gradient off by %.2g, loss by %.2g\n", k, sqrt(off / size),
                      fabs(loss[k] / loss[0] - 1));
        assert_true(sqrt(off / size) <= tolerance[k]);
        assert_true(fabs(loss[k] / loss[0] - 1) <= tolerance[k] / 10);
    }
    for (int i = 0; i < 4; i++) mem_free(g[i]);
    llama_stage_clear(&m.stage);
}

int main(void) {
    gemm_init(1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_norm_and_rope),   cmocka_unit_test(test_products),
        cmocka_unit_test(test_attention),       cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_save_is_forward), cmocka_unit_test(test_slices),

        cmocka_unit_test(test_capture),         cmocka_unit_test(test_types),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
