/* Stage and scratch memory, and the loop over layers; the arithmetic of a block is in
 * block_real.c. */
#include "model/forward.h"

#include "base/gemm.h"
#include "base/mem.h"
#include "base/size.h"
#include "model/backward_internal.h"
#include "model/block_internal.h"
#include "model/rope.h"
#include "model/sites.h"

#include <inttypes.h>
#include <string.h>

llama_sites llama_sites_none(void) {
    const aquant off = {.bits = 16, .clip = {1, 1}};
    return (llama_sites){.act = off, .kv = off};
}

size_t llama_real_bytes(compute_type compute) {
    return compute_sum_bytes(compute);
}

/* The stage. */

err llama_stage_init(llama_stage *s, const llama_config *cfg, int64_t first_layer,
                     int64_t n_layers) {
    *s = (llama_stage){.cfg = cfg, .first_layer = first_layer};
    err e = MEM_NEW(&s->layers, n_layers, "layers of a stage"); /* zero: WMAT_NONE, NULL */
    if (!e.code) s->n_layers = n_layers;
    return e;
}

wmat *llama_layer_linear(llama_layer *l, int linear) {
    wmat *const all[LLAMA_LINEARS] = {&l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down};
    return all[linear];
}

float **llama_layer_vector(llama_layer *l, int vector) {
    float **const all[LLAMA_VECTORS] = {&l->attn_norm, &l->mlp_norm, &l->bq,    &l->bk,
                                        &l->bv,        &l->bo,       &l->bgate, &l->bup,
                                        &l->bdown,     &l->q_norm,   &l->k_norm};
    return all[vector];
}

float **llama_layer_bias(llama_layer *l, int linear) {
    return llama_layer_vector(l, LLAMA_NORMS + linear);
}

err llama_stage_prepare(llama_stage *s, compute_type compute) {
    err e = wmat_prepare(&s->embed, compute);
    if (!e.code) e = wmat_prepare(&s->head, compute);
    for (int64_t i = 0; !e.code && i < s->n_layers; i++) {
        for (int j = 0; !e.code && j < LLAMA_LINEARS; j++)
            e = wmat_prepare(llama_layer_linear(&s->layers[i], j), compute);
    }
    return e;
}

void llama_stage_clear(llama_stage *s) {
    for (int64_t i = 0; i < s->n_layers; i++) {
        llama_layer *l = &s->layers[i];
        for (int j = 0; j < LLAMA_LINEARS; j++) wmat_clear(llama_layer_linear(l, j));
        for (int j = 0; j < LLAMA_VECTORS; j++) mem_free(*llama_layer_vector(l, j));
    }
    mem_free(s->layers);
    wmat_clear(&s->embed);
    wmat_clear(&s->head);
    mem_free(s->final_norm);
    *s = (llama_stage){0};
}

/* The scratch. */

/* Cuts a block, or, with base NULL, measures it. */
typedef struct cutter {
    char *base;
    uint64_t used;
} cutter;

static void *cut(cutter *c, uint64_t bytes) {
    void *p = c->base ? c->base + c->used : NULL;
    c->used += (bytes + 63) / 64 * 64;
    return p;
}

static uint64_t row_bytes_of_thread(const llama_scratch *s) {
    const llama_config *c = &s->cfg;
    int64_t widest = size_max(size_max(c->hidden, c->intermediate), c->heads * c->head_dim);
    return (uint64_t)widest * compute_sum_bytes(s->compute);
}

static uint64_t thread_bytes_of(const llama_scratch *s) {
    const attention_shape shape = {.tokens = s->max_tokens,
                                   .heads = s->cfg.heads,
                                   .kv_heads = s->cfg.kv_heads,
                                   .head_dim = s->cfg.head_dim,
                                   .compute = s->compute};
    uint64_t tiles = 2u * WMAT_TILE_ROWS * WMAT_TILE_COLUMNS * compute_sum_bytes(s->compute);
    uint64_t rows = row_bytes_of_thread(s), attention = attention_thread_bytes(&shape);
    uint64_t work = wmat_tile_scratch_bytes(s->compute) + (tiles > rows ? tiles : rows);
    return ((work > attention ? work : attention) + 4095) / 4096 * 4096;
}

