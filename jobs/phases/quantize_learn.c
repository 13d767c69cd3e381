/* A learner holds rows, matrices and scales from the capture to the end; the phases of the recipe
 * run on it in order, with the scales between those on rows and those on the whole model. */
#include "jobs/phases/quantize_learn.h"

#include "base/mem.h"
#include "base/sha256.h"
#include "base/size.h"
#include "jobs/phases/learn_capture.h"
#include "jobs/phases/learn_captured.h"
#include "jobs/phases/learn_e2e_phase.h"
#include "jobs/phases/learn_looks.h"
#include "jobs/phases/learn_range_phase.h"
#include "jobs/phases/learn_scale_state.h"
#include "jobs/phases/learn_scales.h"
#include "jobs/phases/learn_site_state.h"
#include "jobs/phases/learn_sites.h"
#include "jobs/phases/learn_start.h"
#include "jobs/phases/learn_state.h"
#include "jobs/run/run_phase.h"
#include "jobs/setup/recipe_asks.h"
#include "jobs/setup/setup.h"
#include "mpi/replicas.h"

#include <stdlib.h>
#include <string.h>

static err learner_init(learner *l, quantize_run *q) {
    const llama_config *cfg = &q->source.cfg;
    *l = (learner){.q = q, .r2_heads = rotation_set_r2_count(q->rotations)};
    err e = err_none();
    if (rotation_set_r1(q->rotations))
        e = dealt_rows_create(q->c, cfg->hidden, cfg->hidden, "R1", &l->R1);
    if (!e.code) e = MEM_NEW(&l->R2, cfg->layers * learner_r2_entries(l), "R2");
    if (!e.code) e = learn_scales_init(l);
    if (!e.code) e = learn_sites_init(l);
    stage_range *ranges = calloc((size_t)comm_size(q->c), sizeof *ranges);
    if (!ranges) abort();
    learn_cut(l, comm_size(q->c), ranges, &l->n_stages);
    l->range = ranges[comm_rank(q->c)];
    free(ranges);
    e = comm_agree(q->c, e, "learning", NULL);
    if (!e.code && l->n_stages < comm_size(q->c))
        e = comm_split(q->c, comm_rank(q->c) < l->n_stages ? 0 : -1, "stages", &l->stages);
    return e;
}

static void learner_clear(learner *l) {
    comm_destroy(&l->stages);
    learn_capture_clear(l);
    dealt_rows_destroy(&l->R1);
    mem_free(l->R2);
    mem_free(l->scales);
    mem_free(l->sites);
}

/* Collective. What fusion is about to use, on each rank; r1: the hash of R1, "" where there is
 * none. */
static err check_replicas(const learner *l, const char *r1) {
    const uint64_t n2 = l->R2 ? (uint64_t)(learner_cfg(l)->layers * learner_r2_entries(l)) : 0;
    const replica parts[] = {{"R1", r1, strlen(r1)},
                             {"R2", l->R2, n2 * sizeof *l->R2},
                             {"scales", l->scales, (uint64_t)l->n_scales * sizeof *l->scales},
                             {"clips and R3", l->sites, (uint64_t)l->n_sites * sizeof *l->sites}};
    return replicas_check(l->q->c, parts, 4, "the learned rotations");
}

/* Collective. R1 whole on every rank, since fusion takes it so; never twice. *hex: its hash here.
 */
static err whole_r1(const learner *l, rotation **r, char hex[SHA256_HEX]) {
    const int64_t n = learner_cfg(l)->hidden;
    double *band = NULL;
    hex[0] = '\0';
    if (!l->R1) return err_none();
    err e = rotation_create_dense(n, NULL, r);
    if (!e.code) e = MEM_NEW(&band, DEALT_ROWS_BAND * n, "rows of R1");
    e = comm_agree(l->q->c, e, "R1", NULL);
    sha256 *hash = sha256_create();
    for (int64_t row = 0; row < n && !e.code; row += DEALT_ROWS_BAND) {
        const int64_t b = size_min(DEALT_ROWS_BAND, n - row);
        dealt_rows_get(l->R1, row, b, band);
        sha256_add(hash, band, (size_t)(b * n) * sizeof(double));
        rotation_put_rows(*r, row, b, band);
    }
    sha256_finish(&hash, hex);
    mem_free(band);
    return e;
}

