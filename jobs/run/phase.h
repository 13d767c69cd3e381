/* phase - one thing that quantize does, and what it takes, side by side: a file of jobs/phases/ has
 * its functions, and the table in jobs/quantize.c its row. Plans and runs walk the same table. */
#ifndef SPINSHARD_JOBS_RUN_PHASE_H
#define SPINSHARD_JOBS_RUN_PHASE_H

#include "jobs/run/phase_plan.h"
#include "jobs/run/quantize_run.h"

typedef struct quantize_phase {
    const char *name; /* for readers of the table */
    /* Local. The recipe asks for it; the same on every rank. NULL: every recipe does. */
    bool (*wanted)(const quantize_run *q);
    /* Local. Memory, time and bytes of it as one or more phases of the plan m->p. */
    err (*plan)(plan_maker *m);
    /* Collective on q->c. Does what of it is not done yet; returns the same error on every rank. */
    err (*run)(quantize_run *q);
} quantize_phase;

typedef struct phase_table {
    const quantize_phase *phases; /* [n], in the order in which they run */
    int n;
} phase_table;

static inline bool phase_is_wanted(const quantize_phase *p, const quantize_run *q) { /* local */
    return !p->wanted || p->wanted(q);
}

#endif
