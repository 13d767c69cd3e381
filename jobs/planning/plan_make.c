/* The plan of a run: its phases with memory, time and bytes, from what the phases themselves say
 * that they allocate. */
#include "jobs/planning/plan.h"

#include "base/mem.h"
#include "base/size.h"
#include "jobs/phases/learn.h"
#include "jobs/setup/setup.h"
#include "mpi/grid_shape.h"
#include "pipeline/learn/capture_run.h"
#include "pipeline/plan/plan_time.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What the making of a plan carries from phase to phase. */
typedef struct maker {
    quantize_run *q;
    run_plan *p;
    int ranks;
    plan_rank rank;
    learner l;
    stage_range *ranges; /* [ranks] of the phases before those end to end */
    embed_rows rows;     /* .n alone counts */
    err e;               /* the first one */
} maker;

static const llama_config *config(const maker *m) {
    return &m->q->source.cfg;
}

/* Distinct tokens of a text of n (Heaps' law, as WikiText has it under vocabularies of 30 to 130
 * thousand: 1.3 thousand of 4 thousand, 20 thousand of 260 thousand). */
static int64_t guess_rows(int64_t vocab, int64_t n) {
    return size_min(vocab, (int64_t)(5.5 * pow((double)n, 0.657)));
}

static plan_phase *add_phase(maker *m, const char *name) {
    if (m->p->n_phases == PLAN_MAX_PHASES) {
        m->e = err_make(ERR_USAGE, "learn", NULL, "more than %d phases are not planned",
                        PLAN_MAX_PHASES - 6);
        return NULL;
    }
    plan_phase *f = &m->p->phases[m->p->n_phases++];
    *f = (plan_phase){.busy = 1};
    snprintf(f->name, sizeof f->name, "%s", name);
    return f;
}

/* Keep the plan of the rank with the largest total. */
static void offer(plan_phase *f, const memory_plan *p, int rank) {
    if (f->memory.n && memory_plan_total(p) <= memory_plan_total(&f->memory)) return;
    f->memory = *p;
    f->rank = rank;
}

static memory_plan fresh_plan(const maker *m) {
    memory_plan p = {.n = 0};
    memory_plan_add(&p, "program", m->p->place.base_bytes);
    return p;
}

static grid_shape grid_of(maker *m) {
    grid_shape g = {1, 1};
    err e = grid_resolve("numerics.grid", recipe_str(m->q->recipe, "numerics.grid"),
                         config(m)->hidden, m->ranks, &g);
    if (e.code && !m->e.code) m->e = e;
    return g;
}

/* Ranks that share a Cayley step of R1: the cells, or all where a rank beside them holds a part. */
static int steppers(const maker *m, grid_shape grid) {
    const cayley_dist_options o = {.n = config(m)->hidden, .kind = OPTIMIZER_ADAM, .grid = grid};
    return cayley_dist_beside_bytes(&o) > 0 ? m->ranks : grid.rows * grid.cols;
}

/* R1 over the wire in a step: the integers of its gradient to the cells, R1 in fp32 to all. */
static uint64_t step_network(const maker *m, bool r1) {
    const uint64_t n = (uint64_t)config(m)->hidden;
    return r1 ? n * n * 12 * (uint64_t)(m->ranks - 1) : 0;
}

/* ---- phases of learning ---- */

/* Windows go through in waves of as many as there are stages: forward of all, then backward. */
static void add_capture(maker *m) {
    const quantize_run *q = m->q;
    const llama_config *cfg = config(m);
    const int64_t window = recipe_int(q->recipe, "calib.window"), windows = q->calib_windows;
    const int stages = m->l.n_stages;
    const double wave = (double)size_max(1, size_min(stages, windows));
    double slowest = 0, work = 0, load = 0, start = 0;
    plan_phase *f = add_phase(m, "capture");
    if (!f) return;
    for (int r = 0; r < stages; r++) {
        m->l.range = m->ranges[r];
        const load_options lo = learn_capture_load(&m->l, r, &m->rows);
        memory_plan p = fresh_plan(m);
        learn_capture_memory(&m->l, &lo, &p);
        offer(f, &p, r);
        const double one = plan_time_capture(&m->rank, cfg, lo.range.n, lo.head, window);
        slowest = fmax(slowest, one);
        work += one / stages;
        load = fmax(load, plan_time_load(&m->rank, load_stage_bytes(&lo)));
        if (setup_starts_at(q->recipe, "pca"))
            start = fmax(start, plan_time_pca(&m->rank, cfg, lo.range.n, learn_pool_tokens(q)));
    }
    /* Where ranks share cores, those that wait leave theirs to others. */
    const double share = fmin(1, m->rank.cores),
                 waiting = share * slowest * (wave + stages - 1) / wave,
                 passes = (double)windows * fmax(waiting, work);
    f->seconds = load + passes + start;
    if (passes > 0) f->busy = work * (double)windows / passes;
    f->network = (uint64_t)(windows * window * cfg->hidden * 8 * (stages - 1));
}

