/* Figures that more than one phase needs: cells of R1, bytes of a step over the wire, seconds of an
 * item. */
#include "jobs/run/phase_plan.h"

#include "base/size.h"
#include "rotations/cayley_dist.h"

#include <math.h>
#include <stdio.h>

err plan_add_phase(plan_maker *m, const char *name, plan_phase **out) {
    run_plan *p = m->p;
    if (p->n_phases == PLAN_MAX_PHASES)
        return err_make(ERR_USAGE, "learn", NULL, "more than %d phases are not planned",
                        PLAN_MAX_PHASES - 6);
    *out = &p->phases[p->n_phases++];
    **out = (plan_phase){.busy = 1};
    snprintf((*out)->name, sizeof(*out)->name, "%s", name);
    return err_none();
}

void plan_offer(plan_phase *f, const memory_plan *p, int rank) {
    if (f->memory.n && memory_plan_total(p) <= memory_plan_total(&f->memory)) return;
    f->memory = *p;
    f->rank = rank;
}

memory_plan plan_fresh(const plan_maker *m) {
    memory_plan p = {.n = 0};
    memory_plan_add(&p, "program", m->p->place.base_bytes);
    return p;
}

double plan_again_seconds(const plan_maker *m) {
    const plan_phase *f = plan_find(m->p, "capture");
    return f ? f->seconds : 0;
}

err plan_grid(const plan_maker *m, grid_shape *out) {
    return grid_resolve("numerics.grid", m->q->set->numerics.grid.text, plan_config(m)->hidden,
                        m->ranks, out);
}

int plan_steppers(const plan_maker *m, grid_shape grid) {
    const cayley_dist_options o = {
        .n = plan_config(m)->hidden, .kind = OPTIMIZER_ADAM, .grid = grid};
    return cayley_dist_beside_bytes(&o) > 0 ? m->ranks : grid.rows * grid.cols;
}

/* Every rank talks to every other alike, so of n nodes the share (n - 1)/n of the bytes leaves one;
 * all nodes send at once, at the rate of one each. Nothing is computed meanwhile: that is so for
 * GPTQ's sums and the gradients of R1, and too long for stages that pass windows on. The collective
 * calls of a unit (a step of range has ten) are trees of messages, each late by the latency. */
void plan_send(const plan_maker *m, plan_phase *f, uint64_t bytes) {
    const double nodes = m->p->place.nodes, alone = f->seconds;
    f->network += bytes;
    if (nodes < 2) return;
    enum { CALLS = 10 };
    const double s = (double)bytes * (nodes - 1) / nodes / nodes / m->rank.rates->network +
                     CALLS * (double)f->units * ceil(log2(nodes)) * m->rank.rates->latency;
    f->seconds += s;
    f->blind_s += s / (double)size_max(1, f->units);
    if (f->seconds > 0) f->busy *= alone / f->seconds;
}

uint64_t plan_step_network(const plan_maker *m, bool r1, bool rough) {
    cayley_dist_options o = {.n = plan_config(m)->hidden, .rough_gradient = rough};
    if (!r1 || plan_grid(m, &o.grid).code) return 0; /* refused by the phase itself */
    return cayley_dist_step_network(&o, m->ranks);
}

uint64_t plan_to_all(const plan_maker *m, uint64_t bytes) {
    return bytes * (uint64_t)(m->ranks - 1);
}

uint64_t plan_layers_to_first(const plan_maker *m, uint64_t bytes) {
    return bytes * (uint64_t)(plan_config(m)->layers - m->ranges[0].n);
}

uint64_t plan_layers_to_all(const plan_maker *m, uint64_t bytes) {
    const uint64_t layers = (uint64_t)plan_config(m)->layers;
    return plan_layers_to_first(m, bytes) + plan_to_all(m, bytes * layers);
}

uint64_t plan_r1_to_all(const plan_maker *m, bool r1) {
    const uint64_t n = (uint64_t)plan_config(m)->hidden;
    return r1 ? plan_to_all(m, n * n * sizeof(double)) : 0;
}

double plan_item_seconds(const plan_maker *m, int64_t item, bool round) {
    const quantize_run *q = m->q;
    const bool r1 = rotation_set_r1(q->rotations) != NULL;
    const bool dense = quantize_r1_bytes(q) > 0;
    const double numbers = quantize_item_cost(&q->job, item);
    const bool linears = item >= 1 && item <= plan_config(m)->layers;
    const double fuse = plan_time_fuse(&m->rank, plan_config(m)->hidden, numbers, r1, dense);
    return linears && round && settings_round_weights(q->set)
               ? fuse + plan_time_round(&m->rank, numbers, q->job.how.search)
               : fuse;
}
