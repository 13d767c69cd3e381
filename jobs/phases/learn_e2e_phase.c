/* The recipe becomes a wish (batch, window, memory), the wish a layout of replicas x stages, and
 * the layout a run of steps. The plan goes the same way without a run. */
#include "jobs/phases/learn_e2e_phase.h"

#include "base/log.h"
#include "base/machine.h"
#include "base/mem.h"
#include "base/size.h"
#include "jobs/phases/learn_capture.h"
#include "jobs/phases/learn_looks.h"
#include "jobs/phases/learn_scale_state.h"
#include "jobs/phases/learn_scales.h"
#include "jobs/phases/learn_sites.h"
#include "jobs/phases/learn_steps.h"
#include "jobs/run/run_phase.h"
#include "jobs/setup/recipe_asks.h"
#include "jobs/setup/setup.h"
#include "model/sites.h"
#include "model/tensors.h"
#include "pipeline/learn/learn_e2e.h"
#include "pipeline/learn/learn_e2e_state.h"
#include "pipeline/learn/r2_part.h"
#include "pipeline/learn/scale_part.h"
#include "pipeline/plan/product_peak.h"
#include "pipeline/stages/schedule.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Time that a smaller largest rank may cost. On one machine the ranks share its memory, and every
 * replica takes a copy of weights from it; on many each has its own, and time counts. */
#define SLACK_ONE_MACHINE 1.6
#define SLACK_CLUSTER     1.25

/* What a phase asks for and how the ranks share it; all of it stays while the phase runs. */
typedef struct e2e_phase {
    char name[32];
    learn_e2e_options o;
    e2e_wish w;
    e2e_layout l;
    embed_rows rows;
    int64_t passes; /* over a batch, of this start, when it is done */
} e2e_phase;

/* A bit for each kind of scales that the phase learns. */
static uint32_t scales_learned(const settings *s, const learn_settings *phase) {
    return learn_scales_by(s, phase) ? learn_scale_kinds(s) : 0;
}

static err phase_options(const quantize_run *q, const learn_settings *phase, int ranks,
                         learn_e2e_options *o) {
    const settings *s = q->set;
    const rotation **unused;
    *o = (learn_e2e_options){
        .steps = phase->steps,
        .lr_r1 = phase->lr_r1,
        .lr_r2 = phase->lr_r2,
        .kind = phase->optimizer,
        .schedule = phase->schedule,
        .seed = (uint64_t)s->seed,
        .blas_threads = settings_blas_threads(s),
        .r1 = rotation_set_r1(q->rotations) != NULL,
        .r2_heads = rotation_set_r2_count(q->rotations),
        .scales = scales_learned(s, phase),
        .lr_scale = phase->lr_scale,
        .ids = q->calib_ids,
        .n_windows = q->calib_windows,
        .length = s->calib.window,
        .measure = true,
        .weights = phase->weights ? &q->job.how : NULL,
    };
    err e = setup_sites(s, &q->source.cfg, q->rotations, HOLD_R1_R2, &o->sites, &unused);
    free(unused);
    if (e.code) return e;
    o->sites.scales = rotation_set_scales(q->rotations);
    return grid_resolve("numerics.grid", s->numerics.grid.text, q->source.cfg.hidden, ranks,
                        &o->grid);
}

/* Collective: the layout is one for all, so the bound is that of the rank with least memory. */
static void agree_limit(const quantize_run *q, uint64_t *limit) {
    *limit = memory_plan_limit(*limit);
    int64_t least = *limit ? -(int64_t)*limit : INT64_MIN;
    comm_max_i64(q->c, &least, 1);
    *limit = least == INT64_MIN ? 0 : (uint64_t)-least;
}

