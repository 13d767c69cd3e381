/* phase_plan - what a phase needs to say what it will take: the ranks and their rates, the cut of
 * the layers, and the plan that it adds its figures to. Each phase has a function beside what it
 * does that fills this in (jobs/run/phase.h); jobs/planning/plan_make.h calls them in order. */
#ifndef SPINSHARD_JOBS_RUN_PHASE_PLAN_H
#define SPINSHARD_JOBS_RUN_PHASE_PLAN_H

#include "jobs/run/quantize_run.h"
#include "jobs/run/run_plan.h"
#include "mpi/grid_shape.h"
#include "pipeline/plan/plan_time.h"
#include "pipeline/stages/load_stage.h"
#include "pipeline/stages/partition.h"

/* What the making of a plan carries from phase to phase. */
typedef struct plan_maker {
    quantize_run *q; /* a copy of the run: its recipe may be resolved further */
    run_plan *p;
    int ranks;
    plan_rank rank;
    int n_stages;        /* ranks with layers in the phases before those end to end, */
    stage_range *ranges; /* and the layers of each of the ranks; [ranks] */
    embed_rows rows;     /* rows of the embedding that the text uses; .n alone counts */
} plan_maker;

/* Local. A phase of that name at the end of the plan, into *out. ERR_USAGE where it is full. */
err plan_add_phase(plan_maker *m, const char *name, plan_phase **out);
/* Local. Keep the plan of the rank with the largest total. */
void plan_offer(plan_phase *f, const memory_plan *p, int rank);
memory_plan plan_fresh(const plan_maker *m); /* local; with the program alone in it */

/* Local. Seconds that a start spends before phases that are learned from captured rows can go on.
 */
double plan_again_seconds(const plan_maker *m);

/* Local. Shape of the grid of R1 on these ranks; ERR_USAGE, ERR_MISMATCH as grid_resolve. */
err plan_grid(const plan_maker *m, grid_shape *out);
/* Local. Ranks that share a Cayley step of R1: the cells, or all where a rank beside them holds a
 * part. */
int plan_steppers(const plan_maker *m, grid_shape grid);
/* What ranks send each other, all together, as mpi/comm.h counts it. */
typedef struct plan_bytes {
    uint64_t sent, network; /* all, and of these the bytes from node to node */
} plan_bytes;
plan_bytes plan_add(plan_bytes a, plan_bytes b);                  /* local */
plan_bytes plan_times(double times, plan_bytes b);                /* local */
bool plan_on_one_node(const plan_maker *m, int64_t a, int64_t b); /* local; two ranks */

/* Local. What ranks send in one step of R1, whose gradient goes in sum_bytes a number and whose R1
 * in r_bytes (cayley_dist_step_network; rough: as cayley_dist_options). Nothing without r1. */
plan_bytes plan_step_network(const plan_maker *m, bool r1, bool rough, int sum_bytes, int r_bytes);
/* Local. `bytes` in all, which one rank has, or the ranks have in parts, go to every rank. */
plan_bytes plan_to_all(const plan_maker *m, uint64_t bytes);
/* Local. `bytes` of each layer go from its owner to the first rank; and from there to all. */
plan_bytes plan_layers_to_first(const plan_maker *m, uint64_t bytes);
plan_bytes plan_layers_to_all(const plan_maker *m, uint64_t bytes);
/* Local. R1 in fp64 goes to every rank; nothing without r1. */
plan_bytes plan_r1_to_all(const plan_maker *m, bool r1);
/* Local. R1 around the steps of a phase: in fp64 and in r_bytes to every rank before the first, and
 * the learned one in fp64 at the end; nothing without r1. */
plan_bytes plan_r1_around_steps(const plan_maker *m, bool r1, int r_bytes);
/* Local. Each stage of each replica sends `bytes` to the next stage. */
plan_bytes plan_to_next(const plan_maker *m, int replicas, int stages, uint64_t bytes);
/* Local. The phase sends this: it and its time between nodes are added to f, whose seconds and
 * units are there. */
void plan_send(const plan_maker *m, plan_phase *f, plan_bytes b);
/* Local. Seconds of an item on a rank: fused, and rounded to nearest where `round` says so. */
double plan_item_seconds(const plan_maker *m, int64_t item, bool round);

static inline const llama_config *plan_config(const plan_maker *m) { /* local */
    return &m->q->source.cfg;
}

#endif
