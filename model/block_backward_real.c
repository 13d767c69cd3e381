/* The backward of block_real.c: its steps undone from the last to the first. g is always the
 * gradient of what the step named there gave. */
#include "model/backward_internal.h"

#include "base/gemm.h"
#include "base/vecmath.h"
#include "model/norm.h"
#include "model/rope.h"
#include "model/wmat_backward.h"

#include <string.h>

#include "base/real.h"

/* Back through a site whose scales are of `kind`: their gradient, then g from dL/dx^ to dL/dx. What
 * is kept of the range for scales alone is not for the others. */
static void backward_site(const site *at, scale_kind kind, real *g, int64_t rows, const void *x,
                          const site_saved *saved, const rotation_grads *grads, real *dR,
                          const site_work *work, const llama_work *w) {
    real *dS = grads ? grads->scales[kind] : NULL;
    site_saved seen = *saved;
    if (dS) site_scale_backward_f32(at, g, rows, x, saved, dS, work);
    if (!w->shape.through) seen.moved = seen.ends = NULL;
    site_backward_f32(at, g, rows, x, &seen, dR, work);
}

/* Factors by head of the slice as rows [n, kv_heads head_dim]. */
static void rows_of_heads(const void *from, int64_t t0, int64_t n_tokens, void *to,
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
static void swiglu_backward(const real *g, const void *gate, const void *up, int64_t n,
                            compute_type compute, real *a, real *b, void *d_gate, void *d_up) {
    site_widen_f32(gate, n, compute, a);
    site_widen_f32(up, n, compute, b);
#pragma omp simd
    for (int64_t j = 0; j < n; j++) {
        const real s = 1 / (1 + vec_exp(-a[j])), silu = a[j] * s;
        a[j] = g[j] * b[j] * (s + silu * (1 - s));
        b[j] = g[j] * silu;
    }
    norm_factors_f32(a, n, NULL, compute, d_gate);
    norm_factors_f32(b, n, NULL, compute, d_up);
}

/* The site before down_proj, when its rows are needed whole: g = dL/dx^ in w->mid. */
static err backward_down_site(int64_t layer, const llama_sites *sites, int64_t t0, int64_t n_tokens,
                              llama_saved *st, const rotation_grads *grads, const llama_hook *hook,
                              llama_work *w) {
    const compute_type compute = w->shape.compute;
    const int64_t width = w->cfg.intermediate;
    const size_t factor = compute_factor_bytes(compute);
    const site down = sites_down(sites, &w->cfg, layer);
    err e = err_none();
    if (hook_wants(hook, HOOK_DOWN_IN) || (grads && grads->scales[SCALE_UD])) {
#pragma omp parallel for schedule(static)
        for (int64_t t = 0; t < n_tokens; t++) {
            real *a = work_of_thread(w), *b = a + width;
            site_widen_f32(bytes_at(st->gate, (t0 + t) * width, factor), width, compute, a);
            site_widen_f32(bytes_at(st->up, (t0 + t) * width, factor), width, compute, b);
#pragma omp simd
            for (int64_t j = 0; j < width; j++) a[j] = vec_silu(a[j]) * b[j];
            norm_factors_f32(a, width, NULL, compute, bytes_at(w->mid_a, t * width, factor));
        }
    }
    if (hook_wants(hook, HOOK_DOWN_IN))
        e = hook_tell(hook, layer, HOOK_DOWN_IN, t0, n_tokens, width, w->mid_a, w->mid, w);
    const site_saved saved = site_saved_at(&st->down, &down, t0, compute);
    const site_work work = work_site(w, &down);
    backward_site(&down, SCALE_UD, w->mid, n_tokens, w->mid_a, &saved, grads, NULL, &work, w);
    return e;
}

/* x + down_proj(mid): w->mid_a, mid_b = factors of the gradients of gate and up. */
static err backward_mid(const llama_layer *l, int64_t layer, const llama_sites *sites, int64_t t0,
                        int64_t n_tokens, llama_saved *st, const rotation_grads *grads,
                        const llama_hook *hook, llama_work *w) {
    const compute_type compute = w->shape.compute;
    const size_t factor = compute_factor_bytes(compute);
    const int64_t width = w->cfg.intermediate, hidden = w->cfg.hidden;
    const bool whole = st->down.moved || hook_wants(hook, HOOK_DOWN_IN);
    const wmat_tiles tiles = wmat_tiles_of(n_tokens, width);
    err e = err_none();
    if (whole) {
        const wmat_backward_term term = {&l->down, w->input};
        wmat_backward_products(&term, 1, compute, n_tokens, w->mid, w->per_thread, w->thread_bytes);
        e = backward_down_site(layer, sites, t0, n_tokens, st, grads, hook, w);
        if (e.code) return e;
    }
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < tiles.count; i++) {
        const wmat_rect r = wmat_tiles_at(&tiles, i);
        real *g = work_of_thread(w), *a = g + WMAT_TILE_ROWS * WMAT_TILE_COLUMNS, *b = a + r.n;
        if (!whole) {
            wmat_backward_tile(&l->down, compute, bytes_at(w->input, r.i * hidden, factor), hidden,
                               r.m, r.j, r.n, GEMM_SET, g, r.n, work_tile_of_thread(w));
        }
        for (int64_t t = 0; t < r.m; t++) {
            const int64_t at = (r.i + t) * width + r.j, saved_at = at + t0 * width;
            swiglu_backward(whole ? (real *)w->mid + at : g + t * r.n,
                            bytes_at(st->gate, saved_at, factor),
                            bytes_at(st->up, saved_at, factor), r.n, compute, a, b,
                            bytes_at(w->mid_a, at, factor), bytes_at(w->mid_b, at, factor));
        }
    }
    return e;
}