static void lay_out_sites(llama_scratch *s, cutter *c) {
    const llama_config *g = &s->cfg;
    const uint64_t real = compute_sum_bytes(s->compute), t = (uint64_t)s->max_tokens;
    const bool same = s->compute != COMPUTE_BF16; /* reals are factors */
    s->wide_input = s->input;
    s->wide_mid = s->mid;
    if (!same && s->input_sites) s->wide_input = cut(c, t * (uint64_t)g->hidden * real);
    if (!same && s->down_site) s->wide_mid = cut(c, t * (uint64_t)g->intermediate * real);
    if (!s->input_sites && !s->down_site) return;
    const int64_t rows = size_min(s->max_tokens, WMAT_TILE_ROWS);
    s->site.panel_room = rows * (int64_t)(row_bytes_of_thread(s) / real);
    s->site.panel = cut(c, (uint64_t)s->site.panel_room * real);
}

static uint64_t lay_out(llama_scratch *s, char *base) {
    const llama_config *g = &s->cfg;
    const uint64_t real = compute_sum_bytes(s->compute), factor = compute_factor_bytes(s->compute);
    const uint64_t t = (uint64_t)s->max_tokens, d = (uint64_t)g->head_dim;
    const uint64_t q = t * (uint64_t)g->heads * d, kv = t * (uint64_t)g->kv_heads * d;
    const uint64_t chunks = t * (uint64_t)size_ceil_div(g->vocab, HEAD_CHUNK);
    const uint64_t widest = (uint64_t)size_max(g->hidden, g->heads * g->head_dim);
    cutter c = {.base = base};
    s->cos_t = cut(&c, t * d / 2 * real);
    s->sin_t = cut(&c, t * d / 2 * real);
    s->input = cut(&c, t * widest * factor);
    s->q = cut(&c, q * real);
    s->k = cut(&c, kv * real);
    s->v = cut(&c, kv * real);
    s->q_heads = cut(&c, q * factor);
    s->k_heads = cut(&c, kv * factor);
    s->v_heads = cut(&c, kv * factor);
    s->mid = cut(&c, t * (uint64_t)g->intermediate * factor);
    s->nll_max = cut(&c, chunks * sizeof(double));
    s->nll_sum = cut(&c, chunks * sizeof(double));
    s->target = cut(&c, t * sizeof(double));
    s->nll = cut(&c, t * sizeof(double));
    lay_out_sites(s, &c);
    s->thread_bytes = thread_bytes_of(s);
    s->per_thread = cut(&c, s->thread_bytes * (uint64_t)s->threads);
    s->site.threads = s->per_thread;
    s->site.thread_bytes = s->thread_bytes;
    return c.used;
}

static llama_scratch scratch_shape(const llama_config *cfg, const llama_sites *sites,
                                   compute_type compute, int64_t max_tokens, int threads) {
    llama_scratch s = {
        .cfg = *cfg, .compute = compute, .max_tokens = max_tokens, .threads = threads};
    const site input = sites_input(sites, cfg, 0, NORM_ATTN), keys = sites_keys(sites, cfg, 0);
    const site down = sites_down(sites, cfg, 0);
    s.input_sites = site_acts(&input) || site_acts(&keys);
    s.down_site = site_acts(&down);
    return s;
}

uint64_t llama_scratch_bytes(const llama_config *cfg, const llama_sites *sites,
                             compute_type compute, int64_t max_tokens, int threads) {
    llama_scratch s = scratch_shape(cfg, sites, compute, max_tokens, threads);
    return lay_out(&s, NULL);
}

err llama_scratch_create(const llama_config *cfg, const llama_sites *sites, compute_type compute,
                         int64_t max_tokens, llama_scratch **out) {
    *out = NULL;
    if (max_tokens < 1 || max_tokens > INT32_MAX) {
        return err_make(ERR_BUG, "forward pass", NULL, "window of %" PRId64 " tokens", max_tokens);
    }
    void *block;
    llama_scratch *s;
    err e = MEM_NEW(&s, 1, "forward pass");
    if (e.code) return e;
    *s = scratch_shape(cfg, sites, compute, max_tokens, gemm_threads());
    e = mem_alloc((int64_t)lay_out(s, NULL), 1, "buffers of the forward pass", &block);
    s->block = e.code ? NULL : block;
    if (!e.code) {
        lay_out(s, block);
        e = rope_tables(&s->cfg, s->compute, s->max_tokens, s->cos_t, s->sin_t);
    }
    if (e.code) llama_scratch_destroy(&s);
    *out = s;
    return e;
}

