/* Pairs that nothing quantized profits from have left the recipe before (jobs/setup/setup.h). The
 * kinds that remain stand one after the other in one array. */
#include "jobs/phases/learn_scale_state.h"

#include "base/mem.h"
#include "jobs/setup/recipe_asks.h"
#include "jobs/setup/setup.h"
#include "model/sites.h"

#include <stdlib.h>
#include <string.h>

/* The word of scale.pairs that each kind goes by. */
static const uint32_t pairs[SCALE_KINDS] = {[SCALE_ATTN] = PAIR_NORM,
                                            [SCALE_MLP] = PAIR_NORM,
                                            [SCALE_VO] = PAIR_VO,
                                            [SCALE_QK] = PAIR_QK,
                                            [SCALE_UD] = PAIR_UD};

bool learn_scale_wanted(const learner *l, scale_kind kind) {
    return l->scale_kinds >> kind & 1u;
}

bool learn_scale_is_norm(scale_kind kind) {
    return kind == SCALE_ATTN || kind == SCALE_MLP;
}

int64_t learn_scale_length(const learner *l, scale_kind kind) {
    const scale_sizes sizes = llama_scale_sizes(learner_cfg(l));
    return scale_sizes_length(&sizes, kind);
}

/* Where the scales of a kind and layer stand in l->scales. */
double *learn_scale_at(const learner *l, scale_kind kind, int64_t layer) {
    int64_t at = 1;
    for (int k = 0; k < (int)kind; k++)
        if (learn_scale_wanted(l, (scale_kind)k))
            at += learner_cfg(l)->layers * learn_scale_length(l, (scale_kind)k);
    return l->scales + at + layer * learn_scale_length(l, kind);
}

bool learn_scales_smooth(const learner *l) {
    return l->q->set->scale.start == SCALES_SMOOTH;
}

err learn_scale_sites(const learner *l, llama_sites *sites) {
    const rotation **r2;
    err e = setup_sites(l->q->set, learner_cfg(l), l->q->rotations, HOLD_R1_R2, sites, &r2);
    free(r2);
    return e;
}

uint32_t learn_scale_kinds(const settings *s) {
    uint32_t kinds = 0;
    if (s->scale.start == SCALES_ONES && !learn_scales_any(s)) return 0;
    for (int k = 0; k < SCALE_KINDS; k++)
        if (s->scale.pairs & pairs[k]) kinds |= 1u << k;
    return kinds;
}

uint64_t learn_scales_bytes(const settings *s, const llama_config *cfg) {
    const scale_sizes sizes = llama_scale_sizes(cfg);
    return (uint64_t)(cfg->layers * scale_sizes_at(&sizes, learn_scale_kinds(s), SCALE_KINDS)) *
           sizeof(double);
}

uint64_t learn_scales_set_bytes(const settings *s, const llama_config *cfg) {
    enum { IN_SET = 3 }; /* themselves and what divides by them, each in fp64 and fp32 */
    return IN_SET * learn_scales_bytes(s, cfg);
}

err learn_scales_init(learner *l) {
    const settings *s = l->q->set;
    const scale_sizes sizes = llama_scale_sizes(learner_cfg(l));
    const bool ones = s->scale.start == SCALES_ONES;
    l->scale_kinds = learn_scale_kinds(s);
    l->n_scales = !ones || l->scale_kinds
                      ? 1 + sizes.layers * scale_sizes_at(&sizes, l->scale_kinds, SCALE_KINDS)
                      : 0;
    err e = MEM_NEW(&l->scales, l->n_scales, "scales");
    for (int64_t i = 0; ones && !e.code && i < l->n_scales; i++) l->scales[i] = 1;
    return e;
}

void learn_scales_by_layer(const learner *l, double *v, bool load) {
    const scale_sizes sizes = llama_scale_sizes(learner_cfg(l));
    const int64_t each = scale_sizes_at(&sizes, l->scale_kinds, SCALE_KINDS);
    for (int k = 0; k < SCALE_KINDS; k++) {
        if (!learn_scale_wanted(l, (scale_kind)k)) continue;
        const size_t bytes = (size_t)learn_scale_length(l, (scale_kind)k) * sizeof *v;
        for (int64_t i = 0; i < sizes.layers; i++) {
            double *at = v + i * each + scale_sizes_at(&sizes, l->scale_kinds, k),
                   *own = learn_scale_at(l, (scale_kind)k, i);
            memcpy(load ? own : at, load ? at : own, bytes);
        }
    }
}

bool learn_scales_done(const learner *l) {
    return !l->scale_kinds || l->scales[0] == 1;
}

bool learn_scales_need_gradients(const learner *l) {
    return learn_scale_wanted(l, SCALE_ATTN) && !learn_scales_done(l) && !learn_scales_smooth(l);
}

static scale_places places_of(const learner *l) {
    llama_sites sites;
    scale_places p;
    for (int k = 0; k < SCALE_KINDS; k++) p.of[k] = HOOK_PLACES;
    if (learn_scales_done(l) || learn_scales_smooth(l) || learn_scale_sites(l, &sites).code)
        return p;
    if (learn_scale_wanted(l, SCALE_UD)) p.of[SCALE_UD] = HOOK_DOWN_IN;
    if (learn_scale_wanted(l, SCALE_QK)) p.of[SCALE_QK] = HOOK_KEY;
    if (learn_scale_wanted(l, SCALE_VO))
        p.of[SCALE_VO] = aquant_on(&sites.act) ? HOOK_O_IN : HOOK_VALUE;
    return p;
}

err learn_scales_moments(learner *l) {
    const scale_places p = places_of(l);
    bool any = false;
    if (learn_scales_smooth(l) && !learn_scales_done(l))
        return scale_peaks_create(learner_cfg(l), l->range.first, l->range.n, l->scale_kinds,
                                  &l->scale_peaks);
    for (int k = 0; k < SCALE_KINDS; k++) any |= p.of[k] != HOOK_PLACES;
    if (!any) return err_none();
    return scale_moments_create(learner_cfg(l), l->range.first, l->range.n, &p, &l->scale_moments);
}

uint64_t learn_scales_moments_bytes(const learner *l) {
    const scale_places p = places_of(l);
    if (learn_scales_smooth(l))
        return scale_peaks_bytes(learner_cfg(l), l->range.n, l->scale_kinds);
    return scale_moments_bytes(learner_cfg(l), l->range.n, &p);
}