static err tell_factors(const llama_hook *hook, int64_t layer, hook_place place, int64_t t0,
                        int64_t n_tokens, int64_t width, const void *g, llama_work *w) {
    if (!hook_wants(hook, place)) return err_none();
    real *wide = w->mid;
    site_widen_f32(g, n_tokens * width, w->shape.compute, wide);
    return hook_tell(hook, layer, place, t0, n_tokens, width, NULL, wide, w);
}

/* rms, site, gain (or gain, site): w->dh = gradient of the products' input. dx gets the gradient of
 * x added. */
static err backward_normed(int64_t layer, const llama_sites *sites, int which, const float *gain,
                           int64_t t0, int64_t n_tokens, real *dx, llama_saved *st,
                           const rotation_grads *grads, const llama_hook *hook, llama_work *w) {
    const compute_type compute = w->shape.compute;
    const hook_place place = which == NORM_ATTN ? HOOK_ATTN_IN : HOOK_MLP_IN;
    const site at = sites_input(sites, &w->cfg, layer, which);
    const int64_t n = w->cfg.hidden;
    const size_t factor = compute_factor_bytes(compute);
    const void *y = bytes_at(st->y[which], t0 * n, factor);
    const bool behind = aquant_on(&at.quant) && site_behind_gain(&at);
    real *g = w->dh;
    const site_saved saved = site_saved_at(&st->input[which], &at, t0, compute);
    const site_work work = work_site(w, &at);
    /* No rotation and no scale there: its rows are asked for by nothing. */
    if (behind) site_backward_f32(&at, g, n_tokens, NULL, &saved, NULL, &work);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < n_tokens; t++) {
#pragma omp simd
        for (int64_t j = 0; j < n; j++) g[t * n + j] *= (real)gain[j];
    }
    if (hook_wants(hook, place)) {
        err e = hook_tell(hook, layer, place, t0, n_tokens, n, y, g, w);
        if (e.code) return e;
    }
    if (!behind)
        backward_site(&at, which == NORM_ATTN ? SCALE_ATTN : SCALE_MLP, g, n_tokens, y, &saved,
                      grads, grads ? grads->R1 : NULL, &work, w);
    const real *scale = (real *)st->scale[which] + t0;
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < n_tokens; t++) {
        real *row = work_of_thread(w);
        site_widen_f32(bytes_at(y, t * n, factor), n, compute, row);
        norm_backward_f32(row, scale[t], g + t * n, n, dx + t * n);
    }
    return err_none();
}