static void add_range(maker *m, size_t k, const json_t *phase) {
    const llama_config *cfg = config(m);
    const grid_shape grid = grid_of(m);
    const int cells = grid.rows * grid.cols;
    const double steps = (double)json_integer_value(json_object_get(phase, "steps"));
    const double all = (double)json_integer_value(json_object_get(phase, "rows"));
    const bool r1 = rotation_set_r1(m->q->rotations) != NULL;
    const double samples = learn_weights_count(m->q->recipe, phase) ? 2 * all : all;
    double slowest = 0, work = 0;
    char name[32];
    snprintf(name, sizeof name, "learn.%zu", k);
    plan_phase *f = add_phase(m, name);
    if (!f) return;
    for (int r = 0; r < m->l.n_stages; r++) {
        m->l.range = m->ranges[r];
        memory_plan p = fresh_plan(m);
        learn_kept_memory(&m->l, &p);
        err e = learn_range_memory(&m->l, phase, m->ranks, r < cells, &p);
        if (e.code && !m->e.code) m->e = e;
        offer(f, &p, r);
        const double rows = r1 ? samples * (double)m->l.range.n / (double)cfg->layers : 0;
        const double one = plan_time_range(&m->rank, cfg, m->l.range.n, rows, m->l.r2_heads);
        slowest = fmax(slowest, one);
        work += one / m->l.n_stages;
    }
    const int movers = steppers(m, grid);
    const double step = r1 ? plan_time_cayley(&m->rank, cfg->hidden, movers) : 0;
    f->seconds = steps * (slowest + step);
    f->busy = (work + step * movers / m->ranks) / (slowest + step);
    f->network = (uint64_t)steps * step_network(m, r1);
    if (grid.rows * grid.cols > 1)
        snprintf(f->note, sizeof f->note, "R1 on a grid of %dx%d", grid.rows, grid.cols);
}

static void add_e2e(maker *m, size_t k) {
    const plan_place *place = &m->p->place;
    const llama_config *cfg = config(m);
    learn_e2e_estimate t;
    char name[32];
    snprintf(name, sizeof name, "learn.%zu", k);
    plan_phase *f = add_phase(m, name);
    if (!f) return;
    err e = learn_e2e_estimate_phase(m->q, (int64_t)k, m->ranks, place->nodes == 1, &m->rows,
                                     place->limit, &t);
    if (e.code) {
        if (!m->e.code) m->e = e;
        return;
    }
    memory_plan p = t.memory;
    memory_plan_add(&p, "program", place->base_bytes);
    offer(f, &p, t.rank);
    const bool r1 = rotation_set_r1(m->q->rotations) != NULL;
    const plan_pass pass = {.window = t.window,
                            .r1 = r1,
                            .through = t.through,
                            .recompute = t.recompute,
                            .teacher = t.kl};
    const double all = (double)t.tokens * plan_time_pass(&m->rank, cfg, &pass);
    double step = all / (t.replicas * t.stages * (1 - t.idle));
    const double params = (double)cfg->layers * (double)llama_layer_params(cfg);
    if (t.weights)
        step += (plan_time_round(&m->rank, params, m->q->job.how.search) +
                 plan_time_fuse(&m->rank, cfg->hidden, params, r1, true)) /
                t.stages;
    if (r1) step += plan_time_cayley(&m->rank, cfg->hidden, steppers(m, t.grid));
    f->seconds = (double)(t.steps + 1) * step; /* the first passes twice */
    f->busy = 1 - t.idle;
    f->network = (uint64_t)t.steps *
                 (step_network(m, r1) + (uint64_t)(t.tokens * cfg->hidden * 8 * (t.stages - 1)));
    snprintf(f->note, sizeof f->note, "%d replicas x %d stages%s", t.replicas, t.stages,
             t.recompute ? ", layers computed again" : "");
}

