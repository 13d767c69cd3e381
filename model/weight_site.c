/* For each linear: rotate in fp32, quantize rows, rotate the error back and add it to W. The
 * gradient of a rotation is a product of the error of the weights with the gradient of the
 * linear's output. */
#include "model/weight_site.h"

#include "base/gemm.h"
#include "base/mem.h"
#include "base/size.h"
#include "model/sites.h"
#include "model/weight_scale.h"
#include "model/wmat_backward.h"

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
    float *plain, *rotated, *other; /* [largest matrix] */
    float *R1;                      /* [hidden, hidden] */
    double *row;                    /* [hidden] of a rotation */
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
    float *dense;          /* [head_dim, head_dim] an R2 */
    /* of scales; NULL where none are learned */
    scale_sizes sizes;
    float *g_saved; /* [slice, outputs]: gradients of the readers until their x comes */
    float *fourth;  /* [largest matrix] */
    double *dS;     /* [scale_sizes_at of shape.scales] */
    double *one;    /* [widest]: of a linear */
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

/* Outputs of the linears that read one input. */
static int64_t readers_of(const llama_config *c) {
    return size_max((c->heads + 2 * c->kv_heads) * c->head_dim, 2 * c->intermediate);
}

static uint64_t scale_bytes(const llama_config *c, const llama_pass_shape *shape) {
    const scale_sizes sizes = llama_scale_sizes(c);
    const int64_t entries = scale_sizes_at(&sizes, shape->scales, SCALE_KINDS);
    if (!shape->scales) return 0;
    return (uint64_t)(entries + widest(c)) * sizeof(double) +
           (uint64_t)(shape->slice * readers_of(c)) * sizeof(float);
}

uint64_t weight_site_bytes(const llama_config *c, const llama_pass_shape *shape, int64_t n_layers) {
    const uint64_t n = (uint64_t)c->hidden, slice = (uint64_t)shape->slice,
                   wide = (uint64_t)widest(c), d = (uint64_t)c->head_dim,
                   layer = n * (uint64_t)(2 * (c->heads + c->kv_heads) * c->head_dim +
                                          3 * c->intermediate);
    return 2 * (uint64_t)n_layers * layer * weight_bytes(shape->compute) +
           (shape->scales ? 16 : 12) * (uint64_t)largest(c) + scale_bytes(c, shape) + 8 * n * n +
           slice * (8 * n + 20 * wide) + 4 * (uint64_t)c->kv_heads * d * (d + slice);
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
    if (!e.code) e = room(largest(c), sizeof(float), &w->rotated);
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
    if (!e.code) e = room(d * d, sizeof(float), &w->dense);
    for (int64_t j = 0; j < n && !e.code; j++) w->ones[j] = 1;
    return e;
}

static err create_scale_buffers(weight_site *w) {
    const llama_config *c = w->from->cfg;
    w->sizes = llama_scale_sizes(c);
    if (!w->shape.scales) return err_none();
    err e = room(w->shape.slice * readers_of(c), sizeof(float), &w->g_saved);
    if (!e.code) e = room(largest(c), sizeof(float), &w->fourth);
    if (!e.code)
        e = room(scale_sizes_at(&w->sizes, w->shape.scales, SCALE_KINDS), sizeof(double), &w->dS);
    if (!e.code) e = room(widest(c), sizeof(double), &w->one);
    return e;
}

