/* block_backward_body - the backward of block_keep_body.h, for one type of reals: its steps undone
 * from the last to the first. g is always the gradient of what the step named there gave. */
#include "model/body_type.h"

/* Rows for the tap, as floats. */
static err REAL_FN(tell)(const llama_tap *tap, int64_t layer, tap_place place, int64_t t0,
                         int64_t n_tokens, int64_t width, const void *x, const REAL *g,
                         llama_work *w) {
    const int64_t count = n_tokens * width;
    const float *g32 = (const float *)g, *x32 = NULL;
    if (w->shape.compute == COMPUTE_F64) {
        for (int64_t j = 0; j < count; j++) w->tap_g[j] = (float)((const double *)g)[j];
        for (int64_t j = 0; x && j < count; j++) w->tap_x[j] = (float)((const double *)x)[j];
        g32 = w->tap_g;
    } else if (x) {
        site_widen_f32(x, count, w->shape.compute, w->tap_x);
    }
    if (x) x32 = w->tap_x;
    return tap->take(tap->ctx, layer, place, t0, n_tokens, width, x32, g32);
}

static bool REAL_FN(wants)(const llama_tap *tap, tap_place place) {
    return tap && (tap->places >> place & 1u);
}

/* Back through a site whose scales are of `kind`: their gradient, then g from dL/dx^ to dL/dx. What
 * is kept of the range for scales alone is not for the others. */
static void REAL_FN(back_site)(const site *at, scale_kind kind, REAL *g, int64_t rows,
                               const void *x, const site_kept *kept, const rotation_grads *grads,
                               REAL *dR, const site_work *work, const llama_work *w) {
    REAL *dS = grads ? grads->scales[kind] : NULL;
    site_kept seen = *kept;
    if (dS) REAL_FN(site_scale_back)(at, g, rows, x, kept, dS, work);
    if (!w->shape.through) seen.moved = seen.ends = NULL;
    REAL_FN(site_back)(at, g, rows, x, &seen, dR, work);
}

/* Factors by head of the slice as rows [n, kv_heads head_dim]. */
static void REAL_FN(rows_of_heads)(const void *from, int64_t t0, int64_t n_tokens, void *to,
                                   const llama_work *w) {
    const int64_t d = w->cfg.head_dim, heads = w->cfg.kv_heads;
    const size_t factor = compute_factor_bytes(w->shape.compute);
    for (int64_t t = 0; t < n_tokens; t++) {
        for (int64_t h = 0; h < heads; h++) {
            memcpy(bytes_at(to, (t * heads + h) * d, factor),
                   bytes_at(from, (h * w->shape.window + t0 + t) * d, factor), (size_t)d * factor);
        }
    }
}

/* mid = silu(gate) up: g = dL/dmid gives both as factors. */
static void REAL_FN(swiglu_back)(const REAL *g, const void *gate, const void *up, int64_t n,
                                 compute_type compute, REAL *a, REAL *b, void *d_gate, void *d_up) {
    REAL_FN(site_widen)(gate, n, compute, a);
    REAL_FN(site_widen)(up, n, compute, b);
#pragma omp simd
    for (int64_t j = 0; j < n; j++) {
        const REAL s = 1 / (1 + REAL_EXP(-a[j])), silu = a[j] * s;
        a[j] = g[j] * b[j] * (s + silu * (1 - s));
        b[j] = g[j] * silu;
    }
    REAL_FN(norm_factors)(a, n, NULL, compute, d_gate);
    REAL_FN(norm_factors)(b, n, NULL, compute, d_up);
}