/* All but the rows of the embedding, and memory where --mem does not say. */
static err phase_wish(const quantize_run *q, const learn_settings *phase, int ranks,
                      bool one_machine, e2e_phase *p) {
    const llama_config *cfg = &q->source.cfg;
    const int64_t window = phase->window, slice = q->set->numerics.slice_tokens;
    p->w = (e2e_wish){.ranks = ranks,
                      .batch = phase->batch,
                      .replicas = q->flags.replicas,
                      .stages = q->flags.stages,
                      .recompute = q->flags.recompute,
                      .limit = q->flags.limit,
                      .slack = one_machine ? SLACK_ONE_MACHINE : SLACK_CLUSTER,
                      .load = {.checkpoint = q->source.ck,
                               .cfg = cfg,
                               .embed = &p->rows,
                               .compute = COMPUTE_BF16},
                      .sites = &p->o.sites,
                      .shape = {.compute = COMPUTE_BF16,
                                .window = window,
                                .slice = size_min(window, slice),
                                .through = phase->range_grad == RANGE_GRAD_THROUGH},
                      .objective = e2e_objective_of(phase->objective),
                      .top_k = size_min(phase->top_k, cfg->vocab)};
    err e = phase_options(q, phase, ranks, &p->o);
    p->w.weights = p->o.weights != NULL;
    if (!e.code) e = learn_e2e_check(&p->o, &p->w.shape);
    if (!e.code)
        p->w.fixed_bytes =
            learn_e2e_fixed_bytes(cfg, &p->o) + (p->o.scales ? learn_scales_bytes(q->set, cfg) : 0);
    return e;
}

static void phase_clear(e2e_phase *p) {
    e2e_layout_clear(&p->l);
    embed_rows_clear(&p->rows);
}

static void tell_layout(const quantize_run *q, const e2e_phase *p) {
    const e2e_layout *l = &p->l;
    const schedule_shape *g = schedule_get_shape(l->order);
    const int idle = comm_size(q->c) - l->replicas * l->stages;
    char bytes[32], left[48] = "";
    if (idle > 0) snprintf(left, sizeof left, "; %d ranks are idle", idle);
    log_line(LOG_PHASE,
             "%s: %d replicas x %d stages, %" PRId64 " windows each in %" PRId64
             " slices of %" PRId64 " tokens, up to %" PRId64
             " in flight%s; %s on the largest rank; waiting, simulated: %.0f %%%s",
             p->name, l->replicas, l->stages, g->windows, g->slices, p->w.shape.slice,
             schedule_in_flight(l->order, 0), g->recompute ? ", layers computed again" : "",
             size_text(l->bytes, bytes), 100 * l->idle, left);
}

/* Collective. */
static err phase_init(const quantize_run *q, int64_t k, e2e_phase *p) {
    const learn_settings *phase = &q->set->learn[k];
    *p = (e2e_phase){.w = {.ranks = 0}};
    snprintf(p->name, sizeof p->name, "learn.%" PRId64, k);
    const bool one_machine = comm_nodes(q->c) == 1;
    err e = phase_wish(q, phase, comm_size(q->c), one_machine, p);
    if (!e.code)
        e = embed_rows_init(q->calib_ids, q->calib_windows * p->o.length, q->source.cfg.vocab,
                            &p->rows);
    e = comm_agree(q->c, e, p->name, NULL);
    if (!e.code) {
        agree_limit(q, &p->w.limit);
        e = e2e_layout_choose(&p->w, &p->l);
        if (!e.code) e = schedule_check(p->l.order); /* before anyone waits for anyone by it */
        e = comm_agree(q->c, e, p->name, NULL);
    }
    if (e.code) phase_clear(p);
    return e;
}

err learn_e2e_announce(const quantize_run *q) {
    err e = err_none();
    for (int64_t k = 0; k < q->set->n_learn && !e.code; k++) {
        e2e_phase p;
        if (!learn_e2e_is(&q->set->learn[k])) continue;
        e = phase_init(q, k, &p);
        if (!e.code) tell_layout(q, &p);
        if (!e.code) phase_clear(&p);
    }
    return e;
}

/* How the ranks would share a phase: the memory of its largest stage, and what its time depends on.
 */
typedef struct estimate {
    memory_plan memory;
    int rank; /* number of that stage */
    int replicas, stages;
    double idle; /* share of the time of replicas * stages ranks */
    int64_t steps, looks, tokens, slice, window;
    bool recompute, through, teacher, weights;
    grid_shape grid;
} estimate;