void llama_scratch_destroy(llama_scratch **s) {
    if (!*s) return;
    mem_free((*s)->block);
    mem_free(*s);
    *s = NULL;
}

void *scratch_tile_of_thread(const llama_scratch *s) {
    return (char *)s->per_thread + s->thread_bytes * (uint64_t)gemm_thread();
}

void *scratch_of_thread(const llama_scratch *s) {
    return (char *)scratch_tile_of_thread(s) + wmat_tile_scratch_bytes(s->compute);
}

/* The pass. */

static err check_id(int64_t vocab, int32_t id, int64_t t) {
    if (id >= 0 && id < vocab) return err_none();
    return err_make(ERR_INPUT, "token ids", "use the tokenizer of this model",
                    "id %" PRId32 " at position %" PRId64 " is outside the vocabulary of %" PRId64,
                    id, t, vocab);
}

err llama_embed(const llama_stage *s, compute_type compute, const int32_t *ids, int64_t n_tokens,
                void *x) {
    const int64_t n = s->cfg->hidden;
    const double scale = s->cfg->embed_scale > 0 ? s->cfg->embed_scale : 1;
    if (s->embed.kind == WMAT_NONE) return err_make(ERR_BUG, "embedding", NULL, "not on this rank");
    for (int64_t t = 0; t < n_tokens; t++) {
        err e = check_id(s->embed.rows, ids[t], t);
        if (e.code) return e;
        if (compute == COMPUTE_F64)
            wmat_expand_f64(&s->embed, ids[t], 1, 0, n, (double *)x + t * n, n);
        else
            wmat_expand_f32(&s->embed, ids[t], 1, 0, n, (float *)x + t * n, n);
    }
    if (scale == 1) return err_none();
    for (int64_t i = 0; i < n_tokens * n; i++) {
        if (compute == COMPUTE_F64)
            ((double *)x)[i] *= scale;
        else
            ((float *)x)[i] *= (float)scale;
    }
    return err_none();
}

static err check_room(const llama_scratch *scratch, int64_t n_tokens) {
    if (n_tokens < 1 || n_tokens > scratch->max_tokens) {
        return err_make(ERR_BUG, "forward pass", NULL, "%" PRId64 " tokens in buffers for %" PRId64,
                        n_tokens, scratch->max_tokens);
    }
    if (gemm_threads() > scratch->threads) {
        return err_make(ERR_BUG, "forward pass", NULL, "%d threads in buffers for %d",
                        gemm_threads(), scratch->threads);
    }
    return err_none();
}

static err check_sites(const llama_config *cfg, const llama_sites *sites,
                       const llama_scratch *scratch) {
    const llama_scratch asked = scratch_shape(cfg, sites, scratch->compute, 1, 1);
    if ((!asked.input_sites || scratch->input_sites) && (!asked.down_site || scratch->down_site))
        return err_none();
    return err_make(ERR_BUG, "forward pass", NULL, "buffers were made for fewer sites");
}

void llama_scratch_pack(llama_scratch *s, const int32_t *positions) {
    s->positions = positions;
}

/* The pass of one layer that saves nothing. */
static block_pass pass_of(const llama_stage *stage, int64_t layer, const llama_sites *sites,
                          int64_t n_tokens, const llama_scratch *s) {
    static const llama_saved nothing;
    return (block_pass){.cfg = &s->cfg,
                        .weights = &stage->layers[layer - stage->first_layer],
                        .layer = layer,
                        .sites = sites,
                        .compute = s->compute,
                        .n_tokens = n_tokens,
                        .room = n_tokens,
                        .positions = s->positions,
                        .cos_t = s->cos_t,
                        .sin_t = s->sin_t,
                        .input = s->input,
                        .wide_input = s->wide_input,
                        .q = s->q,
                        .k = s->k,
                        .v = s->v,
                        .attended = s->q,
                        .q_heads = s->q_heads,
                        .k_heads = s->k_heads,
                        .v_heads = s->v_heads,
                        .mid = s->mid,
                        .wide_mid = s->wide_mid,
                        .per_thread = s->per_thread,
                        .thread_bytes = s->thread_bytes,
                        .site = s->site,
                        .saved = &nothing};
}

