/* For each linear: rotate in fp32, quantize rows, rotate the error back and add it to W. The
 * gradient of a rotation is a product of the error of the weights with the gradient of the
 * linear's output. */
#include "model/weight_site.h"

#include "base/gemm.h"
#include "base/mem.h"
#include "base/size.h"
#include "model/sites.h"
#include "model/wmat_back.h"

#include <string.h>

/* A layer as it is used: matrices owned, biases and gains borrowed. */
typedef struct weight_layer {
    wmat moved[LLAMA_LINEARS]; /* D, in the order of llama_linears */
} weight_layer;

struct weight_site {
    const llama_stage *from;
    llama_stage used; /* W^; embedding, head and vectors are those of `from` */
    weight_layer *d;  /* [n_layers] */
    wquant how;
    compute_type compute; /* of products with D */
    llama_pass_shape shape;
    const llama_sites *sites; /* of the pass at hand */
    float *ones;              /* [hidden] */
    /* of a refresh */
    float *plain, *turned, *other; /* [largest matrix] */
    float *R1;                     /* [hidden, hidden] */
    double *row;                   /* [hidden] of a rotation */
    /* of a slice */
    float *g_out;          /* [slice, hidden] gradient of o's or down's outputs */
    float *g_v;            /* [slice, kv_heads head_dim] */
    float *g_in;           /* [slice, hidden] sum of g D of the readers so far */
    float *x, *y;          /* [slice, widest] */
    void *factors;         /* [slice, widest] */
    void *tiles;           /* of products */
    uint64_t thread_bytes; /* of tiles, a thread */
    void *panel, *rows;    /* of a site */
    float *M1, *M2;        /* [hidden, hidden], [kv_heads, head_dim, head_dim] (dL/dR) R^T */
};

enum { Q, K, V, O, GATE, UP, DOWN };

static int64_t widest(const llama_config *c) {
    return size_max(c->hidden, size_max(c->intermediate, c->heads * c->head_dim));
}

static int64_t largest(const llama_config *c) {
    return c->hidden * widest(c);
}

static size_t weight_bytes(compute_type compute) {
    return compute == COMPUTE_BF16 ? sizeof(bf16) : sizeof(float);
}

uint64_t weight_site_bytes(const llama_config *c, const llama_pass_shape *shape, int64_t n_layers) {
    const uint64_t n = (uint64_t)c->hidden, slice = (uint64_t)shape->slice,
                   wide = (uint64_t)widest(c), d = (uint64_t)c->head_dim,
                   layer = n * (uint64_t)(2 * (c->heads + c->kv_heads) * c->head_dim +
                                          3 * c->intermediate);
    return 2 * (uint64_t)n_layers * layer * weight_bytes(shape->compute) +
           12 * (uint64_t)largest(c) + 8 * n * n + slice * (8 * n + 20 * wide) +
           4 * (uint64_t)c->kv_heads * d * (d + slice);
}

/* ---- life ---- */

static err empty_like(const wmat *w, compute_type compute, wmat *out) {
    return wmat_init(out, compute == COMPUTE_BF16 ? WMAT_BF16 : WMAT_F32, w->rows, w->cols,
                     "weights in the loop");
}

/* The layers of `used`: what they own are matrices alone. */
static err create_layers(weight_site *w) {
    void *layers = NULL, *d = NULL;
    const int64_t n = w->from->n_layers;
    err e = mem_alloc(n, sizeof(llama_layer), "weights in the loop", &layers);
    if (!e.code) e = mem_alloc(n, sizeof(weight_layer), "weights in the loop", &d);
    w->used = *w->from;
    w->used.layers = layers;
    w->d = d;
    for (int64_t i = 0; i < n && !e.code; i++) {
        llama_layer *to = &w->used.layers[i];
        *to = w->from->layers[i];
        for (int k = 0; k < LLAMA_LINEARS; k++)
            *llama_layer_linear(to, k) = (wmat){.kind = WMAT_NONE};
        for (int k = 0; k < LLAMA_LINEARS && !e.code; k++) {
            const wmat *like = llama_layer_linear(&w->from->layers[i], k);
            e = empty_like(like, w->compute, llama_layer_linear(to, k));
            if (!e.code) e = empty_like(like, w->compute, &w->d[i].moved[k]);
        }
    }
    return e;
}

