/* For each linear: rotate in fp32, quantize rows, rotate the error back and add it to W. The
 * gradients are in weight_site_backward.c. */
#include "base/gemm.h"
#include "base/mem.h"
#include "base/size.h"
#include "model/sites.h"
#include "model/weight_site_internal.h"

#include <string.h>

int64_t weight_site_widest(const llama_config *c) {
    return size_max(c->hidden, size_max(c->intermediate, c->heads * c->head_dim));
}

static int64_t largest(const llama_config *c) {
    return c->hidden * weight_site_widest(c);
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
    return (uint64_t)(entries + weight_site_widest(c)) * sizeof(double) +
           (uint64_t)(shape->slice * readers_of(c)) * sizeof(float);
}

uint64_t weight_site_bytes(const llama_config *c, const llama_pass_shape *shape, int64_t n_layers) {
    const uint64_t n = (uint64_t)c->hidden, slice = (uint64_t)shape->slice,
                   wide = (uint64_t)weight_site_widest(c), d = (uint64_t)c->head_dim,
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
    const int64_t n = w->from->n_layers;
    w->used = *w->from;
    err e = MEM_NEW(&w->used.layers, n, "weights in the loop");
    if (!e.code) e = MEM_NEW(&w->d, n, "weights in the loop");
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

static const char BUFFERS[] = "weights in the loop";

static err create_buffers(weight_site *w) {
    const llama_config *c = w->from->cfg;
    const int64_t n = c->hidden, slice = w->shape.slice, wide = weight_site_widest(c),
                  d = c->head_dim;
    w->thread_bytes = wmat_tile_scratch_bytes(w->compute);
    err e = MEM_NEW(&w->ones, n, BUFFERS);
    if (!e.code) e = MEM_NEW(&w->plain, largest(c), BUFFERS);
    if (!e.code) e = MEM_NEW(&w->rotated, largest(c), BUFFERS);
    if (!e.code) e = MEM_NEW(&w->other, largest(c), BUFFERS);
    if (!e.code) e = MEM_NEW(&w->R1, n * n, BUFFERS);
    if (!e.code) e = MEM_NEW(&w->row, size_max(n, d), BUFFERS);
    if (!e.code) e = MEM_NEW(&w->g_out, slice * n, BUFFERS);
    if (!e.code) e = MEM_NEW(&w->g_v, slice * c->kv_heads * d, BUFFERS);
    if (!e.code) e = MEM_NEW(&w->g_in, slice * n, BUFFERS);
    if (!e.code) e = MEM_NEW(&w->x, slice * wide, BUFFERS);
    if (!e.code) e = MEM_NEW(&w->y, slice * wide, BUFFERS);
    if (!e.code) e = mem_alloc(slice * wide, sizeof(float), BUFFERS, &w->factors);
    if (!e.code) e = mem_alloc(gemm_threads() * (int64_t)w->thread_bytes, 1, BUFFERS, &w->tiles);
    if (!e.code) e = mem_alloc(slice * wide, sizeof(float), BUFFERS, &w->panel);
    if (!e.code) e = mem_alloc(gemm_threads() * wide, sizeof(float), BUFFERS, &w->rows);
    if (!e.code) e = MEM_NEW(&w->M1, n * n, BUFFERS);
    if (!e.code) e = MEM_NEW(&w->M2, c->kv_heads * d * d, BUFFERS);
    if (!e.code) e = MEM_NEW(&w->dense, d * d, BUFFERS);
    for (int64_t j = 0; j < n && !e.code; j++) w->ones[j] = 1;
    return e;
}

static err create_scale_buffers(weight_site *w) {
    const llama_config *c = w->from->cfg;
    w->sizes = llama_scale_sizes(c);
    if (!w->shape.scales) return err_none();
    err e = MEM_NEW(&w->g_saved, w->shape.slice * readers_of(c), BUFFERS);
    if (!e.code) e = MEM_NEW(&w->fourth, largest(c), BUFFERS);
    if (!e.code)
        e = MEM_NEW(&w->dS, scale_sizes_at(&w->sizes, w->shape.scales, SCALE_KINDS), BUFFERS);
    if (!e.code) e = MEM_NEW(&w->one, weight_site_widest(c), BUFFERS);
    return e;
}

err weight_site_create(const llama_stage *stage, const wquant *how, const llama_pass_shape *shape,
                       weight_site **out) {
    weight_site *w;
    *out = NULL;
    err e = MEM_NEW(&w, 1, "weights in the loop");
    if (e.code) return e;
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

const rotation *weight_site_r2(const llama_sites *s, const llama_config *c, int64_t layer,
                               int64_t kv_head) {
    if (!s->R2) return NULL;
    return s->R2[s->r2_per_head ? layer * c->kv_heads + kv_head : layer];
}

void weight_site_dense(const weight_site *w, const rotation *R, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i++) {
        rotation_dense_rows(R, i, 1, w->row);
        for (int64_t j = 0; j < n; j++) out[i * n + j] = (float)w->row[j];
    }
}

void weight_site_rotate_inputs(const llama_sites *s, const llama_config *c, int64_t layer, int k,
                               float *w, int64_t rows, gemm_op op) {
    const int64_t d = c->head_dim;
    const bool inverse = op == GEMM_T;
    if (k == DOWN) {
        rotation_apply_f32(s->R4, w, rows, c->intermediate, inverse);
    } else if (k == O) {
        for (int64_t h = 0; h < c->heads; h++)
            rotation_apply_f32(weight_site_r2(s, c, layer, h / (c->heads / c->kv_heads)), w + h * d,
                               rows, c->heads * d, inverse);
    } else {
        rotation_apply_f32(s->R1, w, rows, c->hidden, inverse);
    }
}

/* to = A from, or with GEMM_T A^T from; [rows, cols]. False where there is no A. */
static bool rotate_outputs(const weight_site *w, const llama_sites *s, int64_t layer, int k,
                           const float *from, float *to, int64_t rows, int64_t cols, gemm_op op) {
    const llama_config *c = w->from->cfg;
    const int64_t d = c->head_dim;
    if ((k == O || k == DOWN) && s->R1) {
        gemm_f32(op, GEMM_N, rows, cols, rows, w->R1, rows, from, cols, GEMM_SET, to, cols);
        return true;
    }
    if (k != V || !s->R2) return false;
    for (int64_t h = 0; h < c->kv_heads; h++) {
        weight_site_dense(w, weight_site_r2(s, c, layer, h), d, w->dense);
        gemm_f32(op, GEMM_N, d, cols, d, w->dense, d, from + h * d * cols, cols, GEMM_SET,
                 to + h * d * cols, cols);
    }
    return true;
}

/* m with the scales before the rotations, or, SCALE_OVER, without them again. */
static void scale_before(const weight_site *w, const llama_sites *s, int64_t layer, int k,
                         scale_way way, float *m, int64_t rows, int64_t cols) {
    const llama_config *c = w->from->cfg;
    const weight_scales l = weight_scales_of(c, k);
    weight_scale_rows(weight_scale_at(s, l.out, layer), weight_scale_part(c, l.out), l.share,
                      scale_way_of(l.out_way, way), m, rows, cols);
    weight_scale_columns(weight_scale_at(s, l.in, layer), weight_scale_part(c, l.in), l.share, way,
                         m, rows, cols);
}

static void scale_after(const weight_site *w, const llama_sites *s, int64_t layer, int k,
                        scale_way way, float *m, int64_t rows, int64_t cols) {
    const weight_scales l = weight_scales_of(w->from->cfg, k);
    weight_scale_columns(weight_scale_at(s, l.after, layer), cols, 1, way, m, rows, cols);
}

float *weight_site_to_rounded(const weight_site *w, const llama_sites *s, int64_t layer, int k,
                              scale_way way, float *m, float *spare, int64_t rows, int64_t cols) {
    scale_before(w, s, layer, k, way, m, rows, cols);
    weight_site_rotate_inputs(s, w->from->cfg, layer, k, m, rows, GEMM_N);
    scale_after(w, s, layer, k, way, m, rows, cols);
    return rotate_outputs(w, s, layer, k, m, spare, rows, cols, GEMM_T) ? spare : m;
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

const float *weight_site_gain_left(const weight_site *w, int64_t layer, scale_kind norm) {
    const llama_layer *from = &w->from->layers[layer - w->from->first_layer];
    if (folds_gain(w->sites, layer, norm)) return NULL;
    return norm == SCALE_ATTN ? from->attn_norm : from->mlp_norm;
}

void weight_site_plain(const weight_site *w, const llama_sites *s, int64_t i, int k, float *out) {
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
    weight_site_plain(w, s, i, k, w->plain);
    float *u = w->rotated, *v = w->other;
    memcpy(u, w->plain, (size_t)all * sizeof *u);
    const bool mixed = weight_site_to_rounded(w, s, layer, k, SCALE_TIMES, u, v, rows, cols) == v;
    err e = rounding_error(w, mixed ? v : u, mixed ? u : v, rows, cols);
    if (e.code) return e;
    if (mixed) rotate_outputs(w, s, layer, k, v, u, rows, cols, GEMM_N);
    scale_after(w, s, layer, k, SCALE_OVER, u, rows, cols);
    weight_site_rotate_inputs(s, w->from->cfg, layer, k, u, rows, GEMM_T);
    scale_before(w, s, layer, k, SCALE_OVER, u, rows, cols);
    put(&w->d[i].moved[k], u);
    for (int64_t j = 0; j < all; j++) w->plain[j] += u[j];
    put(llama_layer_linear(&w->used.layers[i], k), w->plain);
    return e;
}

err weight_site_refresh(weight_site *w, const llama_sites *s) {
    const int64_t n = w->from->cfg->hidden;
    err e = err_none();
    if (s->R1) weight_site_dense(w, s->R1, n, w->R1);
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