/* Learned matrices take the place of the start points in the set that fusion uses. */
static err adopt(learner *l) {
    rotation_set *set = l->q->rotations;
    int64_t d = learner_cfg(l)->head_dim, dd = d * d;
    rotation *r = NULL;
    char r1_hex[SHA256_HEX];
    err e = whole_r1(l, &r, r1_hex);
    if (!e.code) e = check_replicas(l, r1_hex);
    if (!e.code && r) e = rotation_set_put_r1(set, &r);
    for (int64_t i = 0; l->r2_heads && i < learner_cfg(l)->layers && !e.code; i++) {
        e = rotation_set_prepare_r2(set, i);
        for (int64_t h = 0; h < l->r2_heads && !e.code; h++) {
            e = rotation_create_dense(d, l->R2 + i * learner_r2_entries(l) + h * dd, &r);
            if (!e.code) e = rotation_set_put_r2(set, i, h, &r);
        }
    }
    rotation_destroy(&r);
    e = comm_agree(l->q->c, e, "taking over the rotations", NULL);
    return e.code ? e : learn_sites_scale_cache(l);
}

static err run_phase(learner *l, int64_t k, const learn_saved *saved) {
    const bool e2e = learn_e2e_is(&l->q->set->learn[k]);
    if (!e2e) return learn_range_phase(l, k, saved);
    if (!learn_needs_rows(l->q->set, k + 1, false)) { /* memory for the passes */
        row_pool_clear(&l->pool);
        llama_stage_clear(&l->stage);
    }
    return learn_e2e_phase(l, k, saved);
}

/* Something after so many phases is learned from captured rows. */
static bool rows_needed(const learner *l, int64_t phases_done, bool fresh) {
    return learn_needs_rows(l->q->set, phases_done, fresh) || !learn_scales_done(l) ||
           !learn_sites_done(l);
}

/* Collective. A commit of what is learned, after which captured rows go when they have served. */
static err save(learner *l, int64_t phases_done) {
    const bool looked_at = l->looks && learn_looks_wanted(l->q);
    if (!rows_needed(l, phases_done, false) && !looked_at) learn_drop(l->q, LEARN_CAPTURED);
    return learn_save_rotations(l, phases_done);
}

/* Scales, and then R3 and clips, stand after the phases `range` and before the first that runs the
 * whole model. */
static err scales_if_due(learner *l, int64_t phase, int64_t phases) {
    err e = err_none();
    if (phase < phases && !learn_e2e_is(&l->q->set->learn[phase])) return e;
    if (!learn_scales_done(l)) {
        e = learn_scales(l);
        if (!e.code) e = save(l, phase);
    }
    if (e.code || learn_sites_done(l)) return e;
    e = learn_sites(l);
    return e.code ? e : save(l, phase);
}

/* Collective. What phases learn from: as an earlier start left it, else captured and left for later
 * ones. */
static err capture(learner *l, bool fresh) {
    quantize_run *q = l->q;
    bool recalled;
    quantize_phase_start(q, "capture");
    err e = learn_captured_recall(l, &recalled);
    if (!e.code && !recalled) e = learn_capture_rows(l);
    if (!e.code && !recalled) e = learn_captured_save(l);
    if (!e.code && fresh) e = learn_start(l);
    if (!e.code && !recalled) quantize_phase_end(q, "capture", NULL);
    return e;
}

