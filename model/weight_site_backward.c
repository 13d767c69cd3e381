/* The gradient of a rotation is a product of the error of the weights with the gradient of the
 * linear's output, and that of scales takes the gradient of the weights themselves: both are made
 * of what the hooks of a backward pass are shown, one linear after the other. */
#include "base/gemm.h"
#include "model/sites.h"
#include "model/weight_site_internal.h"
#include "model/wmat_backward.h"

#include <string.h>

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

/* w->x = rows x through a site; gain: that of the norm before it, where it stays in the norm, so
 * that the site stands behind it (site_behind_gain). */
static void through_site(const weight_site *w, const site *s, const float *x, const float *gain,
                         int64_t n_tokens) {
    const int64_t wide = weight_site_widest(w->from->cfg);
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
    memset(w->one, 0, (size_t)weight_site_widest(w->from->cfg) * sizeof *w->one);
    return w->one;
}

/* Outputs of v, which are over their scales before R2 mixes them. Other rows with scales, of q, k
 * and up, are mixed with none: their steps go with them, and their scales do nothing to their
 * rounding. */
static void add_mixed_rows(weight_site *w, int64_t layer, const weight_terms *t, double *one) {
    const llama_config *c = w->from->cfg;
    const int64_t d = c->head_dim;
    for (int64_t h = 0; h < c->kv_heads; h++) {
        weight_site_dense(w, weight_site_r2(w->sites, c, layer, h), d, w->dense);
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
        if (n == 2) weight_site_plain(w, s, i, k, free_one);
        got[n] = weight_site_to_rounded(w, s, layer, k, n == 0 ? SCALE_OVER : SCALE_TIMES, free_one,
                                        next[n], rows, cols);
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
    for (int n = 0; n < 4; n++)
        weight_site_rotate_inputs(s, w->from->cfg, layer, k, all[n], rows, GEMM_T);
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
        through_site(w, &s, x, weight_site_gain_left(w, layer, SCALE_MLP), n_tokens);
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
        through_site(w, &s, x, weight_site_gain_left(w, layer, SCALE_ATTN), n_tokens);
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
        weight_site_dense(w, weight_site_r2(w->sites, c, layer, h), d, R);
        add_rotated(w, w->M2 + h * d * d, R, d,
                    (char *)grads->R2 + (w->sites->r2_per_head ? (size_t)(h * d * d) * real : 0));
    }
    memset(w->M1, 0, (size_t)(n * n) * sizeof *w->M1);
    memset(w->M2, 0, (size_t)(c->kv_heads * d * d) * sizeof *w->M2);
    if (w->shape.scales) add_scale_sums(w, grads);
}
