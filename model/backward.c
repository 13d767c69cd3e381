/* Buffers of saved activations and of the passes are laid out in one allocation each; the passes,
 * forward with saving and the chain rule backward, are in block_real.c and block_backward_real.c.
 */
#include "model/backward.h"

#include "base/gemm.h"
#include "base/mem.h"
#include "base/size.h"
#include "model/backward_internal.h"
#include "model/block_internal.h"
#include "model/norm.h"
#include "model/rope.h"
#include "model/sites.h"
#include "model/wmat_backward.h"

#include <inttypes.h>
#include <string.h>

/* Cuts a block, or, with base NULL, measures it. */
typedef struct cutter {
    char *base;
    uint64_t used;
} cutter;

static void *cut(cutter *c, int64_t count, uint64_t size) {
    void *p = c->base ? c->base + c->used : NULL;
    c->used += ((uint64_t)count * size + 63) / 64 * 64;
    return p;
}

/* Which sites act, and what is kept for them. */

enum { ON_INPUT = 1, ON_KEYS = 2, ON_VALUES = 4, ON_OUT = 8, ON_DOWN = 16 };

static unsigned sites_on(const llama_config *cfg, const llama_sites *sites) {
    const site input = sites_input(sites, cfg, 0, NORM_ATTN), keys = sites_keys(sites, cfg, 0);
    const site values = sites_values(sites, cfg, 0), out = sites_output(sites, cfg, 0);
    const site down = sites_down(sites, cfg, 0);
    return (aquant_on(&input.quant) ? ON_INPUT : 0u) | (aquant_on(&keys.quant) ? ON_KEYS : 0u) |
           (aquant_on(&values.quant) ? ON_VALUES : 0u) | (aquant_on(&out.quant) ? ON_OUT : 0u) |
           (aquant_on(&down.quant) ? ON_DOWN : 0u);
}

/* learned: its rotation, or scales after it; scaled: its scales. */
static site_saved cut_saved(cutter *c, const site *s, const llama_pass_shape *shape, bool learned,
                            bool scaled) {
    const uint64_t factor = compute_factor_bytes(shape->compute);
    const int64_t rows = shape->window;
    site_saved saved = {0};
    if (!aquant_on(&s->quant)) return saved;
    const bool range = shape->through || scaled;
    if (learned || (range && site_cuts_segments(s))) saved.error = cut(c, rows * s->n, factor);
    if (!range) return saved;
    saved.moved = cut(c, rows * s->n, factor);
    saved.ends = cut(c, rows * site_ranges(s), site_ends_bytes(shape->compute));
    return saved;
}

/* By the shape alone: plans lay out before there are scales. */
static bool learns_scales(const llama_pass_shape *shape, scale_kind kind) {
    return shape->scales >> kind & 1u;
}

/* Activations saved by a forward. */

static uint64_t lay_out_saved(llama_saved *s, const llama_sites *sites, char *base) {
    const llama_config *g = &s->cfg;
    const llama_pass_shape *shape = &s->shape;
    const uint64_t real = compute_sum_bytes(shape->compute);
    const uint64_t factor = compute_factor_bytes(shape->compute);
    const int64_t w = shape->window, d = g->head_dim;
    const site input = sites_input(sites, g, 0, NORM_ATTN), keys = sites_keys(sites, g, 0);
    const site values = sites_values(sites, g, 0), out = sites_output(sites, g, 0);
    const site down = sites_down(sites, g, 0);
    cutter c = {.base = base};
    for (int i = 0; i < NORMS; i++) {
        s->y[i] = cut(&c, w * g->hidden, factor);
        s->scale[i] = cut(&c, w, real);
        const bool scaled = learns_scales(shape, i == NORM_ATTN ? SCALE_ATTN : SCALE_MLP);
        s->input[i] = cut_saved(&c, &input, shape, shape->r1 || scaled, scaled);
    }
    if (g->qk_norm) {
        s->q_norm.y = cut(&c, w * g->heads * d, factor);
        s->q_norm.scale = cut(&c, w * g->heads, real);
        s->k_norm.y = cut(&c, w * g->kv_heads * d, factor);
        s->k_norm.scale = cut(&c, w * g->kv_heads, real);
    }
    s->q = cut(&c, w * g->heads * d, factor);
    s->k = cut(&c, w * g->kv_heads * d, factor);
    s->v = cut(&c, w * g->kv_heads * d, factor);
    s->lse = cut(&c, w * g->heads, real);
    s->o = cut(&c, w * g->heads * d, factor);
    const bool qk = learns_scales(shape, SCALE_QK), vo = learns_scales(shape, SCALE_VO);
    s->keys = cut_saved(&c, &keys, shape, false, qk);
    if (aquant_on(&keys.quant) && qk) s->k_in = cut(&c, w * keys.n, factor);
    s->values = cut_saved(&c, &values, shape, shape->r2, vo);
    if (aquant_on(&values.quant) && ((shape->r2 && shape->through) || vo))
        s->v_in = cut(&c, w * values.n, factor);
    s->out = cut_saved(&c, &out, shape, shape->r2, vo);
    s->gate = cut(&c, w * g->intermediate, factor);
    s->up = cut(&c, w * g->intermediate, factor);
    s->down = cut_saved(&c, &down, shape, false, learns_scales(shape, SCALE_UD));
    s->dk = cut(&c, w * g->kv_heads * d, real);
    s->dv = cut(&c, w * g->kv_heads * d, real);
    return c.used;
}

