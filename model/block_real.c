/* One decoder block: norm, attention, norm, gated MLP, with activation quantizers in between. Rows
 * are tokens throughout. The same steps serve passes that learn: where a part of p->saved has room,
 * what the backward (block_backward_real.c) needs of a step is written there. Such a pass takes a
 * window in slices, and applies a dense R1 in bf16 where products are in bf16; without R1 its bits
 * are those of a pass that saves nothing. */
#include "model/block_internal.h"

#include "base/gemm.h"
#include "model/backward_internal.h"
#include "model/norm.h"
#include "model/rope.h"
#include "model/sites.h"

#include "base/real.h"

/* Rows [n_tokens, width] as factors, for the backward; to NULL: it does not need them. */
static void save_rows(const block_pass *p, const real *from, int64_t width, void *to) {
    if (!to) return;
    norm_row_factors_f32(from, p->n_tokens, width, NULL, p->compute,
                         bytes_at(to, p->t0 * width, compute_factor_bytes(p->compute)));
}

void block_site_f32(const block_pass *p, const site *at, real *x, const void *factors,
                    const site_saved *saved) {
    if (!p->work) {
        site_apply_f32(at, x, p->n_tokens, &p->site);
        return;
    }
    const site_saved here = site_saved_at(saved, at, p->t0, p->compute);
    const site_work work = work_site(p->work, at);
    site_save_f32(at, x, p->n_tokens, factors, &here, &work);
}

/* Of row t, x / rms(x), for the backward: that and 1 / rms. Then times the gain, unless NULL. */
static void save_normed_row(const block_pass *p, int which, int64_t t, const real *x,
                            const float *gain, real *row) {
    const int64_t n = p->cfg->hidden, at = p->t0 + t;
    ((real *)p->saved->scale[which])[at] = norm_scale_f32(x, n, p->cfg->rms_eps);
    norm_factors_f32(row, n, NULL, p->compute,
                     bytes_at(p->saved->y[which], at * n, compute_factor_bytes(p->compute)));
    if (!gain) return;
#pragma omp simd
    for (int64_t j = 0; j < n; j++) row[j] *= (real)gain[j];
}

/* p->input = the factors of rms(x), through the site, times the norm's gain; or, where the gain
 * stays in the norm, times the gain first (site_behind_gain). */
static void normed_input(const block_pass *p, int which, const float *gain, const real *x) {
    const site at = sites_input(p->sites, p->cfg, p->layer, which);
    const int64_t n = p->cfg->hidden;
    const size_t factor = compute_factor_bytes(p->compute);
    const bool acts = site_acts(&at), behind = acts && site_behind_gain(&at);
    const float *first = behind ? gain : NULL, *last = behind ? NULL : gain;
    void *y = p->saved->y[which];
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < p->n_tokens; t++) {
        real *row = acts ? (real *)p->wide_input + t * n : block_thread_reals(p);
        norm_rows_f32(x + t * n, 1, n, p->cfg->rms_eps, y ? NULL : first, row);
        if (y) save_normed_row(p, which, t, x + t * n, first, row);
        if (!acts) norm_factors_f32(row, n, last, p->compute, bytes_at(p->input, t * n, factor));
    }
    if (!acts) return;
    block_site_f32(p, &at, p->wide_input, behind ? NULL : bytes_at(y, p->t0 * n, factor),
                   &p->saved->input[which]);
    norm_row_factors_f32(p->wide_input, p->n_tokens, n, last, p->compute, p->input);
}

/* The heads of token t through their norm, and what its backward takes, where that has room. */
static void head_norm(const block_pass *p, const float *gain, int64_t heads, int64_t t, real *x,
                      const head_norm_saved *to) {
    const int64_t d = p->cfg->head_dim, first = (p->t0 + t) * heads;
    const size_t factor = compute_factor_bytes(p->compute);
    if (!gain) return;
    for (int64_t h = 0; to->y && h < heads; h++) {
        real *row = x + h * d;
        ((real *)to->scale)[first + h] = norm_scale_f32(row, d, p->cfg->rms_eps);
        norm_rows_f32(row, 1, d, p->cfg->rms_eps, NULL, row);
        norm_factors_f32(row, d, NULL, p->compute, bytes_at(to->y, (first + h) * d, factor));
#pragma omp simd
        for (int64_t j = 0; j < d; j++) row[j] *= (real)gain[j];
    }
    if (!to->y) norm_rows_f32(x, heads, d, p->cfg->rms_eps, gain, x);
}

/* Biases, norms of heads and RoPE: queries go to q_heads, keys and values stay for their sites. */
static void place_positions(const block_pass *p) {
    const llama_layer *l = p->weights;
    const llama_config *c = p->cfg;
    const bool rope_here = llama_has_rope(c, p->layer);
    const int64_t d = c->head_dim, half = d / 2, group = c->heads / c->kv_heads;
    const size_t factor = compute_factor_bytes(p->compute);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < p->n_tokens; t++) {
        real *q = (real *)p->q + t * c->heads * d, *k = (real *)p->k + t * c->kv_heads * d;
        const int64_t at = p->positions ? p->positions[t] : p->t0 + t;
        const real *cos_t = (real *)p->cos_t + at * half, *sin_t = (real *)p->sin_t + at * half;
        norm_add_bias_f32(q, l->bq, c->heads * d);
        norm_add_bias_f32(k, l->bk, c->kv_heads * d);
        norm_add_bias_f32((real *)p->v + t * c->kv_heads * d, l->bv, c->kv_heads * d);
        head_norm(p, l->q_norm, c->heads, t, q, &p->saved->q_norm);
        head_norm(p, l->k_norm, c->kv_heads, t, k, &p->saved->k_norm);
        for (int64_t h = 0; rope_here && h < c->kv_heads; h++)
            rope_head_f32(k + h * d, half, cos_t, sin_t);
        for (int64_t h = 0; h < c->heads; h++) {
            const int64_t to = ((h / group * p->room + p->t0 + t) * group + h % group) * d;
            if (rope_here) rope_head_f32(q + h * d, half, cos_t, sin_t);
            norm_factors_f32(q + h * d, d, NULL, p->compute, bytes_at(p->q_heads, to, factor));
        }
    }
}

