/* Rows that the capture drew are rotated as the quantizer will see them, and pairs of ends are
 * tried on them. */
#include "jobs/phases/learn_sites.h"

#include "base/gemm.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/size.h"
#include "jobs/phases/learn_capture.h"
#include "jobs/phases/learn_site_state.h"
#include "jobs/phases/learn_start.h"
#include "jobs/run/between_units.h"
#include "jobs/run/noise_table.h"
#include "jobs/run/run_phase.h"
#include "jobs/setup/recipe_asks.h"
#include "jobs/setup/setup.h"
#include "jobs/setup/setup_eight.h"
#include "jobs/setup/setup_form.h"
#include "model/sites.h"
#include "pipeline/learn/eight_choice.h"
#include "pipeline/learn/noise_cost.h"
#include "pipeline/plan/memory_plan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- R3 ---- */

static err find_r3(learner *l) {
    const int64_t d = learner_cfg(l)->head_dim;
    const scale_set *scales = rotation_set_scales(l->q->rotations);
    const bool pca = l->q->set->rotate.r3 == R3_PCA;
    err e = err_none();
    for (int64_t i = 0; l->r3_wanted && i < l->range.n && !e.code; i++) {
        const int64_t layer = l->range.first + i;
        const scale_vector *S = scale_set_get(scales, SCALE_QK, layer);
        for (int64_t h = 0; h < learner_cfg(l)->kv_heads && !e.code; h++) {
            const double *mine = S ? S->s + h * d : NULL;
            double *to = learn_site_r3(l, layer) + h * d * d;
            e = pca ? key_moments_pca(l->keys, layer, h, mine, to)
                    : key_moments_signs(l->keys, layer, h, mine, to);
        }
    }
    e = comm_agree(l->q->c, e, "R3", NULL);
    if (!e.code && l->r3_wanted)
        learn_share_layers(l, learn_site_r3(l, 0), learn_site_r3_entries(l));
    return e;
}

/* Collective. R3 of all layers into the set. */
static err adopt_r3(learner *l) {
    const llama_config *cfg = learner_cfg(l);
    const int64_t d = cfg->head_dim;
    rotation *r = NULL;
    err e = err_none();
    for (int64_t i = 0; l->r3_wanted && i < cfg->layers * cfg->kv_heads && !e.code; i++) {
        e = rotation_create_dense(d, learn_site_r3(l, 0) + i * d * d, &r);
        if (!e.code)
            e = rotation_set_put_r3(l->q->rotations, i / cfg->kv_heads, i % cfg->kv_heads, &r);
        rotation_destroy(&r);
    }
    return comm_agree(l->q->c, e, "taking over R3", NULL);
}

/* ---- the FP8 cache ---- */

/* Collective. Peaks of all layers, on every rank. */
static void share_peaks(const learner *l) {
    const int64_t n = learn_site_peak_entries(l);
    for (int64_t i = 0; n && i < l->range.n; i++)
        memcpy(learn_site_peaks(l, l->range.first + i),
               cache_peaks_get(l->peaks, l->range.first + i), (size_t)n * sizeof(double));
    if (n) learn_share_layers(l, learn_site_peaks(l, 0), n);
}

err learn_sites_scale_cache(learner *l) {
    const llama_config *cfg = learner_cfg(l);
    rotation_set *set = l->q->rotations;
    const scale_set *scales = rotation_set_scales(set);
    const int64_t heads = cfg->kv_heads, d = cfg->head_dim;
    err e = err_none();
    for (int64_t i = 0; l->cache_wanted && i < cfg->layers && !e.code; i++) {
        const scale_vector *qk = scale_set_get(scales, SCALE_QK, i),
                           *vo = scale_set_get(scales, SCALE_VO, i);
        const double *peaks = learn_site_peaks(l, i);
        const double key = cache_scale_of(peaks, qk ? qk->s : NULL, heads, d, false),
                     value = cache_scale_of(peaks + heads * d, vo ? vo->s : NULL, heads, d,
                                            rotation_set_r2_count(set) > 0);
        if (!(isfinite(key) && isfinite(value)))
            e = err_make(ERR_NUMERICS, "scales of the cache", "check the model and the text",
                         "keys or values of a layer are not finite");
        if (!e.code) e = rotation_set_put_cache_scales(set, i, key, value);
    }
    return comm_agree(l->q->c, e, "scales of the cache", NULL);
}

/* ---- the quantizers of this rank's layers ---- */

/* Rotations as they are now, borrowed by `sites`. */
typedef struct current {
    llama_sites sites;
    rotation *R1;
    rotation **R2;       /* owned; [layers, r2_heads], those of this rank */
    const rotation **r2; /* the same as sites take them */
    int64_t n_r2;
} current;