static err room(int64_t count, size_t size, void *out) {
    void *p = NULL;
    err e = mem_alloc(count, size, "weights in the loop", &p);
    memcpy(out, &p, sizeof p);
    return e;
}

static err create_buffers(weight_site *w) {
    const llama_config *c = w->from->cfg;
    const int64_t n = c->hidden, slice = w->shape.slice, wide = widest(c), d = c->head_dim;
    w->thread_bytes = wmat_tile_scratch_bytes(w->compute);
    err e = room(n, sizeof(float), &w->ones);
    if (!e.code) e = room(largest(c), sizeof(float), &w->plain);
    if (!e.code) e = room(largest(c), sizeof(float), &w->turned);
    if (!e.code) e = room(largest(c), sizeof(float), &w->other);
    if (!e.code) e = room(n * n, sizeof(float), &w->R1);
    if (!e.code) e = room(size_max(n, d), sizeof(double), &w->row);
    if (!e.code) e = room(slice * n, sizeof(float), &w->g_out);
    if (!e.code) e = room(slice * c->kv_heads * d, sizeof(float), &w->g_v);
    if (!e.code) e = room(slice * n, sizeof(float), &w->g_in);
    if (!e.code) e = room(slice * wide, sizeof(float), &w->x);
    if (!e.code) e = room(slice * wide, sizeof(float), &w->y);
    if (!e.code) e = room(slice * wide, sizeof(float), &w->factors);
    if (!e.code) e = room(gemm_threads() * (int64_t)w->thread_bytes, 1, &w->tiles);
    if (!e.code) e = room(slice * wide, sizeof(float), &w->panel);
    if (!e.code) e = room(gemm_threads() * wide, sizeof(float), &w->rows);
    if (!e.code) e = room(n * n, sizeof(float), &w->M1);
    if (!e.code) e = room(c->kv_heads * d * d, sizeof(float), &w->M2);
    for (int64_t j = 0; j < n && !e.code; j++) w->ones[j] = 1;
    return e;
}

err weight_site_create(const llama_stage *stage, const wquant *how, const llama_pass_shape *shape,
                       const llama_sites *sites, weight_site **out) {
    void *p;
    *out = NULL;
    if (sites->scales)
        return err_make(ERR_BUG, "weights in the loop", NULL, "scales are not supported here");
    err e = mem_alloc(1, sizeof(weight_site), "weights in the loop", &p);
    if (e.code) return e;
    weight_site *w = p;
    *w = (weight_site){.from = stage, .how = *how, .shape = *shape};
    w->compute = shape->compute == COMPUTE_BF16 ? COMPUTE_BF16 : COMPUTE_F32;
    e = create_layers(w);
    if (!e.code) e = create_buffers(w);
    if (e.code) weight_site_destroy(&w);
    *out = w;
    return e;
}

void weight_site_destroy(weight_site **loop) {
    weight_site *w = *loop;
    if (!w) return;
    for (int64_t i = 0; w->d && i < w->from->n_layers; i++)
        for (int k = 0; k < LLAMA_LINEARS; k++) {
            wmat_clear(llama_layer_linear(&w->used.layers[i], k));
            wmat_clear(&w->d[i].moved[k]);
        }
    void *const all[] = {w->used.layers, w->d,  w->ones,    w->plain, w->turned,
                         w->other,       w->R1, w->g_out,   w->g_v,   w->g_in,
                         w->x,           w->y,  w->factors, w->tiles, w->panel,
                         w->rows,        w->M1, w->M2,      w->row};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) mem_free(all[i]);
    mem_free(w);
    *loop = NULL;
}

const llama_stage *weight_site_stage(const weight_site *w) {
    return &w->used;
}

/* ---- W^ and D ---- */

static const rotation *r2_at(const llama_sites *s, const llama_config *c, int64_t layer,
                             int64_t kv_head) {
    if (!s->R2) return NULL;
    return s->R2[s->r2_per_head ? layer * c->kv_heads + kv_head : layer];
}

/* R as fp32 [n, n]. */
static void dense_f32(const weight_site *w, const rotation *R, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i++) {
        rotation_dense_rows(R, i, 1, w->row);
        for (int64_t j = 0; j < n; j++) out[i * n + j] = (float)w->row[j];
    }
}

