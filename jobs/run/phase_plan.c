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
    if (!f) return 0;
    return f->saved_bytes ? f->read_back_s : f->seconds;
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

plan_bytes plan_add(plan_bytes a, plan_bytes b) {
    return (plan_bytes){.sent = a.sent + b.sent, .network = a.network + b.network};
}

plan_bytes plan_times(double times, plan_bytes b) {
    return (plan_bytes){.sent = (uint64_t)(times * (double)b.sent),
                        .network = (uint64_t)(times * (double)b.network)};
}

/* Launchers fill node by node. */
bool plan_on_one_node(const plan_maker *m, int64_t a, int64_t b) {
    return a / m->p->place.ranks_per_node == b / m->p->place.ranks_per_node;
}

/* All nodes send at once, at the rate of one each. Nothing is computed meanwhile: that is so for
 * GPTQ's sums and the gradients of R1, and too long for stages that pass windows on. The collective
 * calls of a unit (a step of range has ten) are trees of messages, each late by the latency. */
void plan_send(const plan_maker *m, plan_phase *f, plan_bytes b) {
    const double nodes = m->p->place.nodes, alone = f->seconds;
    f->sent += b.sent;
    f->network += b.network;
    if (nodes < 2) return;
    enum { CALLS = 10 };
    const double s = (double)b.network / nodes / m->rank.rates->network +
                     CALLS * (double)f->units * ceil(log2(nodes)) * m->rank.rates->latency;
    f->seconds += s;
    f->blind_s += s / (double)size_max(1, f->units);
    if (f->seconds > 0) f->busy *= alone / f->seconds;
}

plan_bytes plan_to_all(const plan_maker *m, uint64_t bytes) {
    return (plan_bytes){.sent = bytes * (uint64_t)(m->ranks - 1),
                        .network = bytes * (uint64_t)(m->p->place.nodes - 1)};
}

plan_bytes plan_step_network(const plan_maker *m, bool r1, bool rough, int sum_bytes, int r_bytes) {
    cayley_dist_options o = {.n = plan_config(m)->hidden, .rough_gradient = rough};
    if (!r1 || plan_grid(m, &o.grid).code) return (plan_bytes){0}; /* refused by the phase itself */
    return plan_to_all(m, cayley_dist_step_network(&o, sum_bytes, r_bytes));
}

plan_bytes plan_layers_to_first(const plan_maker *m, uint64_t bytes) {
    plan_bytes b = {0};
    for (int r = 1; r < m->n_stages; r++) {
        const uint64_t own = bytes * (uint64_t)m->ranges[r].n;
        b = plan_add(b, (plan_bytes){own, plan_on_one_node(m, 0, r) ? 0 : own});
    }
    return b;
}

plan_bytes plan_layers_to_all(const plan_maker *m, uint64_t bytes) {
    return plan_add(plan_layers_to_first(m, bytes),
                    plan_to_all(m, bytes * (uint64_t)plan_config(m)->layers));
}

plan_bytes plan_r1_to_all(const plan_maker *m, bool r1) {
    const uint64_t n = (uint64_t)plan_config(m)->hidden;
    return r1 ? plan_to_all(m, n * n * sizeof(double)) : (plan_bytes){0};
}

plan_bytes plan_r1_around_steps(const plan_maker *m, bool r1, int r_bytes) {
    cayley_dist_options o = {.n = plan_config(m)->hidden};
    if (!r1 || plan_grid(m, &o.grid).code) return (plan_bytes){0}; /* refused by the phase itself */
    return plan_add(plan_r1_to_all(m, r1),
                    plan_to_all(m, cayley_dist_get_network(&o, r_bytes + (int)sizeof(double))));
}

plan_bytes plan_to_next(const plan_maker *m, int replicas, int stages, uint64_t bytes) {
    plan_bytes b = {0};
    for (int r = 0; r < replicas * stages; r++) {
        if (r % stages == stages - 1) continue;
        b = plan_add(b, (plan_bytes){bytes, plan_on_one_node(m, r, r + 1) ? 0 : bytes});
    }
    return b;
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