/* The stage with most memory. */
static void largest_stage(const e2e_phase *p, estimate *out) {
    for (int s = 0; s < p->l.stages; s++) {
        memory_plan m = {.n = 0};
        e2e_layout_plan(&p->w, &p->l, s, &m);
        if (s && memory_plan_total(&m) <= memory_plan_total(&out->memory)) continue;
        out->memory = m;
        out->rank = s;
    }
}

/* The first stage holds rows->n rows of the embedding. Flags of the layout and --mem count; limit:
 * bytes of a rank where --mem is not given. */
static err estimate_phase(const quantize_run *q, int64_t k, int ranks, bool one_machine,
                          const embed_rows *rows, uint64_t limit, estimate *out) {
    const learn_settings *phase = &q->set->learn[k];
    e2e_phase p = {.w = {.ranks = 0}};
    *out = (estimate){.replicas = 0};
    err e = phase_wish(q, phase, ranks, one_machine, &p);
    p.w.load.embed = rows;
    if (!p.w.limit) p.w.limit = limit;
    if (!e.code) e = e2e_layout_choose(&p.w, &p.l);
    if (!e.code) {
        const schedule_shape *g = schedule_get_shape(p.l.order);
        largest_stage(&p, out);
        out->replicas = p.l.replicas;
        out->stages = p.l.stages;
        out->idle = p.l.idle;
        out->recompute = g->recompute;
        out->steps = p.o.steps;
        out->looks = p.o.kind == OPTIMIZER_ADAM ? learn_judge_looks(p.o.steps, E2E_JUDGE_EVERY) : 0;
        out->tokens = p.w.batch * p.w.shape.window;
        out->slice = p.w.shape.slice;
        out->window = p.w.shape.window;
        out->through = p.w.shape.through;
        out->teacher = p.w.objective->needs_teacher;
        out->weights = p.w.weights;
        out->grid = p.o.grid;
    }
    e2e_layout_clear(&p.l);
    return e;
}

static err load(const learner *l, const e2e_phase *p, bool active, llama_stage *stage) {
    const quantize_run *q = l->q;
    const int number = comm_rank(q->c) % p->l.stages;
    memory_plan plan = {.n = 0};
    err e = err_none();
    if (active) e2e_layout_plan(&p->w, &p->l, number, &plan);
    if (active) memory_plan_add(&plan, "program", q->base_bytes);
    if (active) memory_plan_add(&plan, "measuring products", product_peak_bytes(COMPUTE_BF16));
    if (active) learn_model_memory(l, comm_size(q->c), &plan);
    if (active && l->looks) learn_looks_memory(l, &plan);
    e = memory_plan_check(q->c, &plan, p->name, p->w.limit);
    if (e.code) return e;
    if (active) {
        const load_options o = e2e_layout_load(&p->w, p->l.ranges, p->l.stages, number);
        e = load_stage(&o, stage);
    }
    return comm_agree(q->c, e, "loading the weights", NULL);
}

static err step(void *self, learn_report *report) {
    return learn_e2e_step(self, report);
}

static err judge(void *self, learn_verdict *v) {
    return learn_e2e_judge(self, v);
}

static int64_t state_count(void *self) {
    return learn_e2e_state_count(self);
}

static int state_cell(void *self, byte_piece out[CAYLEY_STATE_PIECES]) {
    return learn_e2e_state_cell(self, out);
}

static err state_save(void *self, double *common) {
    return learn_e2e_state_save(self, common);
}

static err state_load(void *self, const double *common) {
    return learn_e2e_state_load(self, common);
}

static uint64_t replica_of(void *self, const void **data) {
    return learn_e2e_replica(self, data);
}