static void current_clear(current *now) {
    rotation_destroy(&now->R1);
    for (int64_t i = 0; now->R2 && i < now->n_r2; i++) rotation_destroy(&now->R2[i]);
    free(now->R2);
    free(now->r2);
}

/* Collective. R1 in fp32 from the rows that are dealt. */
static err take_r1(const learner *l, rotation **out) {
    const int64_t n = learner_cfg(l)->hidden;
    void *band = NULL; /* fp32, in room for doubles */
    if (!l->R1) return err_none();
    err e = mem_alloc(DEALT_ROWS_BAND * n, sizeof(double), "rows of R1", &band);
    if (!e.code) e = rotation_create_dense_f32(n, out);
    e = comm_agree(l->q->c, e, "clips", NULL);
    for (int64_t row = 0; row < n && !e.code; row += DEALT_ROWS_BAND) {
        const int64_t rows = size_min(DEALT_ROWS_BAND, n - row);
        dealt_rows_get_f32(l->R1, row, rows, band);
        rotation_put_rows_f32(*out, row, rows, band);
    }
    mem_free(band);
    return e;
}

static err take_r2(const learner *l, current *now) {
    const llama_config *cfg = learner_cfg(l);
    const int64_t d = cfg->head_dim, heads = l->r2_heads;
    err e = err_none();
    now->n_r2 = cfg->layers * heads;
    now->R2 = calloc((size_t)now->n_r2 + 1, sizeof *now->R2);
    now->r2 = calloc((size_t)now->n_r2 + 1, sizeof *now->r2);
    if (!now->R2 || !now->r2) abort();
    for (int64_t i = l->range.first * heads; i < (l->range.first + l->range.n) * heads && !e.code;
         i++) {
        e = rotation_create_dense(d, l->R2 + i * d * d, &now->R2[i]);
        now->r2[i] = now->R2[i];
    }
    return e;
}

/* Collective. */
static err current_make(const learner *l, current *now) {
    const rotation **unused;
    *now = (current){.R1 = NULL};
    err e =
        setup_sites(l->q->set, learner_cfg(l), l->q->rotations, HOLD_R1_R2, &now->sites, &unused);
    free(unused);
    if (!e.code && l->r2_heads) e = take_r2(l, now);
    e = comm_agree(l->q->c, e, "clips", NULL);
    if (!e.code) e = take_r1(l, &now->R1);
    now->sites.R1 = now->R1;
    now->sites.R2 = l->r2_heads ? now->r2 : NULL;
    now->sites.r2_per_head = l->r2_heads > 1;
    now->sites.scales = rotation_set_scales(l->q->rotations);
    return e;
}

static site site_at(const llama_sites *s, const llama_config *cfg, clip_place place,
                    int64_t layer) {
    switch (place) {
    case CLIP_ATTN:
        return sites_input(s, cfg, layer, NORM_ATTN);
    case CLIP_MLP:
        return sites_input(s, cfg, layer, NORM_MLP);
    case CLIP_O:
        return sites_output(s, cfg, layer);
    case CLIP_DOWN:
        return sites_down(s, cfg, layer);
    case CLIP_KEY:
        return sites_keys(s, cfg, layer);
    default:
        return sites_values(s, cfg, layer);
    }
}

/* ---- clips ---- */

static int64_t most_width(const learner *l) {
    int64_t most = 0;
    for (int k = 0; k < CLIP_PLACES; k++)
        if (l->noise_places >> k & 1u)
            most = size_max(most, noise_width(learner_cfg(l), (clip_place)k));
    return most;
}

/* Places that are not searched keep the ends of the recipe or of its file of rotations. */
static void judge(const learner *l, noise_cost *c, clip_place place, int64_t layer,
                  found_noise *f) {
    const double *said = clip_set_get(rotation_set_clips(l->q->rotations), place, layer);
    static const double one[2] = {1, 1};
    if (settings_clip(l->q->set, place, NULL)->from == CLIPS_SEARCH) {
        noise_cost_search(c, f->ends, &f->before, &f->after);
        return;
    }
    memcpy(f->ends, said ? said : one, sizeof f->ends);
    f->before = noise_cost_of(c, one);
    f->after = noise_cost_of(c, f->ends);
}

/* Local. All quantizers of one layer. */
static err find_layer(const learner *l, noise_cost *c, const llama_sites *sites, int64_t layer) {
    const int64_t tokens = l->q->calib_windows * l->q->set->calib.window;
    err e = err_none();
    for (int k = 0; k < CLIP_PLACES && !e.code; k++) {
        const clip_place place = (clip_place)k;
        found_site *f = learn_site_found(l, layer) + k;
        *f = (found_site){.now = {.ends = {1, 1}}};
        if (!(l->noise_places >> k & 1u)) continue;
        const noise_set rows = noise_rows_get(l->noise, place, layer);
        const site at = site_at(sites, learner_cfg(l), place, layer);
        noise_cost_take(c, &rows, &at, tokens);
        judge(l, c, place, layer, &f->now);
        f->bits = at.quant.bits;
        if (learn_site_may_be_eight(l, place, layer)) {
            noise_cost_put_bits(c, INPUT_EIGHT_BITS);
            judge(l, c, place, layer, &f->eight);
        }
        if (!isfinite(f->now.after + f->eight.after))
            e = err_make(ERR_NUMERICS, "clips", "check the calibration text",
                         "the cost of a quantizer is not a number");
    }
    return e;
}

