/* block_keep_body - the forward of a block that keeps what its backward needs, for one type of
 * reals: block_body.h with every intermediate that block_backward_body.h names. Slice t0 .. t0 + n.
 */
#include "model/body_type.h"

static attention_shape REAL_FN(shape_of)(const llama_work *w, int64_t layer, int64_t t0,
                                         int64_t n) {
    return (attention_shape){.tokens = t0 + n,
                             .heads = w->cfg.heads,
                             .kv_heads = w->cfg.kv_heads,
                             .head_dim = w->cfg.head_dim,
                             .first = t0,
                             .room = w->shape.window,
                             .sliding_window = llama_window_of(&w->cfg, layer),
                             .scale = w->cfg.score_scale,
                             .compute = w->shape.compute};
}

static void REAL_FN(to_factors)(const REAL *from, int64_t rows, int64_t n, const float *gain,
                                compute_type compute, void *to) {
    const size_t row = (size_t)n * compute_factor_bytes(compute);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < rows; t++) {
        REAL_FN(norm_factors)(from + t * n, n, gain, compute, (char *)to + (size_t)t * row);
    }
}

/* The work of a site; the copies of R1 are for the sites at the norms. */
static site_work REAL_FN(work_of_site)(const llama_work *w, const llama_sites *sites, bool r1) {
    site_work s = w->site;
    if (r1 && sites && sites->R1 && sites->R1 == w->r1) {
        s.R_half = w->r1_half;
        s.R_t = w->r1_t;
    }
    return s;
}

/* w->input = factors of rms(x), through the site, times the gain. */
static void REAL_FN(keep_normed)(int64_t layer, const llama_sites *sites, int which,
                                 const float *gain, int64_t t0, int64_t n_tokens, const REAL *x,
                                 llama_stash *st, llama_work *w) {
    const compute_type compute = w->shape.compute;
    const site at = sites_input(sites, &w->cfg, layer, which);
    const int64_t n = w->cfg.hidden;
    const size_t factor = compute_factor_bytes(compute);
    REAL *y = w->wide, *scale = (REAL *)st->scale[which] + t0;
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < n_tokens; t++) {
        scale[t] = REAL_FN(norm_scale)(x + t * n, n, w->cfg.rms_eps);
        REAL_FN(norm_rows)(x + t * n, 1, n, w->cfg.rms_eps, NULL, y + t * n);
        REAL_FN(norm_factors)
        (y + t * n, n, NULL, compute, bytes_at(st->y[which], (t0 + t) * n, factor));
    }
    const site_kept kept = site_kept_at(&st->input[which], &at, t0, compute);
    const site_work work = REAL_FN(work_of_site)(w, sites, true);
    REAL_FN(site_keep)(&at, y, n_tokens, bytes_at(st->y[which], t0 * n, factor), &kept, &work);
    REAL_FN(to_factors)(y, n_tokens, n, gain, compute, w->input);
}

/* The heads of a token through their norm; what its backward takes goes to the stash. */
static void REAL_FN(keep_head_norm)(const float *gain, int64_t heads, int64_t token, REAL *x,
                                    const head_norm_kept *to, const llama_work *w) {
    const int64_t d = w->cfg.head_dim;
    const size_t factor = compute_factor_bytes(w->shape.compute);
    for (int64_t h = 0; gain && h < heads; h++) {
        REAL *row = x + h * d;
        const REAL scale = REAL_FN(norm_scale)(row, d, w->cfg.rms_eps);
        ((REAL *)to->scale)[token * heads + h] = scale;
        REAL_FN(norm_rows)(row, 1, d, w->cfg.rms_eps, NULL, row);
        REAL_FN(norm_factors)
        (row, d, NULL, w->shape.compute, bytes_at(to->y, (token * heads + h) * d, factor));
#pragma omp simd
        for (int64_t j = 0; j < d; j++) row[j] *= (REAL)gain[j];
    }
}

/* Biases, norms of heads and RoPE; queries go to the stash, keys and values stay for their sites.
 */