/* The site after attention: w->d_out and w->dot from w->wide = gradient of o_proj's input. */
static void backward_heads(int64_t t0, int64_t n_tokens, const llama_saved *st, llama_work *w) {
    const llama_config *c = &w->cfg;
    const compute_type compute = w->shape.compute;
    const int64_t d = c->head_dim, group = c->heads / c->kv_heads, n = c->heads * d;
    const size_t factor = compute_factor_bytes(compute);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < n_tokens; t++) {
        const real *g = (real *)w->wide + t * n;
        real *o = work_of_thread(w);
        site_widen_f32(bytes_at(st->o, (t0 + t) * n, factor), n, compute, o);
        for (int64_t h = 0; h < c->heads; h++) {
            const int64_t at = (h / group * w->shape.window + t0 + t) * group + h % group;
            const real *gh = g + h * d, *oh = o + h * d;
            real sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t j = 0; j < d; j++) sum += gh[j] * oh[j];
            ((real *)w->dot)[at] = sum;
            norm_factors_f32(gh, d, NULL, compute, bytes_at(w->d_out, at * d, factor));
        }
    }
}

static err backward_output(const llama_layer *l, int64_t layer, const llama_sites *sites,
                           int64_t t0, int64_t n_tokens, llama_saved *st,
                           const rotation_grads *grads, const llama_hook *hook, llama_work *w) {
    const compute_type compute = w->shape.compute;
    const int64_t n = w->cfg.heads * w->cfg.head_dim;
    const site out = sites_output(sites, &w->cfg, layer);
    const void *o = bytes_at(st->o, t0 * n, compute_factor_bytes(compute));
    const wmat_backward_term term = {&l->o, w->input};
    wmat_backward_products(&term, 1, compute, n_tokens, w->wide, w->per_thread, w->thread_bytes);
    if (hook_wants(hook, HOOK_O_IN)) {
        err e = hook_tell(hook, layer, HOOK_O_IN, t0, n_tokens, n, o, w->wide, w);
        if (e.code) return e;
    }
    const site_saved saved = site_saved_at(&st->out, &out, t0, compute);
    const site_work work = work_site(w, &out);
    backward_site(&out, SCALE_VO, w->wide, n_tokens, o, &saved, grads, grads ? grads->R2 : NULL,
                  &work, w);
    backward_heads(t0, n_tokens, st, w);
    return err_none();
}