static err run(learner *l, int64_t k, const learn_saved *saved, e2e_phase *p,
               const llama_stage *stage, double *scales) {
    learn_e2e *r = NULL;
    err e = learn_e2e_create(l->q->c, &p->o, &p->w, &p->l, stage, l->R1, l->R2, &r);
    const learn_phase ops = {.self = r,
                             .number = k,
                             .steps = p->o.steps,
                             .commit_steps = 1,
                             .judge_every = E2E_JUDGE_EVERY,
                             .step = step,
                             .judge = p->o.kind == OPTIMIZER_ADAM ? judge : NULL,
                             .state_count = state_count,
                             .state_cell = state_cell,
                             .state_save = state_save,
                             .state_load = state_load,
                             .replica = replica_of};
    if (!e.code) e = learn_run_steps(l, &ops, saved);
    if (!e.code) learn_e2e_take(r, l->R1, l->R2);
    if (!e.code) learn_e2e_take_scales(r, scales);
    if (!e.code) p->passes = learn_e2e_passes(r);
    learn_e2e_destroy(&r);
    return e;
}

/* Scales where the phase learns them, by layer: p->o.scale_start, and what it ends with. */
static err run_with_scales(learner *l, int64_t k, const learn_saved *saved, e2e_phase *p,
                           const llama_stage *stage) {
    double *scales = NULL;
    if (!p->o.scales) return run(l, k, saved, p, stage, NULL);
    err e = MEM_NEW(&scales, l->n_scales - 1, "scales");
    e = comm_agree(l->q->c, e, p->name, NULL);
    if (!e.code) learn_scales_by_layer(l, scales, false);
    p->o.scale_start = scales;
    if (!e.code) e = run(l, k, saved, p, stage, scales);
    if (!e.code) learn_scales_by_layer(l, scales, true);
    mem_free(scales);
    return e.code ? e : learn_scales_adopt(l);
}

err learn_e2e_phase(learner *l, int64_t k, const learn_saved *saved) {
    quantize_run *q = l->q;
    e2e_phase p;
    err e = learn_sites_scale_cache(l);
    if (!e.code) e = phase_init(q, k, &p);
    if (e.code) return e;
    quantize_phase_start(q, p.name);
    llama_stage stage = {.cfg = learner_cfg(l)};
    const bool active = comm_rank(q->c) < p.l.replicas * p.l.stages;
    e = load(l, &p, active, &stage);
    if (!e.code) e = run_with_scales(l, k, saved, &p, active ? &stage : NULL);
    llama_stage_clear(&stage);
    phase_clear(&p);
    if (!e.code) quantize_phase_end(q, p.name, json_pack("{s:I}", "passes", (json_int_t)p.passes));
    return e;
}

/* Sums over the ranks that have the same layers in each replica: all of them, and from node to
 * node. bytes: of the layers of all stages. */
static plan_bytes peers_network(const plan_maker *m, const estimate *t, uint64_t bytes) {
    plan_bytes b = {.sent = bytes * (uint64_t)(t->replicas - 1)};
    int nodes = 0; /* of each stage those behind its first */
    for (int s = 0; s < t->stages; s++)
        for (int r = 1; r < t->replicas; r++)
            nodes +=
                !plan_on_one_node(m, (int64_t)r * t->stages + s, (int64_t)(r - 1) * t->stages + s);
    b.network = bytes / (uint64_t)t->stages * (uint64_t)nodes;
    return b;
}

/* Of each commit: of the stages of the first replica but its first one. */
static plan_bytes saved_network(const plan_maker *m, const estimate *t, uint64_t bytes) {
    const uint64_t one = bytes / (uint64_t)t->stages;
    plan_bytes b = {0};
    for (int s = 1; s < t->stages; s++)
        b = plan_add(b, (plan_bytes){one, plan_on_one_node(m, 0, s) ? 0 : one});
    return b;
}

/* The first step takes two passes, a judgement takes one with all that a step does but to move. */
static int64_t passes_of(const estimate *t) {
    return t->steps + 1 + t->looks;
}

/* Streams (also of a teacher) and their gradients of each pass, the steps of R1, of R2 and of
 * scales (`scales`: a bit for each kind that is learned), and of the latter two each commit. */
