/* A table in code: place by place, which rotation, scale, bits and range rule a quantizer has. */
#include "model/sites.h"

static site nothing(int64_t n) {
    return (site){.quant = {.bits = 16}, .n = n, .segment = n, .share = 1, .before_share = 1};
}

/* Quantizer q with the clips of its place; the runtime's cache has none. */
static aquant clipped(aquant q, const llama_sites *s, clip_place place, int64_t layer) {
    if (q.rule != AQUANT_GRID) return q;
    const double *ends = clip_set_get(s->clips, place, layer);
    for (int i = 0; ends && i < 2; i++) q.clip[i] = (float)ends[i];
    return q;
}

_Static_assert((int)INPUT_ATTN == CLIP_ATTN && (int)INPUT_MLP == CLIP_MLP &&
                   (int)INPUT_O == CLIP_O && (int)INPUT_DOWN == CLIP_DOWN,
               "inputs come first among the places of clips");

/* The quantizer of an input, with its clips and bits. */
static aquant input_quant(const llama_sites *s, input_place place, int64_t layer) {
    aquant q = clipped(s->act, s, (clip_place)place, layer);
    if (place == INPUT_DOWN && s->down_bits) q.bits = s->down_bits;
    q.bits = input_bits_of(&s->eight, place, layer, q.bits);
    return q;
}

/* R2 of a layer for a row of `segments` heads. */
static void put_r2(site *p, const llama_sites *s, const llama_config *cfg, int64_t layer,
                   int64_t segments) {
    p->segment = cfg->head_dim;
    p->share = segments;
    if (!s->R2) return;
    p->R = s->R2 + (s->r2_per_head ? layer * cfg->kv_heads : layer);
    if (s->r2_per_head) p->share = segments / cfg->kv_heads;
}

site sites_input(const llama_sites *s, const llama_config *cfg, int64_t layer, int which) {
    site p = nothing(cfg->hidden);
    if (!s) return p;
    p.quant = input_quant(s, which == NORM_ATTN ? INPUT_ATTN : INPUT_MLP, layer);
    p.include_zero = true;
    p.R = &s->R1;
    p.after = scale_set_get(s->scales, which == NORM_ATTN ? SCALE_ATTN : SCALE_MLP, layer);
    return p;
}

site sites_keys(const llama_sites *s, const llama_config *cfg, int64_t layer) {
    site p = nothing(cfg->kv_heads * cfg->head_dim);
    if (!s) return p;
    p.quant = clipped(s->kv, s, CLIP_KEY, layer);
    if (s->cache_scales) p.quant.cache_scale = (float)s->cache_scales[2 * layer];
    p.include_zero = p.quant.rule == AQUANT_GRID;
    p.range_per_segment = true;
    p.segment = cfg->head_dim;
    p.share = s->R3_heads ? 1 : cfg->kv_heads;
    p.R = s->R3_heads ? s->R3_heads + layer * cfg->kv_heads : &s->R3;
    p.then = s->cache_rotation;
    p.before = scale_set_get(s->scales, SCALE_QK, layer);
    return p;
}

site sites_values(const llama_sites *s, const llama_config *cfg, int64_t layer) {
    site p = nothing(cfg->kv_heads * cfg->head_dim);
    if (!s) return p;
    p.quant = clipped(s->kv, s, CLIP_VALUE, layer);
    if (s->cache_scales) p.quant.cache_scale = (float)s->cache_scales[2 * layer + 1];
    p.range_per_segment = true;
    put_r2(&p, s, cfg, layer, cfg->kv_heads);
    p.then = s->cache_rotation;
    p.before = scale_set_get(s->scales, SCALE_VO, layer);
    return p;
}

site sites_output(const llama_sites *s, const llama_config *cfg, int64_t layer) {
    site p = nothing(cfg->heads * cfg->head_dim);
    if (!s) return p;
    p.quant = input_quant(s, INPUT_O, layer);
    p.range_per_segment = s->o_per_head && !s->act.group;
    p.include_zero = !p.range_per_segment;
    put_r2(&p, s, cfg, layer, cfg->heads);
    p.before = scale_set_get(s->scales, SCALE_VO, layer);
    p.before_share = cfg->heads / cfg->kv_heads;
    return p;
}

site sites_down(const llama_sites *s, const llama_config *cfg, int64_t layer) {
    site p = nothing(cfg->intermediate);
    if (!s) return p;
    p.quant = input_quant(s, INPUT_DOWN, layer);
    p.include_zero = true;
    p.rotated = s->r4_fused;
    p.R = &s->R4;
    if (!s->r4_fused) p.before = scale_set_get(s->scales, SCALE_UD, layer);
    return p;
}