uint64_t llama_saved_bytes(const llama_config *cfg, const llama_sites *sites,
                           const llama_pass_shape *shape) {
    llama_saved s = {.cfg = *cfg, .shape = *shape};
    return lay_out_saved(&s, sites, NULL);
}

static err check_shape(const llama_pass_shape *s) {
    if (s->slice >= 1 && s->slice <= s->window && s->window <= INT32_MAX) return err_none();
    return err_make(ERR_BUG, "backward pass", NULL, "slices of %" PRId64 " tokens of %" PRId64,
                    s->slice, s->window);
}

err llama_saved_create(const llama_config *cfg, const llama_sites *sites,
                       const llama_pass_shape *shape, llama_saved **out) {
    void *block;
    llama_saved *s;
    *out = NULL;
    err e = check_shape(shape);
    if (!e.code) e = MEM_NEW(&s, 1, "saved activations");
    if (e.code) return e;
    *s = (llama_saved){.cfg = *cfg, .shape = *shape, .on = sites_on(cfg, sites)};
    e = mem_alloc((int64_t)lay_out_saved(s, sites, NULL), 1, "saved activations", &block);
    if (!e.code) {
        s->block = block;
        lay_out_saved(s, sites, block);
        *out = s;
    } else {
        mem_free(s);
    }
    return e;
}

void llama_saved_destroy(llama_saved **s) {
    if (!*s) return;
    mem_free((*s)->block);
    mem_free(*s);
    *s = NULL;
}

/* The work. */

static int64_t widest(const llama_config *c) {
    return size_max(size_max(c->hidden, c->intermediate), c->heads * c->head_dim);
}

static uint64_t thread_bytes_of(const llama_work *w, const llama_sites *sites) {
    const llama_config *g = &w->cfg;
    const attention_shape shape = {.tokens = w->shape.window,
                                   .heads = g->heads,
                                   .kv_heads = g->kv_heads,
                                   .head_dim = g->head_dim,
                                   .compute = w->shape.compute};
    const uint64_t real = compute_sum_bytes(w->shape.compute);
    const site values = sites_values(sites, g, 0), out = sites_output(sites, g, 0);
    int64_t reals = 3 * WMAT_TILE_ROWS * WMAT_TILE_COLUMNS;
    reals = size_max(reals, 2 * widest(g));
    uint64_t bytes = wmat_tile_scratch_bytes(w->shape.compute) + (uint64_t)reals * real;
    uint64_t chunk = (uint64_t)size_max(site_chunk_reals(&values), site_chunk_reals(&out)) * real;
    if (w->shape.r2 && chunk > bytes) bytes = chunk;
    uint64_t forward = attention_thread_bytes(&shape),
             backward = attention_backward_thread_bytes(&shape);
    bytes = forward > bytes ? forward : bytes;
    bytes = backward > bytes ? backward : bytes;
    return (bytes + 4095) / 4096 * 4096;
}

/* Ranges of a row, of the site that has most. */
static int64_t most_ranges(const llama_sites *sites, const llama_config *g) {
    const site all[] = {sites_input(sites, g, 0, NORM_ATTN), sites_keys(sites, g, 0),
                        sites_values(sites, g, 0), sites_output(sites, g, 0),
                        sites_down(sites, g, 0)};
    int64_t most = g->heads;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        most = size_max(most, site_ranges(&all[i]));
    return most;
}

