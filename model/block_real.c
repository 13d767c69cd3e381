/* One decoder block: norm, attention, norm, gated MLP, with activation quantizers in between. Rows
 * are tokens throughout. */
#include "model/block_internal.h"

#include "base/gemm.h"
#include "model/norm.h"
#include "model/rope.h"
#include "model/sites.h"

#include "base/real.h"

/* s->input = the factors of rms(x), through the site, times the norm's gain; or, where the gain
 * stays in the norm, times the gain first (site_behind_gain). */
static void normed_input(const site *at, const float *gain, int64_t n_tokens, const real *x,
                         llama_scratch *s) {
    const int64_t n = s->cfg.hidden;
    const size_t row_bytes = (size_t)n * compute_factor_bytes(s->compute);
    const bool acts = site_acts(at), behind = acts && site_behind_gain(at);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < n_tokens; t++) {
        real *row = acts ? (real *)s->wide_input + t * n : scratch_of_thread(s);
        norm_rows_f32(x + t * n, 1, n, s->cfg.rms_eps, behind ? gain : NULL, row);
        if (!acts) {
            char *to = (char *)s->input + (size_t)t * row_bytes;
            norm_factors_f32(row, n, gain, s->compute, to);
        }
    }
    if (!acts) return;
    real *wide = s->wide_input;
    site_apply_f32(at, wide, n_tokens, &s->site);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < n_tokens; t++) {
        norm_factors_f32(wide + t * n, n, behind ? NULL : gain, s->compute,
                         (char *)s->input + (size_t)t * row_bytes);
    }
}

/* Biases, norms of heads and RoPE: queries go to q_heads, keys and values stay for their sites. */
static void place_positions(const llama_layer *l, int64_t layer, int64_t n_tokens,
                            llama_scratch *s) {
    const llama_config *c = &s->cfg;
    const bool rope_here = llama_has_rope(c, layer);
    const int64_t d = c->head_dim, half = d / 2, group = c->heads / c->kv_heads;
    const size_t factor = compute_factor_bytes(s->compute);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < n_tokens; t++) {
        real *q = (real *)s->q + t * c->heads * d, *k = (real *)s->k + t * c->kv_heads * d;
        const int64_t at = s->positions ? s->positions[t] : t;
        const real *cos_t = (real *)s->cos_t + at * half, *sin_t = (real *)s->sin_t + at * half;
        norm_add_bias_f32(q, l->bq, c->heads * d);
        norm_add_bias_f32(k, l->bk, c->kv_heads * d);
        norm_add_bias_f32((real *)s->v + t * c->kv_heads * d, l->bv, c->kv_heads * d);
        if (l->k_norm) norm_rows_f32(k, c->kv_heads, d, c->rms_eps, l->k_norm, k);
        if (l->q_norm) norm_rows_f32(q, c->heads, d, c->rms_eps, l->q_norm, q);
        for (int64_t h = 0; rope_here && h < c->kv_heads; h++)
            rope_head_f32(k + h * d, half, cos_t, sin_t);
        for (int64_t h = 0; h < c->heads; h++) {
            const int64_t to = ((h / group * n_tokens + t) * group + h % group) * d;
            if (rope_here) rope_head_f32(q + h * d, half, cos_t, sin_t);
            norm_factors_f32(q + h * d, d, NULL, s->compute,
                             (char *)s->q_heads + (size_t)to * factor);
        }
    }
}

/* Keys and values [T, kv_heads, head_dim] to factors [kv_heads, T, head_dim]. */
static void by_head(int64_t n_tokens, const llama_scratch *s) {
    const int64_t d = s->cfg.head_dim, heads = s->cfg.kv_heads;
    const size_t factor = compute_factor_bytes(s->compute);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < n_tokens; t++) {
        for (int64_t h = 0; h < heads; h++) {
            const int64_t from = (t * heads + h) * d;
            const size_t to = (size_t)((h * n_tokens + t) * d) * factor;
            const real *k = (real *)s->k + from, *v = (real *)s->v + from;
            norm_factors_f32(k, d, NULL, s->compute, (char *)s->k_heads + to);
            norm_factors_f32(v, d, NULL, s->compute, (char *)s->v_heads + to);
        }
    }
}