err weight_site_create(const llama_stage *stage, const wquant *how, const llama_pass_shape *shape,
                       const llama_sites *sites, weight_site **out) {
    void *p;
    *out = NULL;
    (void)sites;
    err e = mem_alloc(1, sizeof(weight_site), "weights in the loop", &p);
    if (e.code) return e;
    weight_site *w = p;
    *w = (weight_site){.from = stage, .how = *how, .shape = *shape};
    w->compute = shape->compute == COMPUTE_BF16 ? COMPUTE_BF16 : COMPUTE_F32;
    e = create_layers(w);
    if (!e.code) e = create_buffers(w);
    if (!e.code) e = create_scale_buffers(w);
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
    void *const all[] = {w->used.layers, w->d,       w->ones,   w->plain, w->rotated, w->other,
                         w->R1,          w->g_out,   w->g_v,    w->g_in,  w->x,       w->y,
                         w->factors,     w->tiles,   w->panel,  w->rows,  w->M1,      w->M2,
                         w->row,         w->g_saved, w->fourth, w->dS,    w->one,     w->dense};
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

/* Rows times B, or B^T where `inverse`. */
static void rotate_inputs(const llama_sites *s, const llama_config *c, int64_t layer, int k,
                          float *w, int64_t rows, bool inverse) {
    const int64_t d = c->head_dim;
    if (k == DOWN) {
        rotation_apply_f32(s->R4, w, rows, c->intermediate, inverse);
    } else if (k == O) {
        for (int64_t h = 0; h < c->heads; h++)
            rotation_apply_f32(r2_at(s, c, layer, h / (c->heads / c->kv_heads)), w + h * d, rows,
                               c->heads * d, inverse);
    } else {
        rotation_apply_f32(s->R1, w, rows, c->hidden, inverse);
    }
}

/* to = A^T from, or A from where `inverse`; [rows, cols]. False where there is no A. */
static bool rotate_outputs(const weight_site *w, const llama_sites *s, int64_t layer, int k,
                           const float *from, float *to, int64_t rows, int64_t cols, bool inverse) {
    const llama_config *c = w->from->cfg;
    const int64_t d = c->head_dim;
    if ((k == O || k == DOWN) && s->R1) {
        gemm_f32(gemm_op_of(!inverse), GEMM_N, rows, cols, rows, w->R1, rows, from, cols, GEMM_SET,
                 to, cols);
        return true;
    }
    if (k != V || !s->R2) return false;
    for (int64_t h = 0; h < c->kv_heads; h++) {
        dense_f32(w, r2_at(s, c, layer, h), d, w->dense);
        gemm_f32(gemm_op_of(!inverse), GEMM_N, d, cols, d, w->dense, d, from + h * d * cols, cols,
                 GEMM_SET, to + h * d * cols, cols);
    }
    return true;
}

/* m with the scales before the rotations, or (inverse) without them again. */
static void scale_before(const weight_site *w, const llama_sites *s, int64_t layer, int k,
                         bool inverse, float *m, int64_t rows, int64_t cols) {
    const llama_config *c = w->from->cfg;
    const weight_scales l = weight_scales_of(c, k);
    weight_scale_rows(weight_scale_at(s, l.out, layer), weight_scale_part(c, l.out), l.share,
                      scale_way_of(l.out_way, inverse), m, rows, cols);
    weight_scale_columns(weight_scale_at(s, l.in, layer), weight_scale_part(c, l.in), l.share,
                         scale_way_of(SCALE_TIMES, inverse), m, rows, cols);
}

static void scale_after(const weight_site *w, const llama_sites *s, int64_t layer, int k,
                        bool inverse, float *m, int64_t rows, int64_t cols) {
    const weight_scales l = weight_scales_of(w->from->cfg, k);
    weight_scale_columns(weight_scale_at(s, l.after, layer), cols, 1,
                         scale_way_of(SCALE_TIMES, inverse), m, rows, cols);
}

/* m, of the checkpoint's basis, to that in which weights are rounded: in m, or in spare, which is
 * told. over: as a gradient goes, with all scales inverted. */
static float *to_rounded(const weight_site *w, const llama_sites *s, int64_t layer, int k,
                         bool over, float *m, float *spare, int64_t rows, int64_t cols) {
    scale_before(w, s, layer, k, over, m, rows, cols);
    rotate_inputs(s, w->from->cfg, layer, k, m, rows, false);
    scale_after(w, s, layer, k, over, m, rows, cols);
    return rotate_outputs(w, s, layer, k, m, spare, rows, cols, false) ? spare : m;
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

/* The gain is folded into what reads the norm: R1 stands between, or scales take its place. */
static bool folds_gain(const llama_sites *s, int64_t layer, scale_kind norm) {
    return s->R1 || scale_set_get(s->scales, norm, layer);
}

/* The gain of the norm that is in no linear; NULL: it is folded. */
static const float *gain_left(const weight_site *w, int64_t layer, scale_kind norm) {
    const llama_layer *from = &w->from->layers[layer - w->from->first_layer];
    if (folds_gain(w->sites, layer, norm)) return NULL;
    return norm == SCALE_ATTN ? from->attn_norm : from->mlp_norm;
}

/* W of the checkpoint with its gain, in fp32. */
static void plain_weights(const weight_site *w, const llama_sites *s, int64_t i, int k,
                          float *out) {
    const llama_layer *from = &w->from->layers[i];
    const wmat *m = llama_layer_linear((llama_layer *)from, k);
    const scale_kind norm = weight_scales_of(w->from->cfg, k).after;
    const bool folds = norm != SCALE_KINDS && folds_gain(s, w->from->first_layer + i, norm);
    const float *gain = norm == SCALE_ATTN ? from->attn_norm : from->mlp_norm;
    wmat_expand_f32(m, 0, m->rows, 0, m->cols, out, m->cols);
    for (int64_t r = 0; folds && r < m->rows; r++)
        for (int64_t j = 0; j < m->cols; j++) out[r * m->cols + j] *= gain[j];
}

static err refresh_linear(weight_site *w, const llama_sites *s, int64_t i, int k) {
    const llama_layer *from = &w->from->layers[i];
    const wmat *m = llama_layer_linear((llama_layer *)from, k);
    const int64_t layer = w->from->first_layer + i, rows = m->rows, cols = m->cols,
                  all = rows * cols;
    plain_weights(w, s, i, k, w->plain);
    float *u = w->rotated, *v = w->other;
    memcpy(u, w->plain, (size_t)all * sizeof *u);
    const bool mixed = to_rounded(w, s, layer, k, false, u, v, rows, cols) == v;
    err e = rounding_error(w, mixed ? v : u, mixed ? u : v, rows, cols);
    if (e.code) return e;
    if (mixed) rotate_outputs(w, s, layer, k, v, u, rows, cols, true);
    scale_after(w, s, layer, k, true, u, rows, cols);
    rotate_inputs(s, w->from->cfg, layer, k, u, rows, true);
    scale_before(w, s, layer, k, true, u, rows, cols);
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
        const int64_t layer = w->from->first_layer + i;
        llama_layer *to = &w->used.layers[i];
        to->attn_norm = folds_gain(s, layer, SCALE_ATTN) ? w->ones : from->attn_norm;
        to->mlp_norm = folds_gain(s, layer, SCALE_MLP) ? w->ones : from->mlp_norm;
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
    const wmat_backward_term term = {D, factors_of(w, g, n_tokens * D->rows)};
    wmat_backward_products(&term, 1, w->compute, n_tokens, to, w->tiles, w->thread_bytes);
}

/* to [T, rows] = x D^T. */
static void times_dt(const weight_site *w, const wmat *D, const float *x, int64_t n_tokens,
                     float *to) {
    wmat_product(D, w->compute, factors_of(w, x, n_tokens * D->cols), n_tokens, GEMM_SET, to,
                 w->tiles, w->thread_bytes);
}

/* x^ of a site from x, into w->x. */
/* w->x = rows x through a site; gain: that of the norm before it, where it stays in the norm, so
 * that the site stands behind it (site_behind_gain). */
static void through_site(const weight_site *w, const site *s, const float *x, const float *gain,
                         int64_t n_tokens) {
    const int64_t wide = widest(w->from->cfg);
    const site_scratch scratch = {.panel = w->panel,
                                  .panel_room = w->shape.slice * wide,
                                  .threads = w->rows,
                                  .thread_bytes = (uint64_t)wide * sizeof(float)};
    memcpy(w->x, x, (size_t)(n_tokens * s->n) * sizeof *x);
    for (int64_t t = 0; gain && t < n_tokens; t++)
        for (int64_t j = 0; j < s->n; j++) w->x[t * s->n + j] *= gain[j];
    if (site_acts(s)) site_apply_f32(s, w->x, n_tokens, &scratch);
}

/* M += a^T b of heads: columns [h d, h d + d) of both, head h into part h / share. */
static void add_heads(const weight_site *w, const float *a, const float *b, int64_t heads,
                      int64_t share, int64_t n_tokens) {
    const int64_t d = w->from->cfg->head_dim;
    for (int64_t h = 0; h < heads; h++)
        gemm_f32(GEMM_T, GEMM_N, d, d, n_tokens, a + h * d, heads * d, b + h * d, heads * d,
                 GEMM_ADD, w->M2 + h / share * d * d, d);
}

static void add_whole(const weight_site *w, const float *a, const float *b, int64_t n_tokens) {
    const int64_t n = w->from->cfg->hidden;
    gemm_f32(GEMM_T, GEMM_N, n, n, n_tokens, a, n, b, n, GEMM_ADD, w->M1, n);
}

/* q, k, v, gate, up: g D, whose x comes last. */
static void add_reader(const weight_site *w, const wmat *D, const float *g, int64_t n_tokens,
                       bool first) {
    const int64_t n = n_tokens * w->from->cfg->hidden;
    times_d(w, D, g, n_tokens, first ? w->g_in : w->y);
    for (int64_t i = 0; !first && i < n; i++) w->g_in[i] += w->y[i];
}

static void backward_attn_in(const weight_site *w, const weight_layer *l, int64_t layer,
                             int64_t n_tokens) {
    const int64_t kv = w->from->cfg->kv_heads;
    if (w->shape.r1) add_whole(w, w->x, w->g_in, n_tokens);
    if (!w->shape.r2) return;
    const scale_vector *vo = scale_set_get(w->sites->scales, SCALE_VO, layer);
    const int64_t d = w->from->cfg->head_dim;
    times_dt(w, &l->moved[V], w->x, n_tokens, w->y);
    weight_scale_columns(vo, d, 1, SCALE_TIMES, w->g_v, n_tokens, kv * d);
    weight_scale_columns(vo, d, 1, SCALE_OVER, w->y, n_tokens, kv * d);
    add_heads(w, w->g_v, w->y, kv, 1, n_tokens);
}

static void backward_o_in(const weight_site *w, const weight_layer *l, int64_t layer,
                          int64_t n_tokens) {
    const llama_config *c = w->from->cfg;
    if (w->shape.r1) {
        times_dt(w, &l->moved[O], w->x, n_tokens, w->y);
        add_whole(w, w->g_out, w->y, n_tokens);
    }
    if (!w->shape.r2) return;
    const scale_vector *vo = scale_set_get(w->sites->scales, SCALE_VO, layer);
    const int64_t d = c->head_dim, share = c->heads / c->kv_heads, n = c->heads * d;
    times_d(w, &l->moved[O], w->g_out, n_tokens, w->y);
    weight_scale_columns(vo, d, share, SCALE_OVER, w->x, n_tokens, n);
    weight_scale_columns(vo, d, share, SCALE_TIMES, w->y, n_tokens, n);
    add_heads(w, w->x, w->y, c->heads, c->heads / c->kv_heads, n_tokens);
}

/* ---- scales ---- */

/* dS of a kind += what a linear has in w->one, by heads that share. */
static void add_one(weight_site *w, scale_kind kind, int64_t n, int64_t share) {
    if (!(w->shape.scales >> kind & 1u)) return;
    const int64_t d = share > 1 ? w->from->cfg->head_dim : n;
    double *to = w->dS + scale_sizes_at(&w->sizes, w->shape.scales, (int)kind);
    for (int64_t j = 0; j < n; j++) to[j / d / share * d + j % d] += w->one[j];
}

static double *cleared(weight_site *w) {
    memset(w->one, 0, (size_t)widest(w->from->cfg) * sizeof *w->one);
    return w->one;
}

/* Outputs of v, which are over their scales before R2 mixes them. Other rows with scales, of q, k
 * and up, are mixed with none: their steps go with them, and their scales do nothing to their
 * rounding. */
static void add_mixed_rows(weight_site *w, int64_t layer, const weight_terms *t, double *one) {
    const llama_config *c = w->from->cfg;
    const int64_t d = c->head_dim;
    for (int64_t h = 0; h < c->kv_heads; h++) {
        dense_f32(w, r2_at(w->sites, c, layer, h), d, w->dense);
        weight_terms_rotated_rows(t, h * d, d, w->dense, -1, one + h * d);
    }
}

/* G = g^T x of linear k, then its share in the gradients of the scales about it. */
static void add_scales(weight_site *w, int64_t layer, int k, const float *g, int64_t n_tokens) {
    if (!w->shape.scales) return;
    const int64_t i = layer - w->from->first_layer;
    const llama_sites *s = w->sites;
    const wmat *D = &w->d[i].moved[k];
    const int64_t rows = D->rows, cols = D->cols;
    const weight_scales l = weight_scales_of(w->from->cfg, k);
    float *free_one = w->plain, *next[] = {w->rotated, w->other, w->fourth}, *got[3];
    for (int n = 0; n < 3; n++) { /* H, E, U; where outputs are mixed the first stays free */
        if (n == 0)
            gemm_f32(GEMM_T, GEMM_N, rows, cols, n_tokens, g, rows, w->x, cols, GEMM_SET, free_one,
                     cols);
        if (n == 1) wmat_expand_f32(D, 0, rows, 0, cols, free_one, cols);
        if (n == 2) plain_weights(w, s, i, k, free_one);
        got[n] = to_rounded(w, s, layer, k, n == 0, free_one, next[n], rows, cols);
        if (got[n] == free_one) free_one = next[n];
    }
    weight_terms t = {got[0], got[1], got[2], free_one, rows, cols};
    weight_terms_range(&w->how, &t);
    if (l.after != SCALE_KINDS) {
        weight_terms_columns(&t, cleared(w));
        add_one(w, l.after, cols, 1);
    }
    if (k == V && w->sites->R2) {
        add_mixed_rows(w, layer, &t, cleared(w));
        add_one(w, SCALE_VO, rows, 1);
    }
    if (l.in == SCALE_KINDS) return;
    float *const all[] = {t.H, t.E, t.U, t.P};
    for (int n = 0; n < 4; n++) rotate_inputs(s, w->from->cfg, layer, k, all[n], rows, true);
    weight_terms_columns(&t, cleared(w));
    add_one(w, l.in, cols, l.share);
}

/* Gradients of readers wait for the x that they read: one after the other in g_saved. */
static void save_reader(const weight_site *w, int64_t at, int64_t n_tokens, int64_t width,
                        const float *g) {
    if (!w->shape.scales) return;
    memcpy(w->g_saved + at * n_tokens, g, (size_t)(n_tokens * width) * sizeof *g);
}

static void add_readers(weight_site *w, int64_t layer, int first, int last, int64_t n_tokens) {
    const float *g = w->g_saved;
    for (int k = first; w->shape.scales && k <= last; k++) {
        add_scales(w, layer, k, g, n_tokens);
        g += n_tokens * w->d[layer - w->from->first_layer].moved[k].rows;
    }
}

static err take(void *ctx, int64_t layer, hook_place place, int64_t t0, int64_t n_tokens,
                int64_t width, const float *x, const float *g) {
    weight_site *w = ctx;
    const llama_config *c = w->from->cfg;
    const weight_layer *l = &w->d[layer - w->from->first_layer];
    const size_t bytes = (size_t)(n_tokens * width) * sizeof *g;
    site s;
    (void)t0;
    switch (place) {
    case HOOK_DOWN_OUT:
    case HOOK_O_OUT:
        memcpy(w->g_out, g, bytes);
        break;
    case HOOK_DOWN_IN:
        s = sites_down(w->sites, c, layer);
        through_site(w, &s, x, NULL, n_tokens);
        add_scales(w, layer, DOWN, w->g_out, n_tokens);
        times_dt(w, &l->moved[DOWN], w->x, n_tokens, w->y);
        if (w->shape.r1) add_whole(w, w->g_out, w->y, n_tokens);
        break;
    case HOOK_O_IN:
        s = sites_output(w->sites, c, layer);
        through_site(w, &s, x, NULL, n_tokens);
        add_scales(w, layer, O, w->g_out, n_tokens);
        backward_o_in(w, l, layer, n_tokens);
        break;
    case HOOK_GATE_OUT:
    case HOOK_UP_OUT:
        save_reader(w, place == HOOK_GATE_OUT ? 0 : width, n_tokens, width, g);
        add_reader(w, &l->moved[place == HOOK_GATE_OUT ? GATE : UP], g, n_tokens,
                   place == HOOK_GATE_OUT);
        break;
    case HOOK_MLP_IN:
        s = sites_input(w->sites, c, layer, NORM_MLP);
        through_site(w, &s, x, gain_left(w, layer, SCALE_MLP), n_tokens);
        add_readers(w, layer, GATE, UP, n_tokens);
        if (w->shape.r1) add_whole(w, w->x, w->g_in, n_tokens);
        break;
    case HOOK_QUERY_OUT:
    case HOOK_KEY_OUT:
        save_reader(w, place == HOOK_QUERY_OUT ? 0 : l->moved[Q].rows, n_tokens, width, g);
        add_reader(w, &l->moved[place == HOOK_QUERY_OUT ? Q : K], g, n_tokens,
                   place == HOOK_QUERY_OUT);
        break;
    case HOOK_VALUE_OUT:
        memcpy(w->g_v, g, bytes);
        save_reader(w, l->moved[Q].rows + l->moved[K].rows, n_tokens, width, g);
        add_reader(w, &l->moved[V], g, n_tokens, false);
        break;
    case HOOK_ATTN_IN:
        s = sites_input(w->sites, c, layer, NORM_ATTN);
        through_site(w, &s, x, gain_left(w, layer, SCALE_ATTN), n_tokens);
        add_readers(w, layer, Q, V, n_tokens);
        backward_attn_in(w, l, layer, n_tokens);
        break;
    default:
        break;
    }
    return err_none();
}

llama_hook weight_site_hook(weight_site *w, const llama_sites *sites) {
    w->sites = sites;
    return (llama_hook){.places = ((1u << HOOK_PLACES) - 1) & ~(1u << HOOK_KEY | 1u << HOOK_VALUE),
                        .take = take,
                        .ctx = w};
}

/* to += M R, real. */
static void add_rotated(const weight_site *w, const float *M, const float *R, int64_t n, void *to) {
    float *product = w->rotated;
    gemm_f32(GEMM_N, GEMM_N, n, n, n, M, n, R, n, GEMM_SET, product, n);
    for (int64_t i = 0; i < n * n; i++) {
        if (w->shape.compute == COMPUTE_F64)
            ((double *)to)[i] += (double)product[i];
        else
            ((float *)to)[i] += product[i];
    }
}

static void add_scale_sums(weight_site *w, const rotation_grads *grads) {
    const bool wide = w->shape.compute == COMPUTE_F64;
    for (int k = 0; k < SCALE_KINDS; k++) {
        double *from = w->dS + scale_sizes_at(&w->sizes, w->shape.scales, k);
        const int64_t n =
            w->shape.scales >> k & 1u ? scale_sizes_length(&w->sizes, (scale_kind)k) : 0;
        for (int64_t j = 0; grads->scales[k] && j < n; j++) {
            if (wide)
                ((double *)grads->scales[k])[j] += from[j];
            else
                ((float *)grads->scales[k])[j] += (float)from[j];
        }
        memset(from, 0, (size_t)n * sizeof *from);
    }
}

void weight_site_add(weight_site *w, int64_t layer, const rotation_grads *grads) {
    const llama_config *c = w->from->cfg;
    const int64_t n = c->hidden, d = c->head_dim;
    const size_t real = llama_real_bytes(w->shape.compute);
    if (grads->R1 && w->sites->R1) add_rotated(w, w->M1, w->R1, n, grads->R1);
    for (int64_t h = 0; grads->R2 && w->sites->R2 && h < c->kv_heads; h++) {
        float *R = w->other;
        dense_f32(w, r2_at(w->sites, c, layer, h), d, R);
        add_rotated(w, w->M2 + h * d * d, R, d,
                    (char *)grads->R2 + (w->sites->r2_per_head ? (size_t)(h * d * d) * real : 0));
    }
    memset(w->M1, 0, (size_t)(n * n) * sizeof *w->M1);
    memset(w->M2, 0, (size_t)(c->kv_heads * d * d) * sizeof *w->M2);
    if (w->shape.scales) add_scale_sums(w, grads);
}