/* The site before down_proj, when its rows are needed whole: g = dL/dx^ in w->mid. */
static err REAL_FN(back_down_site)(int64_t layer, const llama_sites *sites, int64_t t0,
                                   int64_t n_tokens, llama_stash *st, const rotation_grads *grads,
                                   const llama_tap *tap, llama_work *w) {
    const compute_type compute = w->shape.compute;
    const int64_t width = w->cfg.intermediate;
    const size_t factor = compute_factor_bytes(compute);
    const site down = sites_down(sites, &w->cfg, layer);
    err e = err_none();
    if (REAL_FN(wants)(tap, TAP_DOWN_IN) || (grads && grads->scales[SCALE_UD])) {
#pragma omp parallel for schedule(static)
        for (int64_t t = 0; t < n_tokens; t++) {
            REAL *a = work_of_thread(w), *b = a + width;
            REAL_FN(site_widen)(bytes_at(st->gate, (t0 + t) * width, factor), width, compute, a);
            REAL_FN(site_widen)(bytes_at(st->up, (t0 + t) * width, factor), width, compute, b);
#pragma omp simd
            for (int64_t j = 0; j < width; j++) a[j] = REAL_SILU(a[j]) * b[j];
            REAL_FN(norm_factors)(a, width, NULL, compute, bytes_at(w->mid_a, t * width, factor));
        }
    }
    if (REAL_FN(wants)(tap, TAP_DOWN_IN))
        e = REAL_FN(tell)(tap, layer, TAP_DOWN_IN, t0, n_tokens, width, w->mid_a, w->mid, w);
    const site_kept kept = site_kept_at(&st->down, &down, t0, compute);
    const site_work work = REAL_FN(work_of_site)(w, sites, false);
    REAL_FN(back_site)
    (&down, SCALE_UD, w->mid, n_tokens, w->mid_a, &kept, grads, NULL, &work, w);
    return e;
}

/* x + down_proj(mid): w->mid_a, mid_b = factors of the gradients of gate and up. */
static err REAL_FN(back_mid)(const llama_layer *l, int64_t layer, const llama_sites *sites,
                             int64_t t0, int64_t n_tokens, llama_stash *st,
                             const rotation_grads *grads, const llama_tap *tap, llama_work *w) {
    const compute_type compute = w->shape.compute;
    const size_t factor = compute_factor_bytes(compute);
    const int64_t width = w->cfg.intermediate, hidden = w->cfg.hidden;
    const bool whole = st->down.moved || REAL_FN(wants)(tap, TAP_DOWN_IN);
    const wmat_tiles tiles = wmat_tiles_of(n_tokens, width);
    err e = err_none();
    if (whole) {
        const wmat_back_term term = {&l->down, w->input};
        wmat_back_products(&term, 1, compute, n_tokens, w->mid, w->per_thread, w->thread_bytes);
        e = REAL_FN(back_down_site)(layer, sites, t0, n_tokens, st, grads, tap, w);
        if (e.code) return e;
    }
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < tiles.count; i++) {
        const wmat_rect r = wmat_tiles_at(&tiles, i);
        REAL *g = work_of_thread(w), *a = g + WMAT_TILE_ROWS * WMAT_TILE_COLUMNS, *b = a + r.n;
        if (!whole) {
            wmat_back_tile(&l->down, compute, bytes_at(w->input, r.i * hidden, factor), hidden, r.m,
                           r.j, r.n, false, g, r.n, work_tile_of_thread(w));
        }
        for (int64_t t = 0; t < r.m; t++) {
            const int64_t at = (r.i + t) * width + r.j, kept_at = at + t0 * width;
            REAL_FN(swiglu_back)
            (whole ? (REAL *)w->mid + at : g + t * r.n, bytes_at(st->gate, kept_at, factor),
             bytes_at(st->up, kept_at, factor), r.n, compute, a, b, bytes_at(w->mid_a, at, factor),
             bytes_at(w->mid_b, at, factor));
        }
    }
    return e;
}

