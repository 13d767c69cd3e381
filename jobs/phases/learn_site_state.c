/* One array holds all that is found: whether it is known, the clips and their nats by layer and
 * place, then R3 by layer and KV head, then the peaks of keys and values. */
#include "jobs/phases/learn_site_state.h"

#include "base/mem.h"
#include "jobs/setup/recipe_asks.h"

found_site *learn_site_found(const learner *l, int64_t layer) {
    return (found_site *)(l->sites + 1) + layer * CLIP_PLACES;
}

int64_t learn_site_r3_entries(const learner *l) {
    const llama_config *c = learner_cfg(l);
    return l->r3_wanted ? c->kv_heads * c->head_dim * c->head_dim : 0;
}

double *learn_site_r3(const learner *l, int64_t layer) {
    return (double *)learn_site_found(l, learner_cfg(l)->layers) + layer * learn_site_r3_entries(l);
}

int64_t learn_site_peak_entries(const learner *l) {
    return l->cache_wanted ? cache_peaks_entries(learner_cfg(l)) : 0;
}

double *learn_site_peaks(const learner *l, int64_t layer) {
    return learn_site_r3(l, learner_cfg(l)->layers) + layer * learn_site_peak_entries(l);
}

static uint32_t places_of(const settings *s) {
    const bool act = s->activations.bits < 16;
    uint32_t places = 0;
    if (act) places |= 1u << CLIP_ATTN | 1u << CLIP_MLP | 1u << CLIP_O;
    if (settings_down_bits(s) < 16) places |= 1u << CLIP_DOWN;
    if (s->kv.bits < 16) places |= 1u << CLIP_KEY | 1u << CLIP_VALUE;
    return places;
}

err learn_sites_init(learner *l) {
    const settings *s = l->q->set;
    const llama_config *cfg = learner_cfg(l);
    l->cache_wanted = quantize_scales_cache(s);
    if (!quantize_judges_sites(s) && !l->cache_wanted) return err_none();
    l->noise_places = places_of(s);
    l->r3_wanted = quantize_learns_r3(s) && !rotation_set_r3_heads(l->q->rotations);
    l->n_sites = 1 + cfg->layers * (CLIP_PLACES * FOUND_SITE + learn_site_r3_entries(l) +
                                    learn_site_peak_entries(l));
    err e = MEM_NEW(&l->sites, l->n_sites, "clips, R3, peaks");
    return e;
}

bool learn_site_may_be_eight(const learner *l, clip_place place, int64_t layer) {
    const settings *s = l->q->set;
    return s->activations.average > 0 && (int)place < INPUT_PLACES &&
           settings_input_bits(s, (input_place)place, layer) < INPUT_EIGHT_BITS;
}

bool learn_sites_done(const learner *l) {
    return !l->sites || l->sites[0] == 1;
}

/* ---- what the capture keeps ---- */

err learn_sites_samples(learner *l, int64_t window) {
    const llama_config *cfg = learner_cfg(l);
    err e = err_none();
    if (learn_sites_done(l)) return e;
    if (l->r3_wanted) e = key_moments_create(cfg, l->range.first, l->range.n, &l->keys);
    if (!e.code && l->cache_wanted)
        e = cache_peaks_create(cfg, l->range.first, l->range.n, &l->peaks);
    if (!e.code)
        e = noise_rows_create(cfg, l->range.first, l->range.n, l->noise_places, window,
                              LEARN_SITE_ROWS, &l->noise);
    return e;
}

uint64_t learn_sites_samples_bytes(const learner *l) {
    const llama_config *cfg = learner_cfg(l);
    if (learn_sites_done(l)) return 0;
    return noise_rows_bytes(cfg, l->range.n, l->noise_places, LEARN_SITE_ROWS) +
           (l->r3_wanted ? key_moments_bytes(cfg, l->range.n) : 0) +
           (l->cache_wanted ? cache_peaks_bytes(cfg, l->range.n) : 0);
}