static void lay_out_site(llama_work *w, const llama_sites *sites, cutter *c) {
    const llama_config *g = &w->cfg;
    const uint64_t real = compute_sum_bytes(w->shape.compute);
    const int64_t rows = w->shape.slice;
    const site values = sites_values(sites, g, 0), out = sites_output(sites, g, 0);
    w->site.compute = w->shape.compute;
    w->site.threads = w->per_thread;
    w->site.thread_bytes = w->thread_bytes;
    if (!w->on) return;
    w->site.panel_room = size_max(rows * size_max(g->hidden, g->heads * g->head_dim),
                                  size_min(rows, WMAT_TILE_ROWS) * g->intermediate);
    w->site.panel = cut(c, w->site.panel_room, real);
    if (w->shape.compute == COMPUTE_BF16) w->site.half = cut(c, rows * g->hidden, sizeof(bf16));
    if (w->shape.through || w->shape.scales)
        w->site.slopes = cut(c, 2 * rows * most_ranges(sites, g), real);
    int64_t parts = size_max(site_parts_room(&values, rows), site_parts_room(&out, rows));
    if (w->shape.r2) w->site.parts = cut(c, parts, real);
}

int64_t head_parts_of(int64_t rows, int64_t vocab) {
    enum { UNITS = 32, MOST = 16 };
    int64_t parts = size_min(MOST, size_ceil_div(UNITS, size_ceil_div(rows, HEAD_ROWS)));
    return size_min(parts, size_ceil_div(vocab, WMAT_TILE_COLUMNS));
}

static void lay_out_head(llama_work *w, cutter *c) {
    const int64_t rows = w->shape.slice;
    const uint64_t real = compute_sum_bytes(w->shape.compute);
    w->head_parts = head_parts_of(rows, w->cfg.vocab);
    const int64_t units = w->head_parts * rows;
    w->head_sums = cut(c, units * w->cfg.hidden, real);
    w->head_max = cut(c, units, sizeof(double));
    w->head_total = cut(c, units, sizeof(double));
    w->head_hit = cut(c, rows, sizeof(double));
    if (w->shape.top_k > 0) {
        w->kl_hit = cut(c, units, sizeof(double));
        w->row_lse = cut(c, rows, sizeof(double));
        w->row_mass = cut(c, rows, sizeof(double));
    }
    w->row_loss = cut(c, rows, sizeof(double));
    w->next = cut(c, rows, sizeof(int32_t));
}

static uint64_t lay_out_work(llama_work *w, const llama_sites *sites, char *base) {
    const llama_config *g = &w->cfg;
    const compute_type compute = w->shape.compute;
    const uint64_t real = compute_sum_bytes(compute), factor = compute_factor_bytes(compute);
    const int64_t s = w->shape.slice, window = w->shape.window, d = g->head_dim;
    const int64_t q = g->heads * d, kv = g->kv_heads * d, wide = size_max(g->hidden, q);
    const attention_shape all = {.tokens = window};
    cutter c = {.base = base};
    w->thread_bytes = thread_bytes_of(w, sites);
    w->per_thread = cut(&c, w->threads, w->thread_bytes);
    w->cos_t = cut(&c, window * d / 2, real);
    w->sin_t = cut(&c, window * d / 2, real);
    w->wide = cut(&c, s * wide, real);
    w->input = cut(&c, s * wide, factor);
    w->dh = cut(&c, s * g->hidden, real);
    w->q = cut(&c, s * q, real);
    w->k = cut(&c, s * kv, real);
    w->v = cut(&c, s * kv, real);
    w->k_half = cut(&c, s * kv, factor);
    w->v_half = cut(&c, s * kv, factor);
    w->mid = cut(&c, s * g->intermediate, real);
    w->mid_a = cut(&c, s * g->intermediate, factor);
    w->mid_b = cut(&c, s * g->intermediate, factor);
    w->d_out = cut(&c, window * q, factor);
    w->dot = cut(&c, window * g->heads, real);
    w->dq = cut(&c, attention_backward_parts(&all) * s * q, real);
    w->hook_x = cut(&c, s * widest(g), sizeof(float));
    if (compute == COMPUTE_F64) w->hook_g = cut(&c, s * widest(g), sizeof(float));
    lay_out_site(w, sites, &c);
    if (w->shape.head) lay_out_head(w, &c);
    return c.used;
}

static llama_work work_shape(const llama_config *cfg, const llama_sites *sites,
                             const llama_pass_shape *shape, int threads) {
    return (llama_work){
        .cfg = *cfg, .shape = *shape, .threads = threads, .on = sites_on(cfg, sites)};
}

uint64_t llama_work_bytes(const llama_config *cfg, const llama_sites *sites,
                          const llama_pass_shape *shape, int threads) {
    llama_work w = work_shape(cfg, sites, shape, threads);
    const uint64_t bytes = lay_out_work(&w, sites, NULL), n = (uint64_t)cfg->hidden;
    if (!(w.on & ON_INPUT)) return bytes;
    return bytes + (shape->compute == COMPUTE_BF16 ? n * n * sizeof(bf16) : 0) +
           (shape->through ? n * n * compute_sum_bytes(shape->compute) : 0);
}