uint64_t quantize_learned_bytes(const quantize_run *q) {
    const settings *s = q->set;
    const llama_config *cfg = &q->source.cfg;
    const bool dense = s->n_learn || s->rotate.start.word != START_POINT_HAD ||
                       s->rotate.start_r2 != START_R2_SAME;
    int64_t heads = dense ? rotation_set_r2_count(q->rotations) : 0;
    if (quantize_learns_r3(s)) heads += cfg->kv_heads;
    return quantize_r1_bytes(q) +
           (uint64_t)(cfg->layers * heads) * rotation_dense_bytes(cfg->head_dim) +
           learn_scales_set_bytes(s, cfg);
}

bool quantize_learn_wanted(const quantize_run *q) {
    return quantize_learns(q->set) || quantize_starts_at(q->set, START_POINT_WOMI);
}

err quantize_learn(quantize_run *q) {
    int64_t phases = q->set->n_learn, first = -1;
    learn_saved saved = {0};
    learner l;
    err e = learner_init(&l, q);
    if (!e.code) e = learn_recall_rotations(&l, &first);
    if (!e.code) e = learn_recall(q, &saved);
    const bool fresh = first < 0;
    if (!e.code) e = learn_scales_adopt(&l);
    if (!e.code) e = learn_sites_adopt(&l);
    if (!e.code && rows_needed(&l, first, fresh))
        e = capture(&l, fresh);
    else if (!e.code && fresh)
        e = learn_start(&l);
    else if (!e.code && learn_looks_wanted(q))
        e = learn_captured_recall_looks(&l);
    if (!e.code && fresh) e = save(&l, 0);
    for (int64_t p = fresh ? 0 : first; p < phases && !e.code; p++) {
        e = scales_if_due(&l, p, phases);
        if (!e.code) e = run_phase(&l, p, &saved);
        if (!e.code) e = save(&l, p + 1);
    }
    if (!e.code) e = scales_if_due(&l, phases, phases);
    learn_rows_clear(&l); /* what is learned becomes whole on every rank */
    if (!e.code) e = adopt(&l);
    if (!e.code) e = learn_look(&l);
    if (!e.code) e = learn_captured_drop(&l);
    learn_saved_clear(&saved);
    learner_clear(&l);
    return e;
}

/* ---- the plan ---- */

/* What a learner on any rank would be, without matrices. */
static err learner_of_plan(quantize_run *q, learner *l) {
    *l = (learner){.q = q, .r2_heads = rotation_set_r2_count(q->rotations)};
    err e = learn_scales_init(l);
    return e.code ? e : learn_sites_init(l);
}

err quantize_learn_cut(quantize_run *q, int ranks, stage_range *ranges, int *n_stages) {
    learner l;
    err e = learner_of_plan(q, &l);
    if (!e.code) learn_cut(&l, ranks, ranges, n_stages);
    mem_free(l.scales);
    mem_free(l.sites);
    return e;
}

static err plan_after_range(learner *l, plan_maker *m) {
    err e = learn_scales_done(l) ? err_none() : learn_scales_plan(l, m);
    return !e.code && l->sites ? learn_sites_plan(l, m) : e;
}

err quantize_learn_plan(plan_maker *m) {
    const settings *s = m->q->set;
    learner l;
    err e = learner_of_plan(m->q, &l);
    l.n_stages = m->n_stages;
    bool after = !learn_scales_done(&l) || l.sites; /* what comes after `range` is still to do */
    if (!e.code && (learn_needs_rows(s, 0, true) || after)) e = learn_capture_plan(&l, m);
    if (!e.code && plan_find(m->p, "capture")) learn_captured_plan(&l, m);
    for (int64_t k = 0; k < s->n_learn && !e.code; k++) {
        const bool e2e = learn_e2e_is(&s->learn[k]);
        if (e2e && after) e = plan_after_range(&l, m);
        if (e2e) after = false;
        if (!e.code) e = e2e ? learn_e2e_plan(&l, m, k) : learn_range_plan(&l, m, k);
    }
    if (after && !e.code) e = plan_after_range(&l, m);
    mem_free(l.scales);
    mem_free(l.sites);
    return e;
}