static err REAL_FN(tell_factors)(const llama_tap *tap, int64_t layer, tap_place place, int64_t t0,
                                 int64_t n_tokens, int64_t width, const void *g, llama_work *w) {
    if (!REAL_FN(wants)(tap, place)) return err_none();
    REAL *wide = w->mid;
    REAL_FN(site_widen)(g, n_tokens * width, w->shape.compute, wide);
    return REAL_FN(tell)(tap, layer, place, t0, n_tokens, width, NULL, wide, w);
}

/* rms, site, gain: w->dh = gradient of the products' input. dx gets the gradient of x added. */
static err REAL_FN(back_normed)(int64_t layer, const llama_sites *sites, int which,
                                const float *gain, int64_t t0, int64_t n_tokens, REAL *dx,
                                llama_stash *st, const rotation_grads *grads, const llama_tap *tap,
                                llama_work *w) {
    const compute_type compute = w->shape.compute;
    const tap_place place = which == NORM_ATTN ? TAP_ATTN_IN : TAP_MLP_IN;
    const site at = sites_input(sites, &w->cfg, layer, which);
    const int64_t n = w->cfg.hidden;
    const size_t factor = compute_factor_bytes(compute);
    const void *y = bytes_at(st->y[which], t0 * n, factor);
    REAL *g = w->dh;
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < n_tokens; t++) {
#pragma omp simd
        for (int64_t j = 0; j < n; j++) g[t * n + j] *= (REAL)gain[j];
    }
    if (REAL_FN(wants)(tap, place)) {
        err e = REAL_FN(tell)(tap, layer, place, t0, n_tokens, n, y, g, w);
        if (e.code) return e;
    }
    const site_kept kept = site_kept_at(&st->input[which], &at, t0, compute);
    const site_work work = REAL_FN(work_of_site)(w, sites, true);
    REAL_FN(back_site)
    (&at, which == NORM_ATTN ? SCALE_ATTN : SCALE_MLP, g, n_tokens, y, &kept, grads,
     grads ? grads->R1 : NULL, &work, w);
    const REAL *scale = (REAL *)st->scale[which] + t0;
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < n_tokens; t++) {
        REAL *row = work_of_thread(w);
        REAL_FN(site_widen)(bytes_at(y, t * n, factor), n, compute, row);
        REAL_FN(norm_back)(row, scale[t], g + t * n, n, dx + t * n);
    }
    return err_none();
}

/* The site after attention: w->d_out and w->dot from w->wide = gradient of o_proj's input. */
static void REAL_FN(back_heads)(int64_t t0, int64_t n_tokens, const llama_stash *st,
                                llama_work *w) {
    const llama_config *c = &w->cfg;
    const compute_type compute = w->shape.compute;
    const int64_t d = c->head_dim, group = c->heads / c->kv_heads, n = c->heads * d;
    const size_t factor = compute_factor_bytes(compute);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < n_tokens; t++) {
        const REAL *g = (REAL *)w->wide + t * n;
        REAL *o = work_of_thread(w);
        REAL_FN(site_widen)(bytes_at(st->o, (t0 + t) * n, factor), n, compute, o);
        for (int64_t h = 0; h < c->heads; h++) {
            const int64_t at = (h / group * w->shape.window + t0 + t) * group + h % group;
            const REAL *gh = g + h * d, *oh = o + h * d;
            REAL sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t j = 0; j < d; j++) sum += gh[j] * oh[j];
            ((REAL *)w->dot)[at] = sum;
            REAL_FN(norm_factors)(gh, d, NULL, compute, bytes_at(w->d_out, at * d, factor));
        }
    }
}

