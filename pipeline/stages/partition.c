/* Contiguous stages: each load that the largest stage could have (so many layers, with the
 * embedding, the head or neither) is tried as a limit and filled greedily. Independent items: the
 * costliest first, to the rank with the least load. */
#include "pipeline/stages/partition.h"

#include "model/tensors.h"

#include <float.h>
#include <stdlib.h>

stage_costs partition_costs(const llama_config *cfg, int64_t embed_rows) {
    double layer = (double)llama_layer_params(cfg), head = (double)cfg->vocab * (double)cfg->hidden;
    stage_costs c = {
        .layer_work = layer,
        .layer_memory = layer,
        .first_memory = (double)embed_rows * (double)cfg->hidden,
        .last_work = head,
        .last_memory = head,
    };
    return c;
}

typedef struct weights {
    double layer, first,
        last; /* of a layer, the first and the last stage, as a share of the whole */
} weights;

static weights shares(int64_t n_layers, const stage_costs *c) {
    double n = (double)n_layers;
    double work = n * c->layer_work + c->first_work + c->last_work;
    double memory = n * c->layer_memory + c->first_memory + c->last_memory;
    weights w = {
        .layer = 0.5 * (c->layer_work / work + c->layer_memory / memory),
        .first = 0.5 * (c->first_work / work + c->first_memory / memory),
        .last = 0.5 * (c->last_work / work + c->last_memory / memory),
    };
    return w;
}

static double load_of(const weights *w, int stage, int stages, int64_t n) {
    double load = (double)n * w->layer;
    if (stage == 0) load += w->first;
    if (stage == stages - 1) load += w->last;
    return load;
}

/* Largest load of the best cut where every stage takes what fits under `limit`, front to back:
 * greedy is optimal for contiguous cuts under a limit. True if all layers are placed. */
static bool fill(const weights *w, int stages, int64_t n_layers, double limit,
                 stage_range *ranges) {
    int64_t left = n_layers, at = 0;
    for (int s = 0; s < stages; s++) {
        int64_t must_leave = stages - 1 - s; /* every later stage gets a layer */
        double extra = load_of(w, s, stages, 0), room = (limit - extra) / w->layer;
        int64_t n = room < 1 ? 1 : (int64_t)(room + 1e-9);
        if (n > left - must_leave) n = left - must_leave;
        ranges[s].first = at;
        ranges[s].n = n;
        at += n;
        left -= n;
    }
    return left == 0;
}

static double largest(const weights *w, int stages, const stage_range *ranges) {
    double most = 0;
    for (int s = 0; s < stages; s++) {
        double load = load_of(w, s, stages, ranges[s].n);
        if (load > most) most = load;
    }
    return most;
}

void partition_stages(int64_t n_layers, const stage_costs *costs, int ranks, stage_range *ranges,
                      int *n_stages) {
    int stages = ranks < n_layers ? ranks : (int)n_layers;
    weights w = shares(n_layers, costs);
    double best = DBL_MAX, best_limit = 0;
    /* The optimum is the load of some stage with some number of layers: try each as the limit. */
    for (int kind = 0; kind < 3; kind++) {
        for (int64_t n = 1; n <= n_layers; n++) {
            double limit = (double)n * w.layer + (kind == 1 ? w.first : kind == 2 ? w.last : 0);
            if (stages == 1) limit += w.first + w.last;
            if (!fill(&w, stages, n_layers, limit, ranges)) continue;
            double most = largest(&w, stages, ranges);
            if (most < best) {
                best = most;
                best_limit = limit;
            }
        }
    }
    fill(&w, stages, n_layers, best_limit, ranges);
    for (int s = stages; s < ranks; s++) ranges[s] = (stage_range){.first = n_layers, .n = 0};
    *n_stages = stages;
}

typedef struct item {
    double cost;
    int64_t index;
} item;

static int by_falling_cost(const void *a, const void *b) {
    const item *x = a, *y = b;
    if (x->cost != y->cost) return x->cost < y->cost ? 1 : -1;
    return x->index < y->index ? -1 : x->index > y->index;
}

err partition_items(const double *cost, int64_t n_items, int ranks, int *owner) {
    item *items = calloc((size_t)n_items + 1, sizeof *items);
    double *load = calloc((size_t)ranks, sizeof *load);
    err e = err_none();
    if (!items || !load) e = err_make(ERR_NOFIT, "partition", NULL, "no memory");
    for (int64_t i = 0; !e.code && i < n_items; i++) items[i] = (item){cost[i], i};
    if (!e.code) qsort(items, (size_t)n_items, sizeof *items, by_falling_cost);
    for (int64_t i = 0; !e.code && i < n_items; i++) {
        int least = 0;
        for (int r = 1; r < ranks; r++)
            if (load[r] < load[least]) least = r;
        load[least] += items[i].cost;
        owner[items[i].index] = least;
    }
    free(items);
    free(load);
    return e;
}