static void REAL_FN(keep_positions)(const llama_layer *l, int64_t layer, int64_t t0,
                                    int64_t n_tokens, llama_stash *st, llama_work *w) {
    const llama_config *c = &w->cfg;
    const bool turned = llama_has_rope(c, layer);
    const int64_t d = c->head_dim, half = d / 2, group = c->heads / c->kv_heads;
    const int64_t room = w->shape.window;
    const size_t factor = compute_factor_bytes(w->shape.compute);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < n_tokens; t++) {
        REAL *q = (REAL *)w->q + t * c->heads * d, *k = (REAL *)w->k + t * c->kv_heads * d;
        const REAL *cos_t = (REAL *)w->cos_t + (t0 + t) * half;
        const REAL *sin_t = (REAL *)w->sin_t + (t0 + t) * half;
        REAL_FN(norm_add_bias)(q, l->bq, c->heads * d);
        REAL_FN(norm_add_bias)(k, l->bk, c->kv_heads * d);
        REAL_FN(norm_add_bias)((REAL *)w->v + t * c->kv_heads * d, l->bv, c->kv_heads * d);
        REAL_FN(keep_head_norm)(l->q_norm, c->heads, t0 + t, q, &st->q_norm, w);
        REAL_FN(keep_head_norm)(l->k_norm, c->kv_heads, t0 + t, k, &st->k_norm, w);
        for (int64_t h = 0; turned && h < c->kv_heads; h++)
            REAL_FN(rope_head)(k + h * d, half, cos_t, sin_t);
        for (int64_t h = 0; h < c->heads; h++) {
            const int64_t to = ((h / group * room + t0 + t) * group + h % group) * d;
            if (turned) REAL_FN(rope_head)(q + h * d, half, cos_t, sin_t);
            REAL_FN(norm_factors)
            (q + h * d, d, NULL, w->shape.compute, bytes_at(st->q, to, factor));
        }
    }
}

/* Rows [n, kv_heads head_dim] to factors by head, rows from t0. */
static void REAL_FN(keep_by_head)(const REAL *from, int64_t t0, int64_t n_tokens, void *to,
                                  const llama_work *w) {
    const int64_t d = w->cfg.head_dim, heads = w->cfg.kv_heads, room = w->shape.window;
    const size_t factor = compute_factor_bytes(w->shape.compute);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < n_tokens; t++) {
        for (int64_t h = 0; h < heads; h++) {
            REAL_FN(norm_factors)
            (from + (t * heads + h) * d, d, NULL, w->shape.compute,
             bytes_at(to, (h * room + t0 + t) * d, factor));
        }
    }
}

static void REAL_FN(keep_keys_values)(const llama_sites *sites, int64_t layer, int64_t t0,
                                      int64_t n_tokens, llama_stash *st, llama_work *w) {
    const compute_type compute = w->shape.compute;
    const site keys = sites_keys(sites, &w->cfg, layer),
               values = sites_values(sites, &w->cfg, layer);
    const site_kept keys_kept = site_kept_at(&st->keys, &keys, t0, compute);
    const site_kept values_kept = site_kept_at(&st->values, &values, t0, compute);
    const site_work work = REAL_FN(work_of_site)(w, sites, false);
    if (st->k_in) {
        void *to = bytes_at(st->k_in, t0 * keys.n, compute_factor_bytes(compute));
        REAL_FN(to_factors)(w->k, n_tokens, keys.n, NULL, compute, to);
    }
    if (st->v_in) {
        void *to = bytes_at(st->v_in, t0 * values.n, compute_factor_bytes(compute));
        REAL_FN(to_factors)(w->v, n_tokens, values.n, NULL, compute, to);
    }
    REAL_FN(site_keep)(&keys, w->k, n_tokens, NULL, &keys_kept, &work);
    REAL_FN(site_keep)(&values, w->v, n_tokens, NULL, &values_kept, &work);
    REAL_FN(keep_by_head)(w->k, t0, n_tokens, st->k, w);
    REAL_FN(keep_by_head)(w->v, t0, n_tokens, st->v, w);
}

/* x += o_proj of the attention output in w->wide. */
static void REAL_FN(keep_output)(const llama_layer *l, int64_t layer, const llama_sites *sites,
                                 int64_t t0, int64_t n_tokens, REAL *x, llama_stash *st,
                                 llama_work *w) {
    const compute_type compute = w->shape.compute;
    const int64_t n = w->cfg.heads * w->cfg.head_dim, hidden = w->cfg.hidden;
    const site out = sites_output(sites, &w->cfg, layer);
    const site_kept kept = site_kept_at(&st->out, &out, t0, compute);
    const site_work work = REAL_FN(work_of_site)(w, sites, false);
    REAL *o = w->wide;
    REAL_FN(to_factors)
    (o, n_tokens, n, NULL, compute, bytes_at(st->o, t0 * n, compute_factor_bytes(compute)));
    REAL_FN(site_keep)(&out, o, n_tokens, NULL, &kept, &work);
    REAL_FN(to_factors)(o, n_tokens, n, NULL, compute, w->input);
    wmat_product(&l->o, compute, w->input, n_tokens, true, x, w->per_thread, w->thread_bytes);
    for (int64_t t = 0; l->bo && t < n_tokens; t++) {
        REAL_FN(norm_add_bias)(x + t * hidden, l->bo, hidden);
    }
}