static err REAL_FN(back_output)(const llama_layer *l, int64_t layer, const llama_sites *sites,
                                int64_t t0, int64_t n_tokens, llama_stash *st,
                                const rotation_grads *grads, const llama_tap *tap, llama_work *w) {
    const compute_type compute = w->shape.compute;
    const int64_t n = w->cfg.heads * w->cfg.head_dim;
    const site out = sites_output(sites, &w->cfg, layer);
    const void *o = bytes_at(st->o, t0 * n, compute_factor_bytes(compute));
    const wmat_back_term term = {&l->o, w->input};
    wmat_back_products(&term, 1, compute, n_tokens, w->wide, w->per_thread, w->thread_bytes);
    if (REAL_FN(wants)(tap, TAP_O_IN)) {
        err e = REAL_FN(tell)(tap, layer, TAP_O_IN, t0, n_tokens, n, o, w->wide, w);
        if (e.code) return e;
    }
    const site_kept kept = site_kept_at(&st->out, &out, t0, compute);
    const site_work work = REAL_FN(work_of_site)(w, sites, false);
    REAL_FN(back_site)
    (&out, SCALE_VO, w->wide, n_tokens, o, &kept, grads, grads ? grads->R2 : NULL, &work, w);
    REAL_FN(back_heads)(t0, n_tokens, st, w);
    return err_none();
}

/* Gradients of keys or values of the slice, by head, as rows [n, kv_heads head_dim]. */
static void REAL_FN(gather_heads)(const REAL *from, int64_t t0, int64_t n_tokens, REAL *to,
                                  const llama_work *w) {
    const int64_t d = w->cfg.head_dim, heads = w->cfg.kv_heads;
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < n_tokens; t++) {
        for (int64_t h = 0; h < heads; h++) {
            memcpy(to + (t * heads + h) * d, from + (h * w->shape.window + t0 + t) * d,
                   (size_t)d * sizeof *to);
        }
    }
}

/* Sites of keys and values: w->k and w->v from dL/dx^ to dL/dx. */
static err REAL_FN(back_keys_values)(int64_t layer, const llama_sites *sites, int64_t t0,
                                     int64_t n_tokens, llama_stash *st, const rotation_grads *grads,
                                     const llama_tap *tap, llama_work *w) {
    const compute_type compute = w->shape.compute;
    const site keys = sites_keys(sites, &w->cfg, layer),
               values = sites_values(sites, &w->cfg, layer);
    const site_kept keys_kept = site_kept_at(&st->keys, &keys, t0, compute);
    const site_kept values_kept = site_kept_at(&st->values, &values, t0, compute);
    const site_work work = REAL_FN(work_of_site)(w, sites, false);
    const void *k_in = bytes_at(st->k_in, t0 * keys.n, compute_factor_bytes(compute));
    const void *v_in = bytes_at(st->v_in, t0 * values.n, compute_factor_bytes(compute));
    err e = err_none();
    REAL_FN(gather_heads)(st->dk, t0, n_tokens, w->k, w);
    REAL_FN(gather_heads)(st->dv, t0, n_tokens, w->v, w);
    if (REAL_FN(wants)(tap, TAP_KEY)) {
        REAL_FN(rows_of_heads)(st->k, t0, n_tokens, w->k_half, w);
        e = REAL_FN(tell)(tap, layer, TAP_KEY, t0, n_tokens, keys.n, w->k_half, w->k, w);
    }
    if (!e.code && REAL_FN(wants)(tap, TAP_VALUE)) {
        REAL_FN(rows_of_heads)(st->v, t0, n_tokens, w->v_half, w);
        e = REAL_FN(tell)(tap, layer, TAP_VALUE, t0, n_tokens, values.n, w->v_half, w->v, w);
    }
    if (e.code) return e;
    REAL_FN(back_site)
    (&keys, SCALE_QK, w->k, n_tokens, k_in, &keys_kept, grads, NULL, &work, w);
    REAL_FN(back_site)
    (&values, SCALE_VO, w->v, n_tokens, v_in, &values_kept, grads, grads ? grads->R2 : NULL, &work,
     w);
    return e;
}

/* The norm of heads: y = x / rms(x), output y gain. From g = dL/d output of a token, in place, to
 *     dL/dx = scale (gain g - y mean(gain g y)),
 * as norm_back has it with gain g for the gradient of y. */