/* Gradients of keys or values of the slice, by head, as rows [n, kv_heads head_dim]. */
static void gather_heads(const real *from, int64_t t0, int64_t n_tokens, real *to,
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
static err backward_keys_values(int64_t layer, const llama_sites *sites, int64_t t0,
                                int64_t n_tokens, llama_saved *st, const rotation_grads *grads,
                                const llama_hook *hook, llama_work *w) {
    const compute_type compute = w->shape.compute;
    const site keys = sites_keys(sites, &w->cfg, layer),
               values = sites_values(sites, &w->cfg, layer);
    const site_saved keys_saved = site_saved_at(&st->keys, &keys, t0, compute);
    const site_saved values_saved = site_saved_at(&st->values, &values, t0, compute);
    const site_work work = work_site(w, &keys);
    const void *k_in = bytes_at(st->k_in, t0 * keys.n, compute_factor_bytes(compute));
    const void *v_in = bytes_at(st->v_in, t0 * values.n, compute_factor_bytes(compute));
    err e = err_none();
    gather_heads(st->dk, t0, n_tokens, w->k, w);
    gather_heads(st->dv, t0, n_tokens, w->v, w);
    if (hook_wants(hook, HOOK_KEY)) {
        rows_of_heads(st->k, t0, n_tokens, w->k_half, w);
        e = hook_tell(hook, layer, HOOK_KEY, t0, n_tokens, keys.n, w->k_half, w->k, w);
    }
    if (!e.code && hook_wants(hook, HOOK_VALUE)) {
        rows_of_heads(st->v, t0, n_tokens, w->v_half, w);
        e = hook_tell(hook, layer, HOOK_VALUE, t0, n_tokens, values.n, w->v_half, w->v, w);
    }
    if (e.code) return e;
    backward_site(&keys, SCALE_QK, w->k, n_tokens, k_in, &keys_saved, grads, NULL, &work, w);
    backward_site(&values, SCALE_VO, w->v, n_tokens, v_in, &values_saved, grads,
                  grads ? grads->R2 : NULL, &work, w);
    return e;
}

/* The norm of heads: y = x / rms(x), output y gain. From g = dL/d output of a token, in place, to
 *     dL/dx = scale (gain g - y mean(gain g y)),
 * as norm_backward has it with gain g for the gradient of y. */
static void backward_head_norm(const float *gain, int64_t heads, int64_t token, real *g,
                               const head_norm_saved *saved, llama_work *w) {
    const compute_type compute = w->shape.compute;
    const int64_t d = w->cfg.head_dim;
    const size_t factor = compute_factor_bytes(compute);
    real *y = work_of_thread(w), *scaled = y + d;
    for (int64_t h = 0; gain && h < heads; h++) {
        const int64_t at = token * heads + h;
        real *row = g + h * d;
        site_widen_f32(bytes_at(saved->y, at * d, factor), d, compute, y);
#pragma omp simd
        for (int64_t j = 0; j < d; j++) {
            scaled[j] = row[j] * (real)gain[j];
            row[j] = 0;
        }
        norm_backward_f32(y, ((const real *)saved->scale)[at], scaled, d, row);
    }
}

/* RoPE and norms of heads: gradients of the outputs of q, k and v as factors in w->input, k_half,
 * v_half. */
static void backward_positions(const llama_layer *l, int64_t layer, const attention_shape *shape,
                               int64_t t0, int64_t n_tokens, const llama_saved *st, llama_work *w) {
    const llama_config *c = &w->cfg;
    const bool rope_here = llama_has_rope(c, layer);
    const compute_type compute = w->shape.compute;
    const int64_t d = c->head_dim, half = d / 2, q_n = c->heads * d, kv_n = c->kv_heads * d;
    const size_t factor = compute_factor_bytes(compute);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < n_tokens; t++) {
        real *q = (real *)w->q + t * q_n, *k = (real *)w->k + t * kv_n;
        const real *cos_t = (real *)w->cos_t + (t0 + t) * half;
        const real *sin_t = (real *)w->sin_t + (t0 + t) * half;
        attention_backward_query_f32(shape, w->dq, t0 + t, q);
        for (int64_t h = 0; rope_here && h < c->heads; h++)
            rope_head_backward_f32(q + h * d, half, cos_t, sin_t);
        for (int64_t h = 0; rope_here && h < c->kv_heads; h++)
            rope_head_backward_f32(k + h * d, half, cos_t, sin_t);
        backward_head_norm(l->q_norm, c->heads, t0 + t, q, &st->q_norm, w);
        backward_head_norm(l->k_norm, c->kv_heads, t0 + t, k, &st->k_norm, w);
        norm_factors_f32(q, q_n, NULL, compute, bytes_at(w->input, t * q_n, factor));
        norm_factors_f32(k, kv_n, NULL, compute, bytes_at(w->k_half, t * kv_n, factor));
        norm_factors_f32((real *)w->v + t * kv_n, kv_n, NULL, compute,
                         bytes_at(w->v_half, t * kv_n, factor));
    }
}

