/* Each rank holds the rows of its own layers; a step adds their integer gradients over the ranks
 * and moves R1 on its grid and R2 where its layer is. */
#include "jobs/phases/learn_range_phase.h"

#include "base/log.h"
#include "base/size.h"
#include "jobs/phases/learn_capture.h"
#include "jobs/phases/learn_start.h"
#include "jobs/phases/learn_steps.h"
#include "jobs/phases/learn_weights.h"
#include "jobs/run/run_phase.h"
#include "jobs/setup/recipe_asks.h"
#include "jobs/setup/setup.h"
#include "pipeline/learn/learn_range_held.h"
#include "pipeline/learn/learn_range_state.h"
#include "pipeline/learn/r2_part.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COMMIT_STEPS = 20 };

static err phase_options(const learner *l, const learn_settings *phase, int ranks,
                         learn_range_options *o) {
    const settings *s = l->q->set;
    llama_sites sites;
    const rotation **unused;
    err e = setup_sites(s, learner_cfg(l), l->q->rotations, HOLD_R1_R2, &sites, &unused);
    free(unused);
    if (e.code) return e;
    *o = (learn_range_options){
        .steps = phase->steps,
        .rows = phase->rows,
        .lr_r1 = phase->lr_r1,
        .lr_r2 = phase->lr_r2,
        .kind = phase->optimizer,
        .schedule = phase->schedule,
        .act = sites.act,
        .kv = sites.kv,
        .eight = sites.eight,
        .cache_rotation = sites.cache_rotation,
        .o_rows =
            sites.act.group ? learner_cfg(l)->head_dim % sites.act.group == 0 : sites.o_per_head,
        .r1 = rotation_set_r1(l->q->rotations) != NULL,
        .r2_heads = l->r2_heads,
        .layers = learner_cfg(l)->layers,
        .seed = (uint64_t)s->seed,
        .measure = true,
        .blas_threads = settings_blas_threads(s),
    };
    return grid_resolve("numerics.grid", s->numerics.grid.text, learner_cfg(l)->hidden, ranks,
                        &o->grid);
}

/* Large buffers of a rank beside learn_saved_memory, added to *p; cell: it is one of the grid of
 * R1. */
static err range_memory(const learner *l, const learn_settings *phase, int ranks, bool cell,
                        memory_plan *p) {
    const llama_config *cfg = learner_cfg(l);
    const wquant *how = &l->q->job.how;
    const bool weights = learn_weights_count(l->q->set, phase);
    learn_range_options o;
    err e = phase_options(l, phase, ranks, &o);
    if (e.code) return e;
    /* Of the drawn rows those that nothing mixes are added; here all are taken for such. */
    const int64_t rows = weights ? size_ceil_div(o.rows * l->range.n, o.layers) : 0;
    const int64_t groups = weights && how->group ? cfg->hidden / how->group : 1;
    memory_plan_add(p, "steps of range",
                    learn_range_bytes(cfg, &o, l->range.n, cell, rows, groups));
    return e;
}

static err check_memory(const learner *l, const learn_settings *phase, const char *name) {
    const comm *c = l->q->c;
    grid_shape grid;
    memory_plan p = {.n = 0};
    err e = grid_resolve("numerics.grid", l->q->set->numerics.grid.text, learner_cfg(l)->hidden,
                         comm_size(c), &grid);
    memory_plan_add(&p, "program", l->q->base_bytes);
    learn_saved_memory(l, comm_size(c), &p);
    if (!e.code) e = range_memory(l, phase, comm_size(c), comm_rank(c) < grid.rows * grid.cols, &p);
    e = comm_agree(c, e, name, NULL);
    return e.code ? e : memory_plan_check(c, &p, name, l->q->flags.limit);
}

static err step(void *self, learn_report *report) {
    return learn_range_step(self, report);
}

static err judge(void *self, learn_verdict *v) {
    return learn_range_judge(self, v);
}

static int64_t state_count(void *self) {
    return learn_range_state_count(self);
}

static int state_cell(void *self, byte_piece out[CAYLEY_STATE_PIECES]) {
    return learn_range_state_cell(self, out);
}

static err state_save(void *self, double *common) {
    return learn_range_state_save(self, common);
}

static err state_load(void *self, const double *common) {
    return learn_range_state_load(self, common);
}

static uint64_t replica_of(void *self, const void **data) {
    return learn_range_replica(self, data);
}

/* The grid that R1 steps on, and what a rank of it holds: to be seen at large hidden sizes. */
static void tell_grid(const char *name, const learn_range_options *o, learn_range *r) {
    char grid[24], bytes[32];
    size_text(learn_range_r1_bytes(r), bytes);
    if (o->r1)
        log_line(LOG_PHASE, "%s: R1 steps on a grid of %s, %s on its largest rank", name,
                 grid_text(o->grid, grid), bytes);
}