static void REAL_FN(back_head_norm)(const float *gain, int64_t heads, int64_t token, REAL *g,
                                    const head_norm_kept *kept, llama_work *w) {
    const compute_type compute = w->shape.compute;
    const int64_t d = w->cfg.head_dim;
    const size_t factor = compute_factor_bytes(compute);
    REAL *y = work_of_thread(w), *scaled = y + d;
    for (int64_t h = 0; gain && h < heads; h++) {
        const int64_t at = token * heads + h;
        REAL *row = g + h * d;
        REAL_FN(site_widen)(bytes_at(kept->y, at * d, factor), d, compute, y);
#pragma omp simd
        for (int64_t j = 0; j < d; j++) {
            scaled[j] = row[j] * (REAL)gain[j];
            row[j] = 0;
        }
        REAL_FN(norm_back)(y, ((const REAL *)kept->scale)[at], scaled, d, row);
    }
}

/* RoPE and norms of heads: gradients of the outputs of q, k and v as factors in w->input, k_half,
 * v_half. */
static void REAL_FN(back_positions)(const llama_layer *l, int64_t layer,
                                    const attention_shape *shape, int64_t t0, int64_t n_tokens,
                                    const llama_stash *st, llama_work *w) {
    const llama_config *c = &w->cfg;
    const bool turned = llama_has_rope(c, layer);
    const compute_type compute = w->shape.compute;
    const int64_t d = c->head_dim, half = d / 2, q_n = c->heads * d, kv_n = c->kv_heads * d;
    const size_t factor = compute_factor_bytes(compute);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < n_tokens; t++) {
        REAL *q = (REAL *)w->q + t * q_n, *k = (REAL *)w->k + t * kv_n;
        const REAL *cos_t = (REAL *)w->cos_t + (t0 + t) * half;
        const REAL *sin_t = (REAL *)w->sin_t + (t0 + t) * half;
        REAL_FN(attention_back_query)(shape, w->dq, t0 + t, q);
        for (int64_t h = 0; turned && h < c->heads; h++)
            REAL_FN(rope_head_back)(q + h * d, half, cos_t, sin_t);
        for (int64_t h = 0; turned && h < c->kv_heads; h++)
            REAL_FN(rope_head_back)(k + h * d, half, cos_t, sin_t);
        REAL_FN(back_head_norm)(l->q_norm, c->heads, t0 + t, q, &st->q_norm, w);
        REAL_FN(back_head_norm)(l->k_norm, c->kv_heads, t0 + t, k, &st->k_norm, w);
        REAL_FN(norm_factors)(q, q_n, NULL, compute, bytes_at(w->input, t * q_n, factor));
        REAL_FN(norm_factors)(k, kv_n, NULL, compute, bytes_at(w->k_half, t * kv_n, factor));
        REAL_FN(norm_factors)
        ((REAL *)w->v + t * kv_n, kv_n, NULL, compute, bytes_at(w->v_half, t * kv_n, factor));
    }
}

static err REAL_FN(back_mlp)(const llama_layer *l, int64_t layer, const llama_sites *sites,
                             int64_t t0, int64_t n_tokens, REAL *dx, llama_stash *st,
                             const rotation_grads *grads, const llama_tap *tap, llama_work *w) {
    const compute_type compute = w->shape.compute;
    const int64_t width = w->cfg.intermediate;
    REAL_FN(to_factors)(dx, n_tokens, w->cfg.hidden, NULL, compute, w->input);
    err e = REAL_FN(back_mid)(l, layer, sites, t0, n_tokens, st, grads, tap, w);
    if (!e.code)
        e = REAL_FN(tell_factors)(tap, layer, TAP_GATE_OUT, t0, n_tokens, width, w->mid_a, w);
    if (!e.code)
        e = REAL_FN(tell_factors)(tap, layer, TAP_UP_OUT, t0, n_tokens, width, w->mid_b, w);
    if (e.code) return e;
    const wmat_back_term terms[] = {{&l->gate, w->mid_a}, {&l->up, w->mid_b}};
    wmat_back_products(terms, 2, compute, n_tokens, w->dh, w->per_thread, w->thread_bytes);
    return REAL_FN(back_normed)(layer, sites, NORM_MLP, l->mlp_norm, t0, n_tokens, dx, st, grads,
                                tap, w);
}