static void add_scales(maker *m) {
    enum { STEPS = 60, PASSES = 6 };
    const llama_config *cfg = config(m);
    plan_phase *f = add_phase(m, "scales");
    int64_t most = 0;
    if (!f) return;
    for (int r = 0; r < m->l.n_stages; r++) {
        m->l.range = m->ranges[r];
        memory_plan p = fresh_plan(m);
        learn_kept_memory(&m->l, &p);
        learn_scales_memory(&m->l, &p);
        offer(f, &p, r);
        most = size_max(most, m->l.range.n);
    }
    const double numbers = 2.0 * (double)(most * learn_pool_tokens(m->q) * cfg->hidden);
    if (recipe_list_has(m->q->recipe, "scale.pairs", "norm"))
        f->seconds = STEPS * PASSES * numbers / (m->rank.rates->vector * m->rank.cores);
}

static void add_learning(maker *m) {
    const json_t *phases = recipe_get(m->q->recipe, "learn");
    bool scales = m->l.scale_kinds != 0;
    if (learn_needs_rows(m->q, 0, true) || scales) add_capture(m);
    for (size_t k = 0; k < json_array_size(phases) && !m->e.code; k++) {
        const json_t *phase = json_array_get(phases, k);
        if (learn_e2e_is(phase) && scales) {
            add_scales(m);
            scales = false;
        }
        if (learn_e2e_is(phase))
            add_e2e(m, k);
        else
            add_range(m, k, phase);
    }
    if (scales && !m->e.code) add_scales(m);
}

/* ---- weights ---- */

/* Seconds of an item on a rank: fused, and rounded to nearest. */
static double item_seconds(const maker *m, int64_t item, bool round) {
    const quantize_run *q = m->q;
    const bool r1 = rotation_set_r1(q->rotations) != NULL;
    const bool dense = r1 && (json_array_size(recipe_get(q->recipe, "learn")) ||
                              !recipe_is(q->recipe, "rotate.start", "had"));
    const double numbers = quantize_item_cost(&q->job, item);
    const bool linears = item >= 1 && item <= config(m)->layers;
    const double fuse = plan_time_fuse(&m->rank, config(m)->hidden, numbers, r1, dense);
    return linears && round ? fuse + plan_time_round(&m->rank, numbers, q->job.how.search) : fuse;
}

/* GPTQ has the layers; what is left for rounding to nearest are the tables. */
static double add_gptq(maker *m, plan_phase *f) {
    const quantize_run *q = m->q;
    const llama_config *cfg = config(m);
    const int64_t window = recipe_int(q->recipe, "calib.window");
    const double tokens = (double)(q->calib_windows * window);
    gptq_thrift t = quantize_gptq_thrift(q);
    plan_phase layers;
    for (bool over = true; over;) {
        layers = (plan_phase){.busy = 1};
        for (int r = 0; r < m->ranks && !m->e.code; r++) {
            memory_plan p = fresh_plan(m);
            m->e = quantize_gptq_memory(q, m->ranks, r, &t, &p);
            offer(&layers, &p, r);
        }
        over = m->p->place.limit && memory_plan_total(&layers.memory) > m->p->place.limit &&
               quantize_gptq_thriftier(q, m->ranks, &t);
    }
    offer(f, &layers.memory, layers.rank);
    quantize_gptq_thrift_text(&t, f->note);
    /* Numbers of 8 bytes: a triangle of sums, one of the factor for each part of each rounding, the
     * cross terms; then fused weights to all, and their codes. */
    const bool asymmetric = recipe_is(q->recipe, "weights.method", "gptaq");
    const int64_t o = cfg->heads * cfg->head_dim, roundings = asymmetric ? PLAN_GPTAQ_ROUNDINGS : 1;
    const int64_t squares =
        2 * cfg->hidden * cfg->hidden + o * o + cfg->intermediate * cfg->intermediate;
    const int64_t numbers = squares * (1 + t.batches * roundings) / 2 + (asymmetric ? squares : 0);
    f->network = (uint64_t)cfg->layers * (uint64_t)(m->ranks - 1) *
                 ((uint64_t)numbers * 8 + (uint64_t)llama_layer_params(cfg) * (sizeof(float) + 1));
    grid_shape g = {1, 1};
    if (!recipe_is(q->recipe, "numerics.gptq_grid", "auto") && !m->e.code)
        m->e = grid_resolve("numerics.gptq_grid", recipe_str(q->recipe, "numerics.gptq_grid"),
                            cfg->hidden, m->ranks, &g);
    const plan_gptq how = {.tokens = tokens,
                           .window = window,
                           .ranks = m->ranks,
                           .cells = g.rows * g.cols,
                           .grid_from = recipe_int(q->recipe, "numerics.gptq_grid_from"),
                           .asymmetric = asymmetric,
                           .search = q->job.how.search};
    double fuse = 0; /* linears are dealt to ranks */
    for (int64_t i = 1; i <= cfg->layers; i++) fuse += item_seconds(m, i, false);
    return (double)cfg->layers * plan_time_gptq_layer(&m->rank, cfg, &how) +
           fuse / (double)size_min(m->ranks, LLAMA_LINEARS);
}