err llama_work_create(const llama_config *cfg, const llama_sites *sites,
                      const llama_pass_shape *shape, llama_work **out) {
    void *block;
    llama_work *w;
    *out = NULL;
    err e = check_shape(shape);
    if (!e.code) e = MEM_NEW(&w, 1, "backward pass");
    if (e.code) return e;
    *w = work_shape(cfg, sites, shape, gemm_threads());
    e = mem_alloc((int64_t)lay_out_work(w, sites, NULL), 1, "buffers of the backward pass", &block);
    w->block = e.code ? NULL : block;
    if (!e.code) {
        lay_out_work(w, sites, block);
        e = rope_tables(&w->cfg, w->shape.compute, w->shape.window, w->cos_t, w->sin_t);
    }
    if (e.code) llama_work_destroy(&w);
    *out = w;
    return e;
}

void llama_work_destroy(llama_work **w) {
    if (!*w) return;
    mem_free((*w)->block);
    mem_free((*w)->r1_half);
    mem_free((*w)->r1_t);
    mem_free(*w);
    *w = NULL;
}

void *work_tile_of_thread(const llama_work *w) {
    return (char *)w->per_thread + w->thread_bytes * (uint64_t)gemm_thread();
}

void *work_of_thread(const llama_work *w) {
    return (char *)work_tile_of_thread(w) + wmat_tile_scratch_bytes(w->shape.compute);
}