static err REAL_FN(back_attention)(const llama_layer *l, int64_t layer, const llama_sites *sites,
                                   int64_t t0, int64_t n_tokens, REAL *dx, llama_stash *st,
                                   const rotation_grads *grads, const llama_tap *tap,
                                   llama_work *w) {
    const compute_type compute = w->shape.compute;
    const llama_config *c = &w->cfg;
    const attention_shape shape = REAL_FN(shape_of)(w, layer, t0, n_tokens);
    REAL_FN(to_factors)(dx, n_tokens, c->hidden, NULL, compute, w->input);
    err e = REAL_FN(back_output)(l, layer, sites, t0, n_tokens, st, grads, tap, w);
    if (e.code) return e;
    REAL_FN(attention_back)
    (&shape, st->q, st->k, st->v, st->lse, w->d_out, w->dot, w->dq, st->dk, st->dv, w->per_thread,
     w->thread_bytes);
    e = REAL_FN(back_keys_values)(layer, sites, t0, n_tokens, st, grads, tap, w);
    if (e.code) return e;
    REAL_FN(back_positions)(l, layer, &shape, t0, n_tokens, st, w);
    if (REAL_FN(wants)(tap, TAP_QUERY_OUT))
        e = REAL_FN(tell)(tap, layer, TAP_QUERY_OUT, t0, n_tokens, c->heads * c->head_dim, NULL,
                          w->q, w);
    if (!e.code && REAL_FN(wants)(tap, TAP_KEY_OUT))
        e = REAL_FN(tell)(tap, layer, TAP_KEY_OUT, t0, n_tokens, c->kv_heads * c->head_dim, NULL,
                          w->k, w);
    if (!e.code && REAL_FN(wants)(tap, TAP_VALUE_OUT))
        e = REAL_FN(tell)(tap, layer, TAP_VALUE_OUT, t0, n_tokens, c->kv_heads * c->head_dim, NULL,
                          w->v, w);
    if (e.code) return e;
    const wmat_back_term terms[] = {{&l->q, w->input}, {&l->k, w->k_half}, {&l->v, w->v_half}};
    wmat_back_products(terms, 3, compute, n_tokens, w->dh, w->per_thread, w->thread_bytes);
    return REAL_FN(back_normed)(layer, sites, NORM_ATTN, l->attn_norm, t0, n_tokens, dx, st, grads,
                                tap, w);
}

err REAL_FN(block_back)(const llama_layer *l, int64_t layer, const llama_sites *sites, int64_t t0,
                        int64_t n_tokens, REAL *dx, llama_stash *st, const rotation_grads *grads,
                        const llama_tap *tap, llama_work *w) {
    const int64_t hidden = w->cfg.hidden;
    err e = err_none();
    if (REAL_FN(wants)(tap, TAP_DOWN_OUT))
        e = REAL_FN(tell)(tap, layer, TAP_DOWN_OUT, t0, n_tokens, hidden, NULL, dx, w);
    if (!e.code) e = REAL_FN(back_mlp)(l, layer, sites, t0, n_tokens, dx, st, grads, tap, w);
    if (!e.code && REAL_FN(wants)(tap, TAP_O_OUT))
        e = REAL_FN(tell)(tap, layer, TAP_O_OUT, t0, n_tokens, hidden, NULL, dx, w);
    if (!e.code) e = REAL_FN(back_attention)(l, layer, sites, t0, n_tokens, dx, st, grads, tap, w);
    return e;
}