/* Rows times B, or B^T where `back`. */
static void turn_inputs(const llama_sites *s, const llama_config *c, int64_t layer, int k, float *w,
                        int64_t rows, bool back) {
    const int64_t d = c->head_dim;
    if (k == DOWN) {
        rotation_apply_f32(s->R4, w, rows, c->intermediate, back);
    } else if (k == O) {
        for (int64_t h = 0; h < c->heads; h++)
            rotation_apply_f32(r2_at(s, c, layer, h / (c->heads / c->kv_heads)), w + h * d, rows,
                               c->heads * d, back);
    } else {
        rotation_apply_f32(s->R1, w, rows, c->hidden, back);
    }
}

/* to = A^T from, or A from where `back`; [rows, cols]. False where there is no A. */
static bool turn_outputs(const weight_site *w, const llama_sites *s, int64_t layer, int k,
                         const float *from, float *to, int64_t rows, int64_t cols, bool back) {
    const llama_config *c = w->from->cfg;
    const int64_t d = c->head_dim;
    if ((k == O || k == DOWN) && s->R1) {
        gemm_f32(!back, false, rows, cols, rows, w->R1, rows, from, cols, false, to, cols);
        return true;
    }
    if (k != V || !s->R2) return false;
    for (int64_t h = 0; h < c->kv_heads; h++) {
        float *dense = w->M2; /* nothing is summed there yet */
        dense_f32(w, r2_at(s, c, layer, h), d, dense);
        gemm_f32(!back, false, d, cols, d, dense, d, from + h * d * cols, cols, false,
                 to + h * d * cols, cols);
    }
    return true;
}

static void put(wmat *to, const float *v) {
    const int64_t n = to->rows * to->cols;
    if (to->kind == WMAT_BF16)
        half_array_to_bf16(v, n, to->data);
    else
        memcpy(to->data, v, (size_t)n * sizeof *v);
}

/* v [rows, cols] becomes Q(v) - v. */
static err rounding_error(const weight_site *w, float *v, float *scratch, int64_t rows,
                          int64_t cols) {
    qmatrix *q;
    err e = qmatrix_create(rows, cols, &w->how, &q);
    if (e.code) return e;
    rtn_quantize_rows(&w->how, v, rows, cols, 0, q);
    qmatrix_dequantize_rows(q, 0, rows, scratch);
    for (int64_t i = 0; i < rows * cols; i++) v[i] = scratch[i] - v[i];
    qmatrix_destroy(&q);
    return err_none();
}

static err refresh_linear(weight_site *w, const llama_sites *s, int64_t i, int k) {
    const llama_layer *from = &w->from->layers[i];
    const wmat *m = llama_layer_linear((llama_layer *)from, k);
    const int64_t layer = w->from->first_layer + i, rows = m->rows, cols = m->cols,
                  all = rows * cols;
    const float *gain = !s->R1 || k == O || k == DOWN ? NULL
                        : k == GATE || k == UP        ? from->mlp_norm
                                                      : from->attn_norm;
    wmat_expand_f32(m, 0, rows, 0, cols, w->plain, cols);
    for (int64_t r = 0; gain && r < rows; r++)
        for (int64_t j = 0; j < cols; j++) w->plain[r * cols + j] *= gain[j];
    float *u = w->turned, *v = w->other;
    memcpy(u, w->plain, (size_t)all * sizeof *u);
    turn_inputs(s, w->from->cfg, layer, k, u, rows, false);
    const bool mixed = turn_outputs(w, s, layer, k, u, v, rows, cols, false);
    err e = rounding_error(w, mixed ? v : u, mixed ? u : v, rows, cols);
    if (e.code) return e;
    if (mixed) turn_outputs(w, s, layer, k, v, u, rows, cols, true);
    turn_inputs(s, w->from->cfg, layer, k, u, rows, true);
    put(&w->d[i].moved[k], u);
    for (int64_t j = 0; j < all; j++) w->plain[j] += u[j];
    put(llama_layer_linear(&w->used.layers[i], k), w->plain);
    return e;
}