static plan_bytes e2e_network(const learner *l, const plan_maker *m, const estimate *t, bool r1,
                              optimizer_kind kind, uint32_t scales) {
    const llama_config *cfg = plan_config(m);
    const scale_sizes sizes = llama_scale_sizes(cfg);
    const int64_t saved_r2 = l->r2_heads * r2_part_state_each(kind, cfg->head_dim),
                  saved_scales = scales ? scale_part_state_each(&sizes, scales) : 0;
    const uint64_t layers = (uint64_t)cfg->layers,
                   r2 = layers * (uint64_t)learner_r2_entries(l) * sizeof(double),
                   s = layers * (uint64_t)scale_sizes_at(&sizes, scales, SCALE_KINDS) *
                       sizeof(double),
                   saved = layers * (uint64_t)(saved_r2 + saved_scales) * sizeof(double),
                   stream =
                       (t->teacher ? 3 : 2) * sizeof(float) * (uint64_t)(t->tokens * cfg->hidden);
    const double steps = (double)t->steps;
    const plan_bytes step =
        plan_add(plan_step_network(m, r1, false, sizeof(int64_t), sizeof(float)),
                 plan_add(saved_network(m, t, saved), peers_network(m, t, 2 * (r2 + s))));
    /* Replicas share the tokens. */
    const plan_bytes streams = plan_times((double)passes_of(t) / t->replicas,
                                          plan_to_next(m, t->replicas, t->stages, stream));
    return plan_add(plan_add(plan_r1_around_steps(m, r1, sizeof(float)), plan_to_all(m, r2 + s)),
                    plan_add(streams, plan_times(steps, step)));
}

err learn_e2e_plan(learner *l, plan_maker *m, int64_t k) {
    const plan_place *place = &m->p->place;
    const llama_config *cfg = plan_config(m);
    estimate t;
    plan_phase *f;
    char name[32];
    snprintf(name, sizeof name, "learn.%" PRId64, k);
    err e = plan_add_phase(m, name, &f);
    if (!e.code)
        e = estimate_phase(l->q, k, m->ranks, place->nodes == 1, &m->rows, place->limit, &t);
    if (e.code) return e;
    memory_plan p = t.memory;
    memory_plan_add(&p, "program", place->base_bytes);
    memory_plan_add(&p, "measuring products", product_peak_bytes(COMPUTE_BF16));
    learn_model_memory(l, m->ranks, &p);
    l->range = (stage_range){.n = m->p->most_layers};
    if (plan_find(m->p, "capture")) learn_looks_memory(l, &p);
    plan_offer(f, &p, t.rank);
    const bool r1 = rotation_set_r1(m->q->rotations) != NULL;
    const plan_pass pass = {.window = t.window,
                            .r1 = r1,
                            .through = t.through,
                            .recompute = t.recompute,
                            .teacher = t.teacher};
    const double all = (double)t.tokens * plan_time_pass(&m->rank, cfg, &pass);
    const double pass_s = all / (t.replicas * t.stages * (1 - t.idle)),
                 params = (double)cfg->layers * (double)llama_layer_params(cfg),
                 weights = t.weights ? (plan_time_round(&m->rank, params, m->q->job.how.search) +
                                        plan_time_fuse(&m->rank, cfg->hidden, params, r1, true)) /
                                           t.stages
                                     : 0,
                 move = r1 ? plan_time_cayley(&m->rank, cfg->hidden, plan_steppers(m, t.grid)) : 0;
    f->passes = passes_of(&t);
    f->looks = t.looks;
    f->seconds = (double)f->passes * pass_s + (double)(t.steps + t.looks) * weights +
                 (double)t.steps * move + plan_time_peak(&m->rank);
    f->units = t.steps;
    f->blind_s = 4 * pass_s + 3 * weights + move; /* judged, the first step, judged again */
    f->again_s = pass_s;
    f->busy = 1 - t.idle;
    const learn_settings *phase = &m->q->set->learn[k];
    plan_send(m, f, e2e_network(l, m, &t, r1, phase->optimizer, scales_learned(m->q->set, phase)));
    snprintf(f->note, sizeof f->note, "%d replicas x %d stages%s", t.replicas, t.stages,
             t.recompute ? ", layers computed again" : "");
    return e;
}
