/* The forward of a block that saves what its backward needs, with every intermediate that
 * block_backward_real.c names: the same arithmetic as block_real.c, and the same bits but where a
 * dense R1 is applied in bf16 there. Slice t0 .. t0 + n. */
#include "model/backward_internal.h"

#include "base/gemm.h"
#include "base/vecmath.h"
#include "model/norm.h"
#include "model/rope.h"

#include <string.h>

#include "base/real.h"

/* w->input = factors of rms(x), through the site, times the gain; times the gain first where the
 * site stands behind it. */
static void save_normed(int64_t layer, const llama_sites *sites, int which, const float *gain,
                        int64_t t0, int64_t n_tokens, const real *x, llama_saved *st,
                        llama_work *w) {
    const compute_type compute = w->shape.compute;
    const site at = sites_input(sites, &w->cfg, layer, which);
    const int64_t n = w->cfg.hidden;
    const size_t factor = compute_factor_bytes(compute);
    real *y = w->wide, *scale = (real *)st->scale[which] + t0;
    const bool behind = aquant_on(&at.quant) && site_behind_gain(&at);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < n_tokens; t++) {
        scale[t] = norm_scale_f32(x + t * n, n, w->cfg.rms_eps);
        norm_rows_f32(x + t * n, 1, n, w->cfg.rms_eps, NULL, y + t * n);
        norm_factors_f32(y + t * n, n, NULL, compute, bytes_at(st->y[which], (t0 + t) * n, factor));
        for (int64_t j = 0; behind && j < n; j++) y[t * n + j] *= (real)gain[j];
    }
    const site_saved saved = site_saved_at(&st->input[which], &at, t0, compute);
    const site_work work = work_site(w, sites, true);
    const void *factors = behind ? NULL : bytes_at(st->y[which], t0 * n, factor);
    site_save_f32(&at, y, n_tokens, factors, &saved, &work);
    norm_row_factors_f32(y, n_tokens, n, behind ? NULL : gain, compute, w->input);
}

/* The heads of a token through their norm; what its backward takes is saved. */
static void save_head_norm(const float *gain, int64_t heads, int64_t token, real *x,
                           const head_norm_saved *to, const llama_work *w) {
    const int64_t d = w->cfg.head_dim;
    const size_t factor = compute_factor_bytes(w->shape.compute);
    for (int64_t h = 0; gain && h < heads; h++) {
        real *row = x + h * d;
        const real scale = norm_scale_f32(row, d, w->cfg.rms_eps);
        ((real *)to->scale)[token * heads + h] = scale;
        norm_rows_f32(row, 1, d, w->cfg.rms_eps, NULL, row);
        norm_factors_f32(row, d, NULL, w->shape.compute,
                         bytes_at(to->y, (token * heads + h) * d, factor));
#pragma omp simd
        for (int64_t j = 0; j < d; j++) row[j] *= (real)gain[j];
    }
}

/* Biases, norms of heads and RoPE; queries are saved, keys and values stay for their sites.
 */
static void save_positions(const llama_layer *l, int64_t layer, int64_t t0, int64_t n_tokens,
                           llama_saved *st, llama_work *w) {
    const llama_config *c = &w->cfg;
    const bool rope_here = llama_has_rope(c, layer);
    const int64_t d = c->head_dim, half = d / 2, group = c->heads / c->kv_heads;
    const int64_t room = w->shape.window;
    const size_t factor = compute_factor_bytes(w->shape.compute);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < n_tokens; t++) {
        real *q = (real *)w->q + t * c->heads * d, *k = (real *)w->k + t * c->kv_heads * d;
        const real *cos_t = (real *)w->cos_t + (t0 + t) * half;
        const real *sin_t = (real *)w->sin_t + (t0 + t) * half;
        norm_add_bias_f32(q, l->bq, c->heads * d);
        norm_add_bias_f32(k, l->bk, c->kv_heads * d);
        norm_add_bias_f32((real *)w->v + t * c->kv_heads * d, l->bv, c->kv_heads * d);
        save_head_norm(l->q_norm, c->heads, t0 + t, q, &st->q_norm, w);
        save_head_norm(l->k_norm, c->kv_heads, t0 + t, k, &st->k_norm, w);
        for (int64_t h = 0; rope_here && h < c->kv_heads; h++)
            rope_head_f32(k + h * d, half, cos_t, sin_t);
        for (int64_t h = 0; h < c->heads; h++) {
            const int64_t to = ((h / group * room + t0 + t) * group + h % group) * d;
            if (rope_here) rope_head_f32(q + h * d, half, cos_t, sin_t);
            norm_factors_f32(q + h * d, d, NULL, w->shape.compute, bytes_at(st->q, to, factor));
        }
    }
}