err weight_site_refresh(weight_site *w, const llama_sites *s) {
    const int64_t n = w->from->cfg->hidden;
    err e = err_none();
    if (s->R1) dense_f32(w, s->R1, n, w->R1);
    for (int64_t i = 0; i < w->from->n_layers && !e.code; i++) {
        const llama_layer *from = &w->from->layers[i];
        w->used.layers[i].attn_norm = s->R1 ? w->ones : from->attn_norm;
        w->used.layers[i].mlp_norm = s->R1 ? w->ones : from->mlp_norm;
        for (int k = 0; k < LLAMA_LINEARS && !e.code; k++) e = refresh_linear(w, s, i, k);
    }
    memset(w->M2, 0,
           (size_t)(w->from->cfg->kv_heads * w->from->cfg->head_dim * w->from->cfg->head_dim) *
               sizeof *w->M2);
    return e;
}

/* ---- the gradient ---- */

static const void *factors_of(const weight_site *w, const float *x, int64_t n) {
    if (w->compute != COMPUTE_BF16) return x;
    half_array_to_bf16(x, n, w->factors);
    return w->factors;
}

/* to [T, cols] = g D. */
static void times_d(const weight_site *w, const wmat *D, const float *g, int64_t n_tokens,
                    float *to) {
    const wmat_back_term term = {D, factors_of(w, g, n_tokens * D->rows)};
    wmat_back_products(&term, 1, w->compute, n_tokens, to, w->tiles, w->thread_bytes);
}

/* to [T, rows] = x D^T. */
static void times_dt(const weight_site *w, const wmat *D, const float *x, int64_t n_tokens,
                     float *to) {
    wmat_product(D, w->compute, factors_of(w, x, n_tokens * D->cols), n_tokens, false, to, w->tiles,
                 w->thread_bytes);
}

/* x^ of a site from x, into w->x. */
static void through_site(const weight_site *w, const site *s, const float *x, int64_t n_tokens) {
    const int64_t wide = widest(w->from->cfg);
    const site_scratch scratch = {.panel = w->panel,
                                  .panel_room = w->shape.slice * wide,
                                  .threads = w->rows,
                                  .thread_bytes = (uint64_t)wide * sizeof(float)};
    memcpy(w->x, x, (size_t)(n_tokens * s->n) * sizeof *x);
    if (site_acts(s)) site_apply_f32(s, w->x, n_tokens, &scratch);
}

/* M += a^T b of heads: columns [h d, h d + d) of both, head h into part h / share. */
static void add_heads(const weight_site *w, const float *a, const float *b, int64_t heads,
                      int64_t share, int64_t n_tokens) {
    const int64_t d = w->from->cfg->head_dim;
    for (int64_t h = 0; h < heads; h++)
        gemm_f32(true, false, d, d, n_tokens, a + h * d, heads * d, b + h * d, heads * d, true,
                 w->M2 + h / share * d * d, d);
}

static void add_whole(const weight_site *w, const float *a, const float *b, int64_t n_tokens) {
    const int64_t n = w->from->cfg->hidden;
    gemm_f32(true, false, n, n, n_tokens, a, n, b, n, true, w->M1, n);
}

/* q, k, v, gate, up: g D, whose x comes last. */
static void add_reader(const weight_site *w, const wmat *D, const float *g, int64_t n_tokens,
                       bool first) {
    const int64_t n = n_tokens * w->from->cfg->hidden;
    times_d(w, D, g, n_tokens, first ? w->g_in : w->y);
    for (int64_t i = 0; !first && i < n; i++) w->g_in[i] += w->y[i];
}

static void back_attn_in(const weight_site *w, const weight_layer *l, int64_t n_tokens) {
    const int64_t kv = w->from->cfg->kv_heads;
    if (w->shape.r1) add_whole(w, w->x, w->g_in, n_tokens);
    if (!w->shape.r2) return;
    times_dt(w, &l->moved[V], w->x, n_tokens, w->y);
    add_heads(w, w->g_v, w->y, kv, 1, n_tokens);
}