static err find_clips(learner *l) {
    const int64_t n = learn_most_layers(l);
    current now;
    noise_cost *c = NULL;
    err e = current_make(l, &now);
    if (!e.code) e = noise_cost_create(LEARN_SITE_ROWS, most_width(l), &c);
    e = comm_agree(l->q->c, e, "clips", NULL);
    for (int64_t i = 0; i < n && !e.code; i++) {
        if (i < l->range.n) e = find_layer(l, c, &now.sites, l->range.first + i);
        e = comm_agree(l->q->c, e, "clips", NULL);
        if (!e.code) e = between_units(l->q, l->q->c, "sites", i + 1, n);
    }
    noise_cost_destroy(&c);
    current_clear(&now);
    if (!e.code) learn_share_layers(l, (double *)learn_site_found(l, 0), CLIP_PLACES * FOUND_SITE);
    return e;
}

/* ---- bits ---- */

/* Local, the same on every rank: all that is found decides. */
static void choose_eight(learner *l) {
    const llama_config *cfg = learner_cfg(l);
    const int64_t n = cfg->layers * INPUT_PLACES;
    input_eight chosen = {0};
    if (l->q->set->activations.average == 0) return;
    eight_item *items = calloc((size_t)n, sizeof *items);
    if (!items) abort();
    for (int64_t i = 0; i < n; i++) {
        const input_place place = (input_place)(i % INPUT_PLACES);
        const int64_t layer = i / INPUT_PLACES;
        const found_site *f = learn_site_found(l, layer) + place;
        const bool free_to = learn_site_may_be_eight(l, (clip_place)place, layer);
        items[i] = (eight_item){.bits = (int)settings_input_bits(l->q->set, place, layer),
                                .nats = free_to ? f->now.after - f->eight.after : 0};
    }
    eight_choose(cfg, items, l->q->set->activations.average, &chosen);
    for (int64_t i = 0; i < n; i++) {
        found_site *f = learn_site_found(l, i / INPUT_PLACES) + i % INPUT_PLACES;
        if (!layer_flags_has(&chosen.at[i % INPUT_PLACES], i / INPUT_PLACES)) continue;
        f->bits = INPUT_EIGHT_BITS;
        f->now = f->eight;
        f->eight = (found_noise){.ends = {0}};
    }
    free(items);
}

/* Local, the same on every rank. What was chosen, into the recipe, which sites, config.json and
 * card are made from, beside what it names itself. */
static void adopt_eight(learner *l) {
    const llama_config *cfg = learner_cfg(l);
    quantize_run *q = l->q;
    input_eight all = q->set->activations.eight;
    if (q->set->activations.average == 0) return;
    for (int64_t i = 0; i < cfg->layers * INPUT_PLACES; i++) {
        const input_place place = (input_place)(i % INPUT_PLACES);
        const found_site *f = learn_site_found(l, i / INPUT_PLACES) + place;
        if (f->bits == INPUT_EIGHT_BITS &&
            learn_site_may_be_eight(l, (clip_place)place, i / INPUT_PLACES))
            layer_flags_put(&all.at[place], i / INPUT_PLACES, true);
    }
    setup_put_eight(q->recipe, cfg, &all);
    layout_put_inputs(q->layout, setup_inputs(q->set));
    setup_eight_say(q->set, cfg);
}

/* Only the first rank has events; it tells. */
static void report(const learner *l) {
    if (!l->q->events) return;
    json_t *layers = json_array();
    for (int64_t layer = 0; layer < learner_cfg(l)->layers; layer++) {
        json_t *rows = json_array();
        for (int k = 0; k < CLIP_PLACES; k++) {
            const found_site *f = learn_site_found(l, layer) + k;
            if (l->noise_places >> k & 1u)
                json_array_append_new(rows,
                                      noise_table_row(clip_place_name((clip_place)k), (int)f->bits,
                                                      f->now.ends, f->now.before, f->now.after));
        }
        json_t *one = json_pack("{s:I, s:o}", "layer", (json_int_t)layer, "noise", rows);
        events_add(l->q->events, "sites", "noise", json_deep_copy(one));
        json_array_append_new(layers, one);
    }
    noise_table_tell(layers);
    json_decref(layers);
}