/* The o_proj input from the attention output, which lies in s->q: through its site, to factors. */
static const void *output_factors(const site *at, int64_t n_tokens, llama_scratch *s) {
    const int64_t n = s->cfg.heads * s->cfg.head_dim;
    real *out = s->q;
    site_apply_f32(at, out, n_tokens, &s->site);
    if (s->compute != COMPUTE_BF16) return out;
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < n_tokens; t++) {
        norm_factors_f32(out + t * n, n, NULL, s->compute, (bf16 *)s->input + t * n);
    }
    return s->input;
}

/* Attention of each packed sequence by itself, or of the one window. */
static void attend(const attention_shape *all, llama_scratch *s) {
    const int64_t group = all->heads / all->kv_heads, d = all->head_dim;
    const size_t row = (size_t)d * compute_factor_bytes(s->compute);
    attention_shape one = *all;
    one.room = all->tokens;
    for (int64_t t = 0; t < all->tokens; t += one.tokens) {
        int64_t end = t + 1;
        while (end < all->tokens && !(s->positions && s->positions[end] == 0)) end++;
        one.tokens = end - t;
        attention_f32(&one, (char *)s->q_heads + (size_t)(t * group) * row,
                      (char *)s->k_heads + (size_t)t * row, (char *)s->v_heads + (size_t)t * row,
                      (real *)s->q + t * all->heads * d, NULL, s->per_thread, s->thread_bytes);
    }
}

const void *block_step_input_f32(const llama_layer *l, int64_t layer, const llama_sites *sites,
                                 llama_step step, int64_t n_tokens, const real *x,
                                 llama_scratch *s) {
    const llama_config *c = &s->cfg;
    const site normed = sites_input(sites, c, layer, step <= STEP_O ? NORM_ATTN : NORM_MLP);
    const site keys = sites_keys(sites, c, layer), values = sites_values(sites, c, layer),
               output = sites_output(sites, c, layer);
    const attention_shape shape = {.tokens = n_tokens,
                                   .heads = c->heads,
                                   .kv_heads = c->kv_heads,
                                   .head_dim = c->head_dim,
                                   .sliding_window = llama_window_of(c, layer),
                                   .scale = c->score_scale,
                                   .compute = s->compute};

    normed_input(&normed, step <= STEP_O ? l->attn_norm : l->mlp_norm, n_tokens, x, s);
    if (step == STEP_QKV || step == STEP_GATE_UP) return s->input;
    if (step == STEP_DOWN) return mlp_mid_f32(l, layer, sites, n_tokens, s);
    const wmat_term qkv[] = {{&l->q, s->q}, {&l->k, s->k}, {&l->v, s->v}};
    wmat_products(qkv, 3, s->compute, s->input, n_tokens, GEMM_SET, s->per_thread, s->thread_bytes);
    place_positions(l, layer, n_tokens, s);
    site_apply_f32(&keys, s->k, n_tokens, &s->site);
    site_apply_f32(&values, s->v, n_tokens, &s->site);
    by_head(n_tokens, s);
    attend(&shape, s);
    return output_factors(&output, n_tokens, s);
}

void block_step_add_f32(const llama_layer *l, llama_step step, int64_t n_tokens,
                        const void *factors, real *x, llama_scratch *s) {
    const wmat *w = step == STEP_O ? &l->o : &l->down;
    const float *bias = step == STEP_O ? l->bo : l->bdown;
    const int64_t hidden = s->cfg.hidden;
    wmat_product(w, s->compute, factors, n_tokens, GEMM_ADD, x, s->per_thread, s->thread_bytes);
    for (int64_t t = 0; bias && t < n_tokens; t++) {
        norm_add_bias_f32(x + t * hidden, bias, hidden);
    }
}

void block_forward_f32(const llama_layer *l, int64_t layer, const llama_sites *sites,
                       int64_t n_tokens, real *x, llama_scratch *s) {
    static const llama_step steps[] = {STEP_O, STEP_DOWN};
    for (int i = 0; i < 2; i++) {
        const void *factors = block_step_input_f32(l, layer, sites, steps[i], n_tokens, x, s);
        block_step_add_f32(l, steps[i], n_tokens, factors, x, s);
    }
}
