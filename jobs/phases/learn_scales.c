/* Scales of vo, qk and ud come in closed form from moments; those of norms by Adam on the
 * layer-local objective; `smooth` takes peaks of activations and weights instead (docs/DESIGN.md).
 */
#include "jobs/phases/learn_scales.h"

#include "base/log.h"
#include "base/mem.h"
#include "base/size.h"
#include "jobs/phases/learn_capture.h"
#include "jobs/phases/learn_scale_state.h"
#include "jobs/phases/learn_start.h"
#include "jobs/run/between_units.h"
#include "jobs/run/run_phase.h"
#include "pipeline/learn/scale_norm.h"
#include "pipeline/plan/memory_plan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Adam on log s of a norm: DESIGN.md 2.6. */
enum { NORM_STEPS = 60 };
#define NORM_RATE 0.02

/* ---- the norms ---- */

/* Collective. R1 in fp32 on every rank; *out NULL where R1 is. */
static err r1_in_fp32(const learner *l, float **out) {
    const int64_t n = learner_cfg(l)->hidden;
    void *band = NULL; /* fp32, in room for doubles */
    float *R = NULL;
    *out = NULL;
    if (!l->R1) return err_none();
    err e = mem_alloc(DEALT_ROWS_BAND * n, sizeof(double), "rows of R1", &band);
    if (!e.code) e = MEM_NEW(&R, n * n, "R1 in fp32");
    e = comm_agree(l->q->c, e, "scales", NULL);
    for (int64_t row = 0; row < n && !e.code; row += DEALT_ROWS_BAND) {
        const int64_t rows = size_min(DEALT_ROWS_BAND, n - row);
        dealt_rows_get_f32(l->R1, row, rows, band);
        memcpy(R + row * n, band, (size_t)(rows * n) * sizeof(float));
    }
    mem_free(band);
    if (e.code) mem_free(R);
    *out = e.code ? NULL : R;
    return e;
}

/* Ranges of an input of hidden entries. */
static int64_t norm_groups(const learner *l) {
    llama_sites sites;
    if (learn_scale_sites(l, &sites).code || !sites.act.group) return 1;
    return learner_cfg(l)->hidden / sites.act.group;
}

/* J before and after of each norm of the model. */
typedef struct norm_report {
    double before, after;
} norm_report;

/* Local. One norm of this rank's layers, where it has so many. */
static err learn_norm(learner *l, scale_norm *s, const float *R, range_rule rule, int64_t i,
                      norm_report *reports) {
    if (i >= 2 * l->range.n) return err_none();
    const int64_t layer = l->range.first + i / 2;
    norm_report *to = &reports[2 * layer + i % 2];
    scale_norm_take(s, &l->pool.sets[POOL_R1][i], R, rule);
    scale_norm_learn(s, NORM_STEPS, NORM_RATE,
                     learn_scale_at(l, i % 2 ? SCALE_MLP : SCALE_ATTN, layer), &to->before,
                     &to->after);
    if (isfinite(to->after)) return err_none();
    return err_make(ERR_NUMERICS, "scales of norms", "check the calibration text",
                    "the objective is not a number");
}

/* Collective. */
static err learn_norms(learner *l, const float *R, norm_report *reports) {
    llama_sites sites;
    scale_norm *s = NULL;
    err e = learn_scale_sites(l, &sites);
    if (!e.code && l->range.n)
        e = scale_norm_create(learner_cfg(l)->hidden, l->pool.tokens, norm_groups(l), &s);
    const range_rule rule = {
        .symmetric = sites.act.symmetric, .include_zero = true, .group = sites.act.group};
    e = comm_agree(l->q->c, e, "scales of norms", NULL);
    const int64_t n = 2 * learn_most_layers(l);
    for (int64_t i = 0; i < n && !e.code; i++) {
        e = comm_agree(l->q->c, learn_norm(l, s, R, rule, i, reports), "scales of norms", NULL);
        if (!e.code) e = between_units(l->q, l->q->c, "scales", i + 1, n);
    }
    scale_norm_destroy(&s);
    return e;
}