static err backward_mlp(const llama_layer *l, int64_t layer, const llama_sites *sites, int64_t t0,
                        int64_t n_tokens, real *dx, llama_saved *st, const rotation_grads *grads,
                        const llama_hook *hook, llama_work *w) {
    const compute_type compute = w->shape.compute;
    const int64_t width = w->cfg.intermediate;
    norm_row_factors_f32(dx, n_tokens, w->cfg.hidden, NULL, compute, w->input);
    err e = backward_mid(l, layer, sites, t0, n_tokens, st, grads, hook, w);
    if (!e.code) e = tell_factors(hook, layer, HOOK_GATE_OUT, t0, n_tokens, width, w->mid_a, w);
    if (!e.code) e = tell_factors(hook, layer, HOOK_UP_OUT, t0, n_tokens, width, w->mid_b, w);
    if (e.code) return e;
    const wmat_backward_term terms[] = {{&l->gate, w->mid_a}, {&l->up, w->mid_b}};
    wmat_backward_products(terms, 2, compute, n_tokens, w->dh, w->per_thread, w->thread_bytes);
    return backward_normed(layer, sites, NORM_MLP, l->mlp_norm, t0, n_tokens, dx, st, grads, hook,
                           w);
}

static err backward_attention(const llama_layer *l, int64_t layer, const llama_sites *sites,
                              int64_t t0, int64_t n_tokens, real *dx, llama_saved *st,
                              const rotation_grads *grads, const llama_hook *hook, llama_work *w) {
    const compute_type compute = w->shape.compute;
    const llama_config *c = &w->cfg;
    const attention_shape shape = work_attention(w, layer, t0, n_tokens);
    norm_row_factors_f32(dx, n_tokens, c->hidden, NULL, compute, w->input);
    err e = backward_output(l, layer, sites, t0, n_tokens, st, grads, hook, w);
    if (e.code) return e;
    attention_backward_f32(&shape, st->q, st->k, st->v, st->lse, w->d_out, w->dot, w->dq, st->dk,
                           st->dv, w->per_thread, w->thread_bytes);
    e = backward_keys_values(layer, sites, t0, n_tokens, st, grads, hook, w);
    if (e.code) return e;
    backward_positions(l, layer, &shape, t0, n_tokens, st, w);
    if (hook_wants(hook, HOOK_QUERY_OUT))
        e = hook_tell(hook, layer, HOOK_QUERY_OUT, t0, n_tokens, c->heads * c->head_dim, NULL, w->q,
                      w);
    if (!e.code && hook_wants(hook, HOOK_KEY_OUT))
        e = hook_tell(hook, layer, HOOK_KEY_OUT, t0, n_tokens, c->kv_heads * c->head_dim, NULL,
                      w->k, w);
    if (!e.code && hook_wants(hook, HOOK_VALUE_OUT))
        e = hook_tell(hook, layer, HOOK_VALUE_OUT, t0, n_tokens, c->kv_heads * c->head_dim, NULL,
                      w->v, w);
    if (e.code) return e;
    const wmat_backward_term terms[] = {{&l->q, w->input}, {&l->k, w->k_half}, {&l->v, w->v_half}};
    wmat_backward_products(terms, 3, compute, n_tokens, w->dh, w->per_thread, w->thread_bytes);
    return backward_normed(layer, sites, NORM_ATTN, l->attn_norm, t0, n_tokens, dx, st, grads, hook,
                           w);
}

err block_backward_f32(const llama_layer *l, int64_t layer, const llama_sites *sites, int64_t t0,
                       int64_t n_tokens, real *dx, llama_saved *st, const rotation_grads *grads,
                       const llama_hook *hook, llama_work *w) {
    const int64_t hidden = w->cfg.hidden;
    err e = err_none();
    if (hook_wants(hook, HOOK_DOWN_OUT))
        e = hook_tell(hook, layer, HOOK_DOWN_OUT, t0, n_tokens, hidden, NULL, dx, w);
    if (!e.code) e = backward_mlp(l, layer, sites, t0, n_tokens, dx, st, grads, hook, w);
    if (!e.code && hook_wants(hook, HOOK_O_OUT))
        e = hook_tell(hook, layer, HOOK_O_OUT, t0, n_tokens, hidden, NULL, dx, w);
    if (!e.code) e = backward_attention(l, layer, sites, t0, n_tokens, dx, st, grads, hook, w);
    return e;
}