static void back_o_in(const weight_site *w, const weight_layer *l, int64_t n_tokens) {
    const llama_config *c = w->from->cfg;
    if (w->shape.r1) {
        times_dt(w, &l->moved[O], w->x, n_tokens, w->y);
        add_whole(w, w->g_out, w->y, n_tokens);
    }
    if (!w->shape.r2) return;
    times_d(w, &l->moved[O], w->g_out, n_tokens, w->y);
    add_heads(w, w->x, w->y, c->heads, c->heads / c->kv_heads, n_tokens);
}

static err take(void *ctx, int64_t layer, tap_place place, int64_t t0, int64_t n_tokens,
                int64_t width, const float *x, const float *g) {
    weight_site *w = ctx;
    const llama_config *c = w->from->cfg;
    const weight_layer *l = &w->d[layer - w->from->first_layer];
    const size_t bytes = (size_t)(n_tokens * width) * sizeof *g;
    site s;
    (void)t0;
    switch (place) {
    case TAP_DOWN_OUT:
    case TAP_O_OUT:
        memcpy(w->g_out, g, bytes);
        break;
    case TAP_DOWN_IN:
        s = sites_down(w->sites, c, layer);
        through_site(w, &s, x, n_tokens);
        times_dt(w, &l->moved[DOWN], w->x, n_tokens, w->y);
        if (w->shape.r1) add_whole(w, w->g_out, w->y, n_tokens);
        break;
    case TAP_O_IN:
        s = sites_output(w->sites, c, layer);
        through_site(w, &s, x, n_tokens);
        back_o_in(w, l, n_tokens);
        break;
    case TAP_GATE_OUT:
    case TAP_UP_OUT:
        add_reader(w, &l->moved[place == TAP_GATE_OUT ? GATE : UP], g, n_tokens,
                   place == TAP_GATE_OUT);
        break;
    case TAP_MLP_IN:
        s = sites_input(w->sites, c, layer, NORM_MLP);
        through_site(w, &s, x, n_tokens);
        if (w->shape.r1) add_whole(w, w->x, w->g_in, n_tokens);
        break;
    case TAP_QUERY_OUT:
    case TAP_KEY_OUT:
        add_reader(w, &l->moved[place == TAP_QUERY_OUT ? Q : K], g, n_tokens,
                   place == TAP_QUERY_OUT);
        break;
    case TAP_VALUE_OUT:
        memcpy(w->g_v, g, bytes);
        add_reader(w, &l->moved[V], g, n_tokens, false);
        break;
    case TAP_ATTN_IN:
        s = sites_input(w->sites, c, layer, NORM_ATTN);
        through_site(w, &s, x, n_tokens);
        back_attn_in(w, l, n_tokens);
        break;
    default:
        break;
    }
    return err_none();
}

llama_tap weight_site_tap(weight_site *w, const llama_sites *sites) {
    w->sites = sites;
    return (llama_tap){.places = ((1u << TAP_PLACES) - 1) & ~(1u << TAP_KEY | 1u << TAP_VALUE),
                       .take = take,
                       .ctx = w};
}

/* to += M R, real. */
static void add_turned(const weight_site *w, const float *M, const float *R, int64_t n, void *to) {
    float *product = w->turned;
    gemm_f32(false, false, n, n, n, M, n, R, n, false, product, n);
    for (int64_t i = 0; i < n * n; i++) {
        if (w->shape.compute == COMPUTE_F64)
            ((double *)to)[i] += (double)product[i];
        else
            ((float *)to)[i] += product[i];
    }
}

void weight_site_add(weight_site *w, int64_t layer, const rotation_grads *grads) {
    const llama_config *c = w->from->cfg;
    const int64_t n = c->hidden, d = c->head_dim;
    const size_t real = llama_real_bytes(w->shape.compute);
    if (grads->R1 && w->sites->R1) add_turned(w, w->M1, w->R1, n, grads->R1);
    for (int64_t h = 0; grads->R2 && w->sites->R2 && h < c->kv_heads; h++) {
        float *R = w->other;
        dense_f32(w, r2_at(w->sites, c, layer, h), d, R);
        add_turned(w, w->M2 + h * d * d, R, d,
                   (char *)grads->R2 + (w->sites->r2_per_head ? (size_t)(h * d * d) * real : 0));
    }
    memset(w->M1, 0, (size_t)(n * n) * sizeof *w->M1);
    memset(w->M2, 0, (size_t)(c->kv_heads * d * d) * sizeof *w->M2);
}