/* ---- smooth ---- */

/* One layer of the checkpoint as it is. */
static load_options one_layer(const learner *l, int64_t layer) {
    return (load_options){.checkpoint = l->q->source.ck,
                          .cfg = learner_cfg(l),
                          .range = {.first = layer, .n = 1},
                          .compute = COMPUTE_F32};
}

static err smooth_layer(learner *l, int64_t layer) {
    const load_options lo = one_layer(l, layer);
    const double alpha = l->q->set->scale.alpha;
    llama_stage stage = {.cfg = learner_cfg(l)};
    err e = load_stage(&lo, &stage);
    for (int k = 0; k < SCALE_KINDS && !e.code; k++)
        if (learn_scale_wanted(l, (scale_kind)k))
            e = scale_smooth(l->scale_peaks, (scale_kind)k, layer, stage.layers, alpha,
                             learn_scale_at(l, (scale_kind)k, layer));
    llama_stage_clear(&stage);
    return e;
}

static err smooth(learner *l) {
    const int64_t n = learn_most_layers(l);
    err e = err_none();
    for (int64_t i = 0; i < n && !e.code; i++) {
        if (i < l->range.n) e = smooth_layer(l, l->range.first + i);
        e = comm_agree(l->q->c, e, "scales", NULL);
        if (!e.code) e = between_units(l->q, l->q->c, "scales", i + 1, n);
    }
    return e;
}

/* ---- all ---- */

/* Large buffers while they are found, beside learn_saved_memory, added to *p. */
static void scales_memory(const learner *l, memory_plan *p) {
    const int64_t n = learner_cfg(l)->hidden;
    const load_options lo = one_layer(l, 0);
    if (learn_scales_smooth(l)) memory_plan_add(p, "a layer's weights", load_stage_bytes(&lo));
    if (!learn_scale_wanted(l, SCALE_ATTN) || learn_scales_smooth(l)) return;
    if (rotation_set_r1(l->q->rotations))
        memory_plan_add(p, "R1 in fp32", (uint64_t)(n * n) * sizeof(float));
    memory_plan_add(p, "rotated rows",
                    scale_norm_bytes(n, learn_pool_tokens(l->q), norm_groups(l)));
}

static err check_memory(const learner *l) {
    memory_plan p = {.n = 0};
    memory_plan_add(&p, "program", l->q->base_bytes);
    learn_saved_memory(l, comm_size(l->q->c), &p);
    scales_memory(l, &p);
    return memory_plan_check(l->q->c, &p, "scales", l->q->flags.limit);
}

static err do_norms(learner *l) {
    const int64_t sites = 2 * learner_cfg(l)->layers;
    norm_report *reports = calloc((size_t)sites, sizeof *reports), mean = {0};
    float *R = NULL;
    if (!reports) abort();
    err e = r1_in_fp32(l, &R);
    if (!e.code) e = learn_norms(l, R, reports);
    if (!e.code) learn_share_layers(l, (double *)reports, 4);
    for (int64_t i = 0; i < sites; i++) {
        mean.before += reports[i].before / (double)sites;
        mean.after += reports[i].after / (double)sites;
    }
    if (!e.code)
        log_line(LOG_PHASE, "scales of norms: objective %.4f -> %.4f, mean of %d sites",
                 mean.before, mean.after, (int)sites);
    events_add(l->q->events, "scales", "step",
               json_pack("{s:f, s:f}", "loss_before", mean.before, "loss", mean.after));
    mem_free(R);
    free(reports);
    return e;
}

/* Local. Where inputs stay at 16 bits there are no rows to find scales of norms from: they are for
 * weights in the loop, which begin with ones. */
static void norms_of_ones(const learner *l) {
    for (int64_t i = 0; i < 2 * l->range.n; i++) {
        const scale_kind kind = i % 2 ? SCALE_MLP : SCALE_ATTN;
        double *s = learn_scale_at(l, kind, l->range.first + i / 2);
        for (int64_t j = 0; j < learn_scale_length(l, kind); j++) s[j] = 1;
    }
}