err learn_range_phase(learner *l, int64_t k, const learn_saved *saved) {
    quantize_run *q = l->q;
    const learn_settings *p = &q->set->learn[k];
    learn_range_options o;
    char name[32];
    snprintf(name, sizeof name, "learn.%" PRId64, k);
    err e = comm_agree(q->c, phase_options(l, p, comm_size(q->c), &o), "learning", NULL);
    if (!e.code) e = check_memory(l, p, name);
    if (e.code) return e;
    quantize_phase_start(q, name);
    learn_range *r = NULL;
    weight_rows *weights;
    e = learn_weights_create(l, p, &weights);
    if (e.code) return e;
    const bool drawn = learn_draws(q->set, p);
    if (drawn) row_pool_switch(&l->pool);
    const double *R2 = l->r2_heads ? l->R2 + l->range.first * learner_r2_entries(l) : NULL;
    e = learn_range_create(q->c, &o, &l->pool, weights, l->R1, R2, &r);
    if (e.code) {
        if (drawn) row_pool_switch(&l->pool);
        weight_rows_destroy(&weights);
        return e;
    }
    tell_grid(name, &o, r);
    const learn_phase ops = {.self = r,
                             .number = k,
                             .steps = o.steps,
                             .commit_steps = COMMIT_STEPS,
                             .judge_every = learn_judge_every(o.steps),
                             .step = step,
                             .judge = o.kind == OPTIMIZER_ADAM ? judge : NULL,
                             .state_count = state_count,
                             .state_cell = state_cell,
                             .state_save = state_save,
                             .state_load = state_load,
                             .replica = replica_of};
    e = learn_run_steps(l, &ops, saved);
    if (!e.code && l->R1) learn_range_take_r1(r, l->R1);
    if (!e.code && l->r2_heads) {
        memcpy(l->R2 + l->range.first * learner_r2_entries(l), learn_range_r2(r),
               (size_t)(l->range.n * learner_r2_entries(l)) * sizeof(double));
        learn_share_layers(l, l->R2, learner_r2_entries(l));
    }
    learn_range_destroy(&r);
    if (drawn) row_pool_switch(&l->pool);
    weight_rows_destroy(&weights);
    if (!e.code) quantize_phase_end(q, name, NULL);
    return e;
}

/* The steps and R1 around them, R2 at each commit and at the end. */
static plan_bytes range_network(const learner *l, const plan_maker *m, const learn_settings *phase,
                                bool r1, double seconds) {
    const uint64_t r2 = (uint64_t)learner_r2_entries(l) * sizeof(double),
                   saved = (uint64_t)(l->r2_heads * r2_part_state_each(phase->optimizer,
                                                                       plan_config(m)->head_dim)) *
                           sizeof(double);
    const double commits =
        fmax((double)size_ceil_div(phase->steps, COMMIT_STEPS), seconds / LEARN_COMMIT_SECONDS);
    const plan_bytes steps =
                         plan_times((double)phase->steps,
                                    plan_step_network(m, r1, true, RANGE_SUM_BYTES, sizeof(bf16))),
                     state = plan_times(floor(commits), plan_layers_to_first(m, saved));
    return plan_add(plan_add(plan_r1_around_steps(m, r1, sizeof(bf16)), steps),
                    plan_add(state, plan_layers_to_all(m, r2)));
}

static int64_t looks_of(const learn_settings *phase) {
    return phase->optimizer == OPTIMIZER_ADAM
               ? learn_judge_looks(phase->steps, learn_judge_every(phase->steps))
               : 0;
}

err learn_range_plan(learner *l, plan_maker *m, int64_t k) {
    const llama_config *cfg = plan_config(m);
    const learn_settings *phase = &m->q->set->learn[k];
    const double steps = (double)phase->steps;
    const double all = (double)phase->rows;
    const bool r1 = rotation_set_r1(m->q->rotations) != NULL;
    const double samples = learn_weights_count(m->q->set, phase) ? 2 * all : all;
    double slowest = 0, work = 0, look = 0;
    char name[32];
    plan_phase *f;
    grid_shape grid;
    snprintf(name, sizeof name, "learn.%" PRId64, k);
    err e = plan_grid(m, &grid);
    if (!e.code) e = plan_add_phase(m, name, &f);
    if (e.code) return e;
    const int cells = grid.rows * grid.cols;
    for (int r = 0; r < m->n_stages && !e.code; r++) {
        l->range = m->ranges[r];
        memory_plan p = plan_fresh(m);
        learn_saved_memory(l, m->ranks, &p);
        e = range_memory(l, phase, m->ranks, r < cells, &p);
        plan_offer(f, &p, r);
        const double rows = r1 ? samples * (double)l->range.n / (double)cfg->layers : 0;
        const double one = plan_time_range(&m->rank, cfg, l->range.n, rows, l->r2_heads);
        slowest = fmax(slowest, one);
        work += one / m->n_stages;
        look = fmax(look, plan_time_range_look(&m->rank, cfg, l->range.n, rows, l->r2_heads));
    }
    const int movers = plan_steppers(m, grid);
    const double step = r1 ? plan_time_cayley(&m->rank, cfg->hidden, movers) : 0;
    f->looks = looks_of(phase);
    f->seconds = steps * (slowest + step) + (double)f->looks * look + plan_time_peak(&m->rank);
    f->units = phase->steps;
    f->blind_s = slowest + step + 2 * look; /* before the first step and after it */
    f->again_s = plan_again_seconds(m);
    f->busy = (work + step * movers / m->ranks) / (slowest + step);
    plan_send(m, f, range_network(l, m, phase, r1, f->seconds));
    if (grid.rows * grid.cols > 1)
        snprintf(f->note, sizeof f->note, "R1 on a grid of %dx%d", grid.rows, grid.cols);
    return e;
}