/* Keys and values through their sites, and from [T, kv_heads, head_dim] to factors by head. */
static void place_keys_values(const block_pass *p) {
    const site keys = sites_keys(p->sites, p->cfg, p->layer);
    const site values = sites_values(p->sites, p->cfg, p->layer);
    const int64_t d = p->cfg->head_dim, heads = p->cfg->kv_heads;
    const size_t factor = compute_factor_bytes(p->compute);
    save_rows(p, p->k, keys.n, p->saved->k_in);
    save_rows(p, p->v, values.n, p->saved->v_in);
    block_site_f32(p, &keys, p->k, NULL, &p->saved->keys);
    block_site_f32(p, &values, p->v, NULL, &p->saved->values);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < p->n_tokens; t++) {
        for (int64_t h = 0; h < heads; h++) {
            const int64_t from = (t * heads + h) * d, to = (h * p->room + p->t0 + t) * d;
            const real *k = (real *)p->k + from, *v = (real *)p->v + from;
            norm_factors_f32(k, d, NULL, p->compute, bytes_at(p->k_heads, to, factor));
            norm_factors_f32(v, d, NULL, p->compute, bytes_at(p->v_heads, to, factor));
        }
    }
}

/* Attention of each packed sequence by itself, or of the slice over all of the window so far. */
static void attend(const block_pass *p) {
    const llama_config *c = p->cfg;
    const int64_t group = c->heads / c->kv_heads, d = c->head_dim;
    const size_t factor = compute_factor_bytes(p->compute);
    attention_shape one = {.heads = c->heads,
                           .kv_heads = c->kv_heads,
                           .head_dim = d,
                           .first = p->t0,
                           .room = p->room,
                           .sliding_window = llama_window_of(c, p->layer),
                           .scale = c->score_scale,
                           .compute = p->compute};
    for (int64_t t = 0, end; t < p->n_tokens; t = end) {
        end = t + 1;
        while (end < p->n_tokens && !(p->positions && p->positions[end] == 0)) end++;
        one.tokens = p->t0 + end - t;
        attention_f32(&one, bytes_at(p->q_heads, t * group * d, factor),
                      bytes_at(p->k_heads, t * d, factor), bytes_at(p->v_heads, t * d, factor),
                      (real *)p->attended + t * c->heads * d, p->saved->lse, p->per_thread,
                      p->thread_bytes);
    }
}

/* The o_proj input from the attention output: through its site, to factors. */
static const void *output_factors(const block_pass *p) {
    const site at = sites_output(p->sites, p->cfg, p->layer);
    const int64_t n = p->cfg->heads * p->cfg->head_dim;
    real *out = p->attended;
    save_rows(p, out, n, p->saved->o);
    block_site_f32(p, &at, out, NULL, &p->saved->out);
    if (p->compute != COMPUTE_BF16) return out;
    norm_row_factors_f32(out, p->n_tokens, n, NULL, p->compute, p->input);
    return p->input;
}

const void *block_step_input_f32(const block_pass *p, llama_step step, const real *x) {
    const llama_layer *l = p->weights;
    const bool attention = step == STEP_QKV || step == STEP_O;
    normed_input(p, attention ? NORM_ATTN : NORM_MLP, attention ? l->attn_norm : l->mlp_norm, x);
    if (step == STEP_QKV || step == STEP_GATE_UP) return p->input;
    if (step == STEP_DOWN) return mlp_mid_f32(p);
    const wmat_term qkv[] = {{&l->q, p->q}, {&l->k, p->k}, {&l->v, p->v}};
    wmat_products(qkv, 3, p->compute, p->input, p->n_tokens, GEMM_SET, p->per_thread,
                  p->thread_bytes);
    place_positions(p);
    place_keys_values(p);
    attend(p);
    return output_factors(p);
}

void block_step_add_f32(const block_pass *p, llama_step step, const void *factors, real *x) {
    const wmat *w = step == STEP_O ? &p->weights->o : &p->weights->down;
    const float *bias = step == STEP_O ? p->weights->bo : p->weights->bdown;
    const int64_t hidden = p->cfg->hidden;
    wmat_product(w, p->compute, factors, p->n_tokens, GEMM_ADD, x, p->per_thread, p->thread_bytes);
    for (int64_t t = 0; bias && t < p->n_tokens; t++) {
        norm_add_bias_f32(x + t * hidden, bias, hidden);
    }
}

void block_forward_f32(const block_pass *p, real *x) {
    static const llama_step steps[] = {STEP_O, STEP_DOWN};
    for (int i = 0; i < 2; i++) {
        const void *factors = block_step_input_f32(p, steps[i], x);
        block_step_add_f32(p, steps[i], factors, x);
    }
}