static err adopt_clips(learner *l) {
    clip_set *clips;
    err e = clip_set_create(learner_cfg(l)->layers, &clips);
    for (int64_t i = 0; i < learner_cfg(l)->layers * CLIP_PLACES && !e.code; i++)
        e = clip_set_put(clips, (clip_place)(i % CLIP_PLACES), i / CLIP_PLACES,
                         (learn_site_found(l, 0) + i)->now.ends);
    if (!e.code) rotation_set_put_clips(l->q->rotations, &clips);
    clip_set_destroy(&clips);
    return comm_agree(l->q->c, e, "taking over the clips", NULL);
}

/* ---- the phase ---- */

/* Large buffers beside learn_saved_memory, added to *p. */
static void sites_memory(const learner *l, memory_plan *p) {
    const int64_t n = learner_cfg(l)->hidden;
    memory_plan_add(p, "rows of a quantizer",
                    noise_cost_bytes(LEARN_SITE_ROWS, most_width(l), gemm_threads()));
    if (rotation_set_r1(l->q->rotations))
        memory_plan_add(p, "R1 in fp32", (uint64_t)(n * n) * sizeof(float));
    const llama_config *cfg = learner_cfg(l);
    const int64_t r2 = l->range.n * l->r2_heads,
                  r3 = l->r3_wanted ? cfg->layers * cfg->kv_heads : 0;
    memory_plan_add(p, "R2 of its layers, R3 of all heads",
                    (uint64_t)(r2 + r3) * rotation_dense_bytes(cfg->head_dim));
}

static err check_memory(const learner *l) {
    memory_plan p = {.n = 0};
    memory_plan_add(&p, "program", l->q->base_bytes);
    learn_saved_memory(l, comm_size(l->q->c), &p);
    sites_memory(l, &p);
    return memory_plan_check(l->q->c, &p, "sites", l->q->flags.limit);
}

err learn_sites(learner *l) {
    if (learn_sites_done(l)) return err_none();
    quantize_phase_start(l->q, "sites");
    err e = check_memory(l);
    if (!e.code) e = find_r3(l);
    if (!e.code) e = adopt_r3(l);
    if (!e.code) share_peaks(l);
    if (!e.code) e = learn_sites_scale_cache(l);
    if (!e.code) e = find_clips(l);
    if (e.code) return e;
    choose_eight(l);
    report(l);
    l->sites[0] = 1;
    key_moments_destroy(&l->keys);
    cache_peaks_destroy(&l->peaks);
    noise_rows_destroy(&l->noise);
    quantize_phase_end(l->q, "sites", NULL);
    adopt_eight(l);
    return adopt_clips(l);
}

err learn_sites_adopt(learner *l) {
    if (!l->sites || !learn_sites_done(l)) return err_none();
    err e = adopt_r3(l);
    adopt_eight(l);
    return e.code ? e : adopt_clips(l);
}

err learn_sites_plan(learner *l, plan_maker *m) {
    enum { TRIALS = 40 }; /* pairs of ends: 26 to 50, as the search moves */
    const settings *s = m->q->set;
    const int64_t rows = size_min(LEARN_SITE_ROWS, s->calib.windows * s->calib.window);
    const llama_config *cfg = plan_config(m);
    plan_phase *f;
    int64_t most = 0, numbers = 0, turned = 0; /* sites of a layer whose rows R1 turns */
    err e = plan_add_phase(m, "sites", &f);
    if (e.code) return e;
    for (int r = 0; r < m->n_stages; r++) {
        l->range = m->ranges[r];
        memory_plan p = plan_fresh(m);
        learn_saved_memory(l, m->ranks, &p);
        sites_memory(l, &p);
        plan_offer(f, &p, r);
        most = size_max(most, l->range.n);
    }
    for (int k = 0; k < CLIP_PLACES; k++) {
        if (!(l->noise_places >> k & 1u)) continue;
        numbers += (learn_site_may_be_eight(l, (clip_place)k, 0) ? 2 : 1) * rows *
                   noise_width(cfg, (clip_place)k);
        turned += rotation_set_r1(m->q->rotations) && (k == CLIP_ATTN || k == CLIP_MLP);
    }
    f->seconds = plan_time_trials(&m->rank, TRIALS, (double)(most * numbers)) +
                 plan_time_turned(&m->rank, cfg->hidden, most * turned, (double)rows);
    f->units = 1; /* kept when all are known */
    f->blind_s = f->seconds / (double)size_max(1, most);
    f->again_s = plan_again_seconds(m);
    const int64_t found = CLIP_PLACES * FOUND_SITE, r3 = learn_site_r3_entries(l),
                  peaks = learn_site_peak_entries(l);
    plan_send(m, f,
              plan_add(plan_r1_to_all(m, rotation_set_r1(m->q->rotations)),
                       plan_layers_to_all(m, (uint64_t)(found + r3 + peaks) * sizeof(double))));
    return e;
}