err learn_scales(learner *l) {
    if (learn_scales_done(l)) return err_none();
    quantize_phase_start(l->q, "scales");
    err e = check_memory(l);
    if (!e.code && learn_scales_smooth(l)) e = smooth(l);
    for (int k = 0; k < SCALE_KINDS && !e.code && !learn_scales_smooth(l); k++) {
        const scale_kind kind = (scale_kind)k;
        if (!learn_scale_wanted(l, kind) || learn_scale_is_norm(kind)) continue;
        for (int64_t i = 0; i < l->range.n; i++)
            scale_closed(l->scale_moments, kind, l->range.first + i,
                         learn_scale_at(l, kind, l->range.first + i));
    }
    if (!e.code && learn_scale_wanted(l, SCALE_ATTN) && !learn_scales_smooth(l)) {
        if (learn_pool_tokens(l->q))
            e = do_norms(l);
        else
            norms_of_ones(l);
    }
    for (int k = 0; k < SCALE_KINDS && !e.code; k++)
        if (learn_scale_wanted(l, (scale_kind)k))
            learn_share_layers(l, learn_scale_at(l, (scale_kind)k, 0),
                               learn_scale_length(l, (scale_kind)k));
    if (e.code) return e;
    l->scales[0] = 1;
    quantize_phase_end(l->q, "scales", NULL);
    return learn_scales_adopt(l);
}

err learn_scales_adopt(learner *l) {
    scale_set *set = NULL;
    if (!l->scale_kinds || !learn_scales_done(l)) return err_none();
    err e = rotation_set_new_scales(l->q->rotations, &set);
    for (int k = 0; k < SCALE_KINDS && !e.code; k++) {
        const scale_kind kind = (scale_kind)k;
        if (!learn_scale_wanted(l, kind)) continue;
        e = scale_set_add(set, kind);
        for (int64_t i = 0; i < learner_cfg(l)->layers && !e.code; i++)
            e = scale_set_put(set, kind, i, learn_scale_at(l, kind, i));
    }
    if (!e.code) rotation_set_put_scales(l->q->rotations, &set);
    scale_set_destroy(&set);
    return comm_agree(l->q->c, e, "taking over the scales", NULL);
}

/* R1 to all, then reports of the norms and the scales. */
static plan_bytes scales_network(const learner *l, const plan_maker *m) {
    const bool norms = learn_scale_wanted(l, SCALE_ATTN) && !learn_scales_smooth(l);
    uint64_t doubles = norms ? 2 * sizeof(norm_report) / sizeof(double) : 0;
    for (int k = 0; k < SCALE_KINDS; k++)
        if (learn_scale_wanted(l, (scale_kind)k))
            doubles += (uint64_t)learn_scale_length(l, (scale_kind)k);
    return plan_add(plan_r1_to_all(m, norms && rotation_set_r1(m->q->rotations)),
                    plan_layers_to_all(m, doubles * sizeof(double)));
}

err learn_scales_plan(learner *l, plan_maker *m) {
    const llama_config *cfg = plan_config(m);
    plan_phase *f;
    int64_t most = 0;
    err e = plan_add_phase(m, "scales", &f);
    if (e.code) return e;
    for (int r = 0; r < m->n_stages; r++) {
        l->range = m->ranges[r];
        memory_plan p = plan_fresh(m);
        learn_saved_memory(l, m->ranks, &p);
        scales_memory(l, &p);
        plan_offer(f, &p, r);
        most = size_max(most, l->range.n);
    }
    if (m->q->set->scale.pairs & PAIR_NORM) /* the end is looked at too */
        f->seconds =
            plan_time_norms(&m->rank, cfg->hidden, 2 * most, (double)learn_pool_tokens(m->q),
                            rotation_set_r1(m->q->rotations) != NULL, NORM_STEPS + 1);
    f->units = 1; /* kept when all are known */
    f->blind_s = f->seconds / (double)size_max(1, 2 * most);
    f->again_s = plan_again_seconds(m);
    plan_send(m, f, scales_network(l, m));
    return e;
}