static void add_items(maker *m) {
    const quantize_run *q = m->q;
    const plan_place *place = &m->p->place;
    const int active = (int)size_min(m->ranks, q->n_items);
    double *load = calloc((size_t)m->ranks, sizeof *load), slowest = 0, all = 0;
    plan_phase *f = add_phase(m, "gptq");
    if (!load) abort();
    const bool gptq = quantize_uses_gptq(q->recipe);
    for (int64_t i = 0; i < q->n_items; i++) {
        const bool layer = i >= 1 && i <= config(m)->layers;
        if (!gptq || !layer) load[q->owner[i]] += item_seconds(m, i, true);
    }
    for (int r = 0; r < m->ranks; r++) {
        slowest = fmax(slowest, load[r]);
        all += load[r];
    }
    for (int r = 0; f && r < active; r++) {
        memory_plan p = fresh_plan(m);
        quantize_items_memory(q, r, place->limit, &p);
        offer(f, &p, r);
    }
    free(load);
    if (!f) return;
    if (gptq) slowest += add_gptq(m, f);
    const double disk = (double)m->p->read_bytes / (m->rank.rates->read * place->nodes) +
                        (double)m->p->run_bytes / (m->rank.rates->write * place->nodes);
    f->seconds = fmax(slowest, (double)m->p->read_bytes / (m->rank.rates->read * place->nodes)) +
                 (double)m->p->run_bytes / (m->rank.rates->write * place->nodes);
    if (!gptq && slowest > 0 && slowest > disk) f->busy = all / m->ranks / slowest;
}

/* Objects into tars; then they are flushed, read back and hashed. */
static void add_files(maker *m) {
    enum { PIECE = 4 << 20 };
    const plan_place *place = &m->p->place;
    const double bytes = (double)m->p->archive_bytes, nodes = place->nodes;
    const double readers = (double)size_min(m->ranks, m->p->tars);
    const plan_rates *r = m->rank.rates;
    plan_phase *pack = add_phase(m, "pack"), *verify = add_phase(m, "verify");
    if (!pack || !verify) return;
    memory_plan p = fresh_plan(m);
    memory_plan_add(&p, "piece of a unit", PIECE);
    offer(pack, &p, 0);
    offer(verify, &p, 0);
    pack->seconds = bytes / (r->write * nodes); /* objects are in the page cache */
    verify->seconds = bytes / (r->write * nodes) + bytes / (r->hash * readers);
}

static void count(maker *m) {
    run_plan *p = m->p;
    const quantize_run *q = m->q;
    p->params = llama_params(config(m));
    p->layers = p->least_layers = config(m)->layers;
    for (int r = 0; r < m->l.n_stages; r++) {
        p->least_layers = size_min(p->least_layers, m->ranges[r].n);
        p->most_layers = size_max(p->most_layers, m->ranges[r].n);
    }
    p->idle_ranks = m->ranks - (int)size_min(m->ranks, size_max(m->l.n_stages, q->n_items));
    p->read_bytes = hf_checkpoint_bytes(q->source.ck);
    p->read_files = hf_checkpoint_shards(q->source.ck);
    p->archive_bytes = p->run_bytes = layout_total_bytes(q->layout);
    p->tars = layout_parts(q->layout);
    p->other_files =
        4 + (rotation_set_r1(q->rotations) != NULL); /* manifest, recipe, run, events */
}