/* Rows [n, kv_heads head_dim] to factors by head, rows from t0. */
static void save_by_head(const real *from, int64_t t0, int64_t n_tokens, void *to,
                         const llama_work *w) {
    const int64_t d = w->cfg.head_dim, heads = w->cfg.kv_heads, room = w->shape.window;
    const size_t factor = compute_factor_bytes(w->shape.compute);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < n_tokens; t++) {
        for (int64_t h = 0; h < heads; h++) {
            norm_factors_f32(from + (t * heads + h) * d, d, NULL, w->shape.compute,
                             bytes_at(to, (h * room + t0 + t) * d, factor));
        }
    }
}

static void save_keys_values(const llama_sites *sites, int64_t layer, int64_t t0, int64_t n_tokens,
                             llama_saved *st, llama_work *w) {
    const compute_type compute = w->shape.compute;
    const site keys = sites_keys(sites, &w->cfg, layer),
               values = sites_values(sites, &w->cfg, layer);
    const site_saved keys_saved = site_saved_at(&st->keys, &keys, t0, compute);
    const site_saved values_saved = site_saved_at(&st->values, &values, t0, compute);
    const site_work work = work_site(w, sites, false);
    if (st->k_in) {
        void *to = bytes_at(st->k_in, t0 * keys.n, compute_factor_bytes(compute));
        norm_row_factors_f32(w->k, n_tokens, keys.n, NULL, compute, to);
    }
    if (st->v_in) {
        void *to = bytes_at(st->v_in, t0 * values.n, compute_factor_bytes(compute));
        norm_row_factors_f32(w->v, n_tokens, values.n, NULL, compute, to);
    }
    site_save_f32(&keys, w->k, n_tokens, NULL, &keys_saved, &work);
    site_save_f32(&values, w->v, n_tokens, NULL, &values_saved, &work);
    save_by_head(w->k, t0, n_tokens, st->k, w);
    save_by_head(w->v, t0, n_tokens, st->v, w);
}

/* x += o_proj of the attention output in w->wide. */
static void save_output(const llama_layer *l, int64_t layer, const llama_sites *sites, int64_t t0,
                        int64_t n_tokens, real *x, llama_saved *st, llama_work *w) {
    const compute_type compute = w->shape.compute;
    const int64_t n = w->cfg.heads * w->cfg.head_dim, hidden = w->cfg.hidden;
    const site out = sites_output(sites, &w->cfg, layer);
    const site_saved saved = site_saved_at(&st->out, &out, t0, compute);
    const site_work work = work_site(w, sites, false);
    real *o = w->wide;
    norm_row_factors_f32(o, n_tokens, n, NULL, compute,
                         bytes_at(st->o, t0 * n, compute_factor_bytes(compute)));
    site_save_f32(&out, o, n_tokens, NULL, &saved, &work);
    norm_row_factors_f32(o, n_tokens, n, NULL, compute, w->input);
    wmat_product(&l->o, compute, w->input, n_tokens, GEMM_ADD, x, w->per_thread, w->thread_bytes);
    for (int64_t t = 0; l->bo && t < n_tokens; t++) {
        norm_add_bias_f32(x + t * hidden, l->bo, hidden);
    }
}

