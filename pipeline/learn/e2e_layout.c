/* All factorizations of the number of ranks are tried, with and without recomputation; each is cut
 * by partition.h, measured in bytes and simulated by schedule.h. */
#include "pipeline/learn/e2e_layout.h"

#include "base/size.h"
#include "model/tensors.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

int64_t e2e_layout_windows(int64_t batch, int replicas, int replica) {
    return (batch - replica + replicas - 1) / replicas;
}

/* Work in parameters, forward, a token. What is not a product (norms, quantizers, transforms) costs
 * a layer about as much as 3000 parameters a channel: measured in bf16 on SmolLM2-135M, where that
 * is most of a layer; of a 70B's layer it is a tenth. The head's forward and backward come
 * together. */
schedule_costs e2e_layout_costs(const llama_config *cfg, bool through) {
    enum { PER_CHANNEL = 3000 };
    const double layer = (double)llama_layer_params(cfg) +
                         PER_CHANNEL * ((double)cfg->hidden + (double)cfg->intermediate);
    return (schedule_costs){.forward = layer,
                            .backward = layer * (through ? 1.35 : 1.05),
                            .head = 2 * (double)cfg->vocab * (double)cfg->hidden};
}

load_options e2e_layout_load(const e2e_wish *w, const stage_range *ranges, int stages, int stage) {
    load_options o = w->load;
    o.range = ranges[stage];
    o.head = stage == stages - 1;
    if (stage > 0) o.embed = NULL;
    return o;
}

static llama_pass_shape shape_of_stage(const e2e_wish *w, bool last) {
    llama_pass_shape shape = w->shape;
    shape.head = last;
    shape.top_k = last ? e2e_objective_kept(w->objective, w->top_k) : 0;
    return shape;
}

/* Without a checkpoint (tests make their weights) weights count for nothing. */
static uint64_t weights_bytes(const e2e_wish *w, const stage_range *ranges, int stages, int stage) {
    const load_options o = e2e_layout_load(w, ranges, stages, stage);
    return o.checkpoint ? load_stage_bytes(&o) : 0;
}

static uint64_t pass_bytes(const e2e_wish *w, const schedule *order, const stage_range *range,
                           int stage) {
    const schedule_shape *g = schedule_get_shape(order);
    const llama_pass_shape shape = shape_of_stage(w, stage == g->stages - 1);
    return e2e_pass_bytes(w->load.cfg, w->sites, &shape, range->n, schedule_in_flight(order, stage),
                          g->recompute, g->windows);
}

static uint64_t loop_bytes(const e2e_wish *w, const stage_range *range) {
    return w->weights ? weight_site_bytes(w->load.cfg, &w->shape, range->n) : 0;
}

static void cut_layers(const e2e_wish *w, int stages, stage_range *ranges) {
    const llama_config *cfg = w->load.cfg;
    const schedule_costs work = e2e_layout_costs(cfg, w->shape.through);
    const double params = (double)llama_layer_params(cfg), half = 2;
    const double row = half * (double)cfg->hidden;
    const double saved = (double)llama_saved_bytes(cfg, w->sites, &w->shape);
    const stage_costs c = {.layer_work = work.forward + work.backward,
                           .layer_memory = half * params + saved,
                           .first_memory = w->load.embed ? (double)w->load.embed->n * row : 0,
                           .last_work = work.head,
                           .last_memory = (double)cfg->vocab * row};
    int made;
    partition_stages(cfg->layers, &c, stages, ranges, &made);
}

/* One layout: its time a step, and the bytes of its largest rank. */
typedef struct candidate {
    int replicas, stages;
    double finish, busy;
    uint64_t bytes;
} candidate;

/* The order of one replica and its time a step. */
static err make_order(const e2e_wish *w, const stage_range *ranges, const schedule_shape *shape,
                      schedule **order, double *finish) {
    int64_t *layers = calloc((size_t)shape->stages, sizeof *layers);
    if (!layers) abort();
    schedule_costs costs = e2e_layout_costs(w->load.cfg, w->shape.through);
    for (int i = 0; i < shape->stages; i++) layers[i] = ranges[i].n;
    costs.layers = layers;
    double idle;
    err e = schedule_create(shape, &costs, order);
    if (!e.code && !schedule_simulate(*order, &costs, finish, &idle))
        e = err_make(ERR_BUG, "schedule", NULL, "the stages wait for each other");
    free(layers);
    return e;
}

static err try_order(const e2e_wish *w, const stage_range *ranges, const schedule_shape *shape,
                     candidate *c, schedule **order) {
    const schedule_costs costs = e2e_layout_costs(w->load.cfg, w->shape.through);
    err e = make_order(w, ranges, shape, order, &c->finish);
    c->busy = (double)(w->batch * shape->slices) *
              ((costs.forward + costs.backward) * (double)w->load.cfg->layers + costs.head);
    c->bytes = 0;
    for (int i = 0; i < shape->stages && !e.code; i++) {
        const uint64_t bytes = weights_bytes(w, ranges, shape->stages, i) +
                               pass_bytes(w, *order, &ranges[i], i) + loop_bytes(w, &ranges[i]) +
                               w->fixed_bytes;
        if (bytes > c->bytes) c->bytes = bytes;
    }
    return e;
}

/* What can be done about memory on given stages, from the cheapest in time on. */
static const struct {
    bool recompute;
    int64_t max_in_flight;
} means[] = {{false, 0}, {false, 2}, {false, 1}, {true, 0}, {true, 2}, {true, 1}};
enum { MEANS = sizeof means / sizeof means[0] };