attention_shape work_attention(const llama_work *w, int64_t layer, int64_t t0, int64_t n) {
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

site_work work_site(const llama_work *w, const site *at) {
    site_work s = w->site;
    if (at->R && at->R[0] && at->R[0] == w->r1) {
        s.R_half = w->r1_half;
        s.R_t = w->r1_t;
    }
    return s;
}

/* Copies of R1. */

static err room_for_r1(llama_work *w) {
    const int64_t n = w->cfg.hidden;
    err e = err_none();
    void *p;
    if (w->shape.compute == COMPUTE_BF16 && !w->r1_half) {
        e = MEM_NEW(&w->r1_half, n * n, "R1 in bf16");
    }
    if (!e.code && w->shape.through && !w->r1_t) {
        e = mem_alloc(n * n, compute_sum_bytes(w->shape.compute), "R1 transposed", &p);
        w->r1_t = e.code ? NULL : p;
    }
    return e;
}

/* Rows [row, row + rows) of R to the copies. */
static void copy_r1_rows(llama_work *w, int64_t row, int64_t rows, const double *R) {
    const int64_t n = w->cfg.hidden;
    const bool wide = w->shape.compute == COMPUTE_F64;
#pragma omp parallel for schedule(static)
    for (int64_t j = 0; j < n; j++) {
        for (int64_t i = 0; w->r1_half && i < rows; i++)
            w->r1_half[(row + i) * n + j] = half_to_bf16((float)R[i * n + j]);
        for (int64_t i = 0; w->r1_t && i < rows; i++) {
            if (wide)
                ((double *)w->r1_t)[j * n + row + i] = R[i * n + j];
            else
                ((float *)w->r1_t)[j * n + row + i] = (float)R[i * n + j];
        }
    }
}

err llama_work_put_r1(llama_work *w, const rotation *R1) {
    enum { BAND = 64 };
    const int64_t n = w->cfg.hidden;
    w->r1 = NULL;
    if (!R1 || rotation_get_kind(R1) != ROTATION_DENSE) return err_none();
    if (!(w->on & ON_INPUT) || (w->shape.compute != COMPUTE_BF16 && !w->shape.through))
        return err_none();
    double *band;
    err e = MEM_NEW(&band, BAND * n, "rows of R1");
    if (e.code) return e;
    e = room_for_r1(w);
    for (int64_t row = 0; row < n && !e.code; row += BAND) {
        const int64_t rows = size_min(BAND, n - row);
        rotation_dense_rows(R1, row, rows, band);
        copy_r1_rows(w, row, rows, band);
    }
    if (!e.code) w->r1 = R1;
    mem_free(band);
    return e;
}

/* The passes. */

static err check_call(const llama_stage *stage, int64_t layer, const llama_sites *sites, int64_t t0,
                      int64_t n_tokens, const llama_saved *st, const llama_work *w) {
    const char *what = "backward pass";
    const llama_pass_shape *a = &st->shape, *b = &w->shape;
    if (layer < stage->first_layer || layer >= stage->first_layer + stage->n_layers)
        return err_make(ERR_BUG, what, NULL, "layer %" PRId64 " is not of this stage", layer);
    if (a->compute != b->compute || a->window != b->window || a->slice != b->slice ||
        a->through != b->through || a->r1 != b->r1 || a->r2 != b->r2)
        return err_make(ERR_BUG, what, NULL, "saved activations and buffers of different shapes");
    if (n_tokens < 1 || n_tokens > b->slice || t0 < 0 || t0 > b->window - n_tokens)
        return err_make(ERR_BUG, what, NULL,
                        "tokens %" PRId64 " + %" PRId64 " in slices of %" PRId64 " of %" PRId64, t0,
                        n_tokens, b->slice, b->window);
    if (sites && sites->r4_fused)
        return err_make(ERR_BUG, what, NULL, "R4 is fused: learning takes the original weights");
    if (sites_on(&w->cfg, sites) & ~(st->on & w->on))
        return err_make(ERR_BUG, what, NULL, "buffers were made for fewer sites");
    if (gemm_threads() > w->threads)
        return err_make(ERR_BUG, what, NULL, "%d threads in buffers for %d", gemm_threads(),
                        w->threads);
    return err_none();
}

/* The pass of one layer over a slice, which saves. */
static block_pass pass_of(const llama_stage *stage, int64_t layer, const llama_sites *sites,
                          int64_t t0, int64_t n_tokens, const llama_saved *saved, llama_work *w) {
    return (block_pass){.cfg = &w->cfg,
                        .weights = &stage->layers[layer - stage->first_layer],
                        .layer = layer,
                        .sites = sites,
                        .compute = w->shape.compute,
                        .t0 = t0,
                        .n_tokens = n_tokens,
                        .room = w->shape.window,
                        .cos_t = w->cos_t,
                        .sin_t = w->sin_t,
                        .input = w->input,
                        .wide_input = w->wide,
                        .q = w->q,
                        .k = w->k,
                        .v = w->v,
                        .attended = w->wide,
                        .q_heads = saved->q,
                        .k_heads = saved->k,
                        .v_heads = saved->v,
                        .mid = w->mid_a,
                        .wide_mid = w->mid,
                        .per_thread = w->per_thread,
                        .thread_bytes = w->thread_bytes,
                        .work = w,
                        .saved = saved};
}

err llama_block_forward_save(const llama_stage *stage, int64_t layer, const llama_sites *sites,
                             int64_t t0, int64_t n_tokens, void *x, llama_saved *saved,
                             llama_work *work) {
    err e = check_call(stage, layer, sites, t0, n_tokens, saved, work);
    if (e.code) return e;
    if (t0 != 0 && t0 != saved->forward_tok)
        return err_make(ERR_BUG, "forward pass", NULL,
                        "a slice from token %" PRId64 " after %" PRId64 " tokens", t0,
                        saved->forward_tok);
    const block_pass p = pass_of(stage, layer, sites, t0, n_tokens, saved, work);
    if (work->shape.compute == COMPUTE_F64)
        block_forward_f64(&p, x);
    else
        block_forward_f32(&p, x);
    saved->forward_tok = saved->backward_tok = t0 + n_tokens;
    return e;
}

err llama_block_backward(const llama_stage *stage, int64_t layer, const llama_sites *sites,
                         int64_t t0, int64_t n_tokens, void *dx, llama_saved *saved,
                         const rotation_grads *grads, const llama_hook *hook, llama_work *work) {
    err e = check_call(stage, layer, sites, t0, n_tokens, saved, work);
    if (e.code) return e;
    if (t0 + n_tokens != saved->backward_tok)
        return err_make(ERR_BUG, "backward pass", NULL,
                        "a slice to token %" PRId64 " where %" PRId64 " is next", t0 + n_tokens,
                        saved->backward_tok);
    if (saved->backward_tok == saved->forward_tok) {
        const llama_config *c = &saved->cfg;
        const size_t bytes = (size_t)(saved->shape.window * c->kv_heads * c->head_dim) *
                             compute_sum_bytes(saved->shape.compute);
        memset(saved->dk, 0, bytes);
        memset(saved->dv, 0, bytes);
    }
    const llama_layer *l = &stage->layers[layer - stage->first_layer];
    if (work->shape.compute == COMPUTE_F64)
        e = block_backward_f64(l, layer, sites, t0, n_tokens, dx, saved, grads, hook, work);
    else
        e = block_backward_f32(l, layer, sites, t0, n_tokens, dx, saved, grads, hook, work);
    saved->backward_tok = t0;
    return e;
}