/* silu(gate) up of a tile, gate and up to the stash; to w->mid, or as factors to w->mid_a. */
static void REAL_FN(keep_mid_tile)(const llama_layer *l, wmat_rect r, int64_t t0, bool acts,
                                   REAL *g, REAL *u, llama_stash *st, llama_work *w) {
    const compute_type compute = w->shape.compute;
    const size_t factor = compute_factor_bytes(compute);
    const int64_t width = w->cfg.intermediate;
    for (int64_t t = 0; t < r.m; t++) {
        REAL *gt = g + t * r.n, *ut = u + t * r.n;
        const int64_t at = (r.i + t) * width + r.j, kept_at = at + t0 * width;
        REAL_FN(norm_add_bias)(gt, l->bgate ? l->bgate + r.j : NULL, r.n);
        REAL_FN(norm_add_bias)(ut, l->bup ? l->bup + r.j : NULL, r.n);
        REAL_FN(norm_factors)(gt, r.n, NULL, compute, bytes_at(st->gate, kept_at, factor));
        REAL_FN(norm_factors)(ut, r.n, NULL, compute, bytes_at(st->up, kept_at, factor));
#pragma omp simd
        for (int64_t j = 0; j < r.n; j++) gt[j] = REAL_SILU(gt[j]) * ut[j];
        if (acts) {
            memcpy((REAL *)w->mid + at, gt, (size_t)r.n * sizeof *gt);
        } else {
            REAL_FN(norm_factors)(gt, r.n, NULL, compute, bytes_at(w->mid_a, at, factor));
        }
    }
}

static void REAL_FN(keep_mlp)(const llama_layer *l, int64_t layer, const llama_sites *sites,
                              int64_t t0, int64_t n_tokens, REAL *x, llama_stash *st,
                              llama_work *w) {
    const compute_type compute = w->shape.compute;
    const site down = sites_down(sites, &w->cfg, layer);
    const bool acts = aquant_on(&down.quant);
    const int64_t hidden = w->cfg.hidden, width = w->cfg.intermediate;
    const wmat_tiles tiles = wmat_tiles_of(n_tokens, width);
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < tiles.count; i++) {
        const wmat_rect r = wmat_tiles_at(&tiles, i);
        REAL *g = work_of_thread(w), *u = g + WMAT_TILE_ROWS * WMAT_TILE_COLUMNS;
        const void *h = bytes_at(w->input, r.i * hidden, compute_factor_bytes(compute));
        wmat_tile(&l->gate, compute, h, hidden, r.m, r.j, r.n, false, g, r.n,
                  work_tile_of_thread(w));
        wmat_tile(&l->up, compute, h, hidden, r.m, r.j, r.n, false, u, r.n, work_tile_of_thread(w));
        REAL_FN(keep_mid_tile)(l, r, t0, acts, g, u, st, w);
    }
    if (acts) {
        const site_kept kept = site_kept_at(&st->down, &down, t0, compute);
        const site_work work = REAL_FN(work_of_site)(w, sites, false);
        REAL_FN(site_keep)(&down, w->mid, n_tokens, NULL, &kept, &work);
        REAL_FN(to_factors)(w->mid, n_tokens, width, NULL, compute, w->mid_a);
    }
    wmat_product(&l->down, compute, w->mid_a, n_tokens, true, x, w->per_thread, w->thread_bytes);
    for (int64_t t = 0; l->bdown && t < n_tokens; t++) {
        REAL_FN(norm_add_bias)(x + t * hidden, l->bdown, hidden);
    }
}

void REAL_FN(block_keep)(const llama_layer *l, int64_t layer, const llama_sites *sites, int64_t t0,
                         int64_t n_tokens, REAL *x, llama_stash *st, llama_work *w) {
    const compute_type compute = w->shape.compute;
    const attention_shape shape = REAL_FN(shape_of)(w, layer, t0, n_tokens);
    REAL_FN(keep_normed)(layer, sites, NORM_ATTN, l->attn_norm, t0, n_tokens, x, st, w);
    const wmat_term terms[] = {{&l->q, w->q}, {&l->k, w->k}, {&l->v, w->v}};
    wmat_products(terms, 3, compute, w->input, n_tokens, false, w->per_thread, w->thread_bytes);
    REAL_FN(keep_positions)(l, layer, t0, n_tokens, st, w);
    REAL_FN(keep_keys_values)(sites, layer, t0, n_tokens, st, w);
    REAL_FN(attention)
    (&shape, st->q, st->k, st->v, w->wide, st->lse, w->per_thread, w->thread_bytes);
    REAL_FN(keep_output)(l, layer, sites, t0, n_tokens, x, st, w);
    REAL_FN(keep_normed)(layer, sites, NORM_MLP, l->mlp_norm, t0, n_tokens, x, st, w);
    REAL_FN(keep_mlp)(l, layer, sites, t0, n_tokens, x, st, w);
}