/* silu(gate) up of a tile, gate and up are saved; to w->mid, or as factors to w->mid_a. */
static void save_mid_tile(const llama_layer *l, wmat_rect r, int64_t t0, bool acts, real *g,
                          real *u, llama_saved *st, llama_work *w) {
    const compute_type compute = w->shape.compute;
    const size_t factor = compute_factor_bytes(compute);
    const int64_t width = w->cfg.intermediate;
    for (int64_t t = 0; t < r.m; t++) {
        real *gt = g + t * r.n, *ut = u + t * r.n;
        const int64_t at = (r.i + t) * width + r.j, saved_at = at + t0 * width;
        norm_add_bias_f32(gt, l->bgate ? l->bgate + r.j : NULL, r.n);
        norm_add_bias_f32(ut, l->bup ? l->bup + r.j : NULL, r.n);
        norm_factors_f32(gt, r.n, NULL, compute, bytes_at(st->gate, saved_at, factor));
        norm_factors_f32(ut, r.n, NULL, compute, bytes_at(st->up, saved_at, factor));
#pragma omp simd
        for (int64_t j = 0; j < r.n; j++) gt[j] = vec_silu(gt[j]) * ut[j];
        if (acts) {
            memcpy((real *)w->mid + at, gt, (size_t)r.n * sizeof *gt);
        } else {
            norm_factors_f32(gt, r.n, NULL, compute, bytes_at(w->mid_a, at, factor));
        }
    }
}

static void save_mlp(const llama_layer *l, int64_t layer, const llama_sites *sites, int64_t t0,
                     int64_t n_tokens, real *x, llama_saved *st, llama_work *w) {
    const compute_type compute = w->shape.compute;
    const site down = sites_down(sites, &w->cfg, layer);
    const bool acts = aquant_on(&down.quant);
    const int64_t hidden = w->cfg.hidden, width = w->cfg.intermediate;
    const wmat_tiles tiles = wmat_tiles_of(n_tokens, width);
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < tiles.count; i++) {
        const wmat_rect r = wmat_tiles_at(&tiles, i);
        real *g = work_of_thread(w), *u = g + WMAT_TILE_ROWS * WMAT_TILE_COLUMNS;
        const void *h = bytes_at(w->input, r.i * hidden, compute_factor_bytes(compute));
        wmat_tile(&l->gate, compute, h, hidden, r.m, r.j, r.n, GEMM_SET, g, r.n,
                  work_tile_of_thread(w));
        wmat_tile(&l->up, compute, h, hidden, r.m, r.j, r.n, GEMM_SET, u, r.n,
                  work_tile_of_thread(w));
        save_mid_tile(l, r, t0, acts, g, u, st, w);
    }
    if (acts) {
        const site_saved saved = site_saved_at(&st->down, &down, t0, compute);
        const site_work work = work_site(w, sites, false);
        site_save_f32(&down, w->mid, n_tokens, NULL, &saved, &work);
        norm_row_factors_f32(w->mid, n_tokens, width, NULL, compute, w->mid_a);
    }
    wmat_product(&l->down, compute, w->mid_a, n_tokens, GEMM_ADD, x, w->per_thread,
                 w->thread_bytes);
    for (int64_t t = 0; l->bdown && t < n_tokens; t++) {
        norm_add_bias_f32(x + t * hidden, l->bdown, hidden);
    }
}

void block_save_f32(const llama_layer *l, int64_t layer, const llama_sites *sites, int64_t t0,
                    int64_t n_tokens, real *x, llama_saved *st, llama_work *w) {
    const compute_type compute = w->shape.compute;
    const attention_shape shape = work_attention(w, layer, t0, n_tokens);
    save_normed(layer, sites, NORM_ATTN, l->attn_norm, t0, n_tokens, x, st, w);
    const wmat_term terms[] = {{&l->q, w->q}, {&l->k, w->k}, {&l->v, w->v}};
    wmat_products(terms, 3, compute, w->input, n_tokens, GEMM_SET, w->per_thread, w->thread_bytes);
    save_positions(l, layer, t0, n_tokens, st, w);
    save_keys_values(sites, layer, t0, n_tokens, st, w);
    attention_f32(&shape, st->q, st->k, st->v, w->wide, st->lse, w->per_thread, w->thread_bytes);
    save_output(l, layer, sites, t0, n_tokens, x, st, w);
    save_normed(layer, sites, NORM_MLP, l->mlp_norm, t0, n_tokens, x, st, w);
    save_mlp(l, layer, sites, t0, n_tokens, x, st, w);
}