err llama_layers_forward(const llama_stage *s, const llama_sites *sites, int64_t n_tokens, void *x,
                         llama_scratch *scratch) {
    err e = check_room(scratch, n_tokens);
    if (!e.code) e = check_sites(s->cfg, sites, scratch);
    for (int64_t i = 0; !e.code && i < s->n_layers; i++) {
        const block_pass p = pass_of(s, s->first_layer + i, sites, n_tokens, scratch);
        if (scratch->compute == COMPUTE_F64)
            block_forward_f64(&p, x);
        else
            block_forward_f32(&p, x);
    }
    return e;
}

int64_t llama_step_width(const llama_config *cfg, llama_step step) {
    if (step == STEP_O) return cfg->heads * cfg->head_dim;
    return step == STEP_DOWN ? cfg->intermediate : cfg->hidden;
}

err llama_step_input(const llama_stage *s, int64_t layer, const llama_sites *sites, llama_step step,
                     int64_t n_tokens, const void *x, llama_scratch *scratch, void *to) {
    const block_pass p = pass_of(s, layer, sites, n_tokens, scratch);
    const size_t bytes = (size_t)(n_tokens * llama_step_width(s->cfg, step)) *
                         compute_factor_bytes(scratch->compute);
    err e = check_room(scratch, n_tokens);
    if (!e.code) e = check_sites(s->cfg, sites, scratch);
    if (e.code) return e;
    memcpy(to,
           scratch->compute == COMPUTE_F64 ? block_step_input_f64(&p, step, x)
                                           : block_step_input_f32(&p, step, x),
           bytes);
    return e;
}

err llama_step_add(const llama_stage *s, int64_t layer, llama_step step, int64_t n_tokens,
                   const void *factors, void *x, llama_scratch *scratch) {
    const block_pass p = pass_of(s, layer, NULL, n_tokens, scratch);
    err e = check_room(scratch, n_tokens);
    if (e.code) return e;
    if (scratch->compute == COMPUTE_F64)
        block_step_add_f64(&p, step, factors, x);
    else
        block_step_add_f32(&p, step, factors, x);
    return e;
}

static err find_head(const llama_stage *s, const wmat **head) {
    *head = s->head_is_embed ? &s->embed : &s->head;
    if ((*head)->kind != WMAT_NONE && s->final_norm) return err_none();
    return err_make(ERR_BUG, "head", NULL, "not on this rank");
}

err llama_head_nll(const llama_stage *s, int64_t n_tokens, const void *x, const int32_t *ids,
                   llama_scratch *scratch, double *nll_sum, double *nll) {
    const wmat *head;
    *nll_sum = 0;
    err e = find_head(s, &head);
    if (!e.code) e = check_room(scratch, n_tokens);
    for (int64_t t = 0; !e.code && t < n_tokens; t++) e = check_id(head->rows, ids[t], t);
    if (e.code || n_tokens < 2) return e;
    double *each = nll ? nll : scratch->nll;
    if (scratch->compute == COMPUTE_F64) {
        loss_nll_f64(head, s->final_norm, n_tokens, x, ids, scratch, each);
    } else {
        loss_nll_f32(head, s->final_norm, n_tokens, x, ids, scratch, each);
    }
    for (int64_t t = 0; t < n_tokens - 1; t++) *nll_sum += each[t];
    return err_none();
}

err llama_head_logits(const llama_stage *s, int64_t n_rows, const void *x, llama_scratch *scratch,
                      double *logits) {
    const wmat *head;
    err e = find_head(s, &head);
    if (!e.code) e = check_room(scratch, n_rows);
    if (e.code) return e;
    if (scratch->compute == COMPUTE_F64) {
        loss_logits_f64(head, s->final_norm, n_rows, x, scratch, logits);
    } else {
        loss_logits_f32(head, s->final_norm, n_rows, x, scratch, logits);
    }
    return err_none();
}