static bool allowed(const e2e_wish *w, int i) {
    return w->recompute == RECOMPUTE_AUTO || (w->recompute == RECOMPUTE_ON) == means[i].recompute;
}

static bool fits(const e2e_wish *w, const candidate *c) {
    return !w->limit || c->bytes <= w->limit;
}

/* Of two, the one to take. `fastest` is the time of the fastest that fits. */
static bool better(const e2e_wish *w, const candidate *a, const candidate *b, double fastest) {
    const double most = fmax(1, w->slack) * fastest;
    const bool near_a = fits(w, a) && a->finish <= most, near_b = fits(w, b) && b->finish <= most;
    if (near_a != near_b) return near_a;
    return a->bytes < b->bytes;
}

/* Each layout with each of the means; what is best so far stays in *best with its order. */
static err try_stages(const e2e_wish *w, int stages, int replicas, double *fastest, bool taking,
                      candidate *best, e2e_layout *out) {
    stage_range *ranges = calloc((size_t)stages, sizeof *ranges);
    if (!ranges) abort();
    err e = err_none();
    cut_layers(w, stages, ranges);
    for (int i = 0; i < MEANS && !e.code; i++) {
        const schedule_shape shape = {.stages = stages,
                                      .windows = e2e_layout_windows(w->batch, replicas, 0),
                                      .slices = size_ceil_div(w->shape.window, w->shape.slice),
                                      .max_in_flight = means[i].max_in_flight,
                                      .recompute = means[i].recompute};
        candidate c = {.replicas = replicas, .stages = stages};
        schedule *order = NULL;
        if (!allowed(w, i)) continue;
        e = try_order(w, ranges, &shape, &c, &order);
        if (!e.code && fits(w, &c)) *fastest = fmin(*fastest, c.finish);
        if (!e.code && taking && (!best->stages || better(w, &c, best, *fastest))) {
            e2e_layout_clear(out);
            *best = c;
            out->order = order;
            out->ranges = calloc((size_t)stages, sizeof *ranges);
            if (!out->ranges) abort();
            for (int s = 0; s < stages; s++) out->ranges[s] = ranges[s];
            order = NULL;
        }
        schedule_destroy(&order);
    }
    free(ranges);
    return e;
}

/* All layouts twice: for the fastest time, then for the choice. */
static err try_all(const e2e_wish *w, double *fastest, bool taking, candidate *best,
                   e2e_layout *out) {
    const int64_t most = size_min(w->ranks, w->load.cfg->layers);
    err e = err_none();
    for (int stages = 1; stages <= most && !e.code; stages++) {
        if (w->stages && stages != w->stages) continue;
        const int64_t room = w->ranks / stages;
        int64_t replicas = w->replicas ? w->replicas : size_min(room, w->batch);
        if (replicas > room) continue;
        replicas = size_min(replicas, w->batch);
        e = try_stages(w, stages, (int)replicas, fastest, taking, best, out);
    }
    return e;
}

static err check_wish(const e2e_wish *w) {
    const int64_t replicas = size_max(1, w->replicas), stages = size_max(1, w->stages);
    if (w->stages > w->load.cfg->layers)
        return err_make(ERR_USAGE, "--stages", NULL,
                        "%" PRId64 " stages for %" PRId64 " layers: a stage has at least one",
                        w->stages, w->load.cfg->layers);
    if (replicas <= w->ranks / stages) return err_none();
    return err_make(ERR_USAGE, w->replicas ? "--replicas" : "--stages",
                    "start more ranks, or leave both flags out",
                    "%" PRId64 " replicas of %" PRId64 " stages on %d ranks", replicas, stages,
                    w->ranks);
}

err e2e_layout_choose(const e2e_wish *w, e2e_layout *out) {
    double fastest = INFINITY;
    candidate best = {0};
    *out = (e2e_layout){0};
    err e = check_wish(w);
    if (!e.code) e = try_all(w, &fastest, false, &best, out);
    if (!e.code) e = try_all(w, &fastest, true, &best, out);
    if (e.code) {
        e2e_layout_clear(out);
        return e;
    }
    out->replicas = best.replicas;
    out->stages = best.stages;
    out->bytes = best.bytes;
    out->idle = 1 - best.busy / (best.finish * best.replicas * best.stages);
    return e;
}

void e2e_layout_clear(e2e_layout *l) {
    schedule_destroy(&l->order);
    free(l->ranges);
    l->ranges = NULL;
}

err e2e_layout_order(const e2e_wish *w, const e2e_layout *l, int replica, schedule **out) {
    schedule_shape shape = *schedule_get_shape(l->order);
    double finish;
    shape.windows = e2e_layout_windows(w->batch, l->replicas, replica);
    return make_order(w, l->ranges, &shape, out, &finish);
}

void e2e_layout_plan(const e2e_wish *w, const e2e_layout *l, int stage, memory_plan *plan) {
    memory_plan_add(plan, "weights", weights_bytes(w, l->ranges, l->stages, stage));
    memory_plan_add(plan, "passes", pass_bytes(w, l->order, &l->ranges[stage], stage));
    if (w->weights) memory_plan_add(plan, "weights in the loop", loop_bytes(w, &l->ranges[stage]));
    memory_plan_add(plan, "rotations and sums", w->fixed_bytes);
}