/* numerics.gptq_grid: auto, as a run with so many ranks resolves it; true where it was. */
static bool choose_gptq_grid(quantize_run *q, int ranks) {
    const llama_config *c = &q->source.cfg;
    const int64_t n = size_max(c->intermediate, size_max(c->hidden, c->heads * c->head_dim));
    char text[24];
    if (!quantize_uses_gptq(q->recipe) || !recipe_is(q->recipe, "numerics.gptq_grid", "auto") ||
        n < recipe_int(q->recipe, "numerics.gptq_grid_from"))
        return false;
    const grid_shape g = grid_choose(size_max(n, GRID_MIN_ORDER), ranks);
    recipe_put(q->recipe, "numerics.gptq_grid", json_string(grid_text(g, text)));
    return true;
}

err plan_make(quantize_run *q, const plan_place *place, const plan_rates *rates, int64_t used_rows,
              run_plan *out) {
    *out = (run_plan){.place = *place, .rates = *rates};
    maker m = {.q = q, .p = out, .ranks = place->nodes * place->ranks_per_node};
    m.rank = (plan_rank){.rates = &out->rates, .cores = place->cores_per_rank};
    m.l = (learner){.q = q, .r2_heads = rotation_set_r2_count(q->rotations)};
    m.rows.n = used_rows;
    if (!m.rows.n)
        m.rows.n =
            guess_rows(config(&m)->vocab, q->calib_windows * recipe_int(q->recipe, "calib.window"));
    m.ranges = calloc((size_t)m.ranks, sizeof *m.ranges);
    if (!m.ranges) abort();
    quantize_resolve_slices(q);
    const bool chosen = choose_gptq_grid(q, m.ranks);
    m.e = learn_scales_init(&m.l);
    learn_cut(&m.l, m.ranks, m.ranges, &m.l.n_stages);
    if (!m.e.code) m.e = quantize_deal(q, m.ranks);
    if (!m.e.code) count(&m);
    if (!m.e.code) add_learning(&m);
    if (!m.e.code) add_items(&m);
    if (!m.e.code) add_files(&m);
    if (chosen) recipe_put(q->recipe, "numerics.gptq_grid", json_string("auto"));
    mem_free(m.l.scales);
    free(m.ranges);
    return m.e;
}

/* ---- questions ---- */

const plan_phase *plan_find(const run_plan *p, const char *name) {
    for (int i = 0; i < p->n_phases; i++)
        if (!strcmp(p->phases[i].name, name)) return &p->phases[i];
    return NULL;
}

const plan_phase *plan_largest(const run_plan *p) {
    const plan_phase *best = &p->phases[0];
    for (int i = 1; i < p->n_phases; i++)
        if (memory_plan_total(&p->phases[i].memory) > memory_plan_total(&best->memory))
            best = &p->phases[i];
    return best;
}

double plan_seconds(const run_plan *p) {
    double sum = 0;
    for (int i = 0; i < p->n_phases; i++) sum += p->phases[i].seconds;
    return sum;
}

bool plan_fits(const run_plan *p) {
    return !p->place.limit || memory_plan_total(&plan_largest(p)->memory) <= p->place.limit;
}

err plan_refuse(const run_plan *p, const char *hint) {
    const plan_phase *f = plan_largest(p);
    const memory_plan *m = &f->memory;
    char need[32], have[32], most[32];
    int b = 0;
    if (plan_fits(p)) return err_none();
    for (int i = 1; i < m->n; i++)
        if (m->buffers[i].bytes > m->buffers[b].bytes) b = i;
    return err_make(
        ERR_NOFIT, f->name, hint, "needs %s on rank %d (most of it %s, %s), and a rank has %s (%s)",
        size_text(memory_plan_total(m), need), f->rank, m->buffers[b].name,
        size_text(m->buffers[b].bytes, most), size_text(p->place.limit, have), p->place.limit_from);
}
