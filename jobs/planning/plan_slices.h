/* plan_slices - a run cut into jobs of limited time: how long before its end each must be told to
 * stop, how many there will be, what is done again in each, and whether each comes forward at all.
 * Arithmetic on a run_plan; the phases say what of them is kept (plan_phase). */
#ifndef SPINSHARD_JOBS_PLANNING_PLAN_SLICES_H
#define SPINSHARD_JOBS_PLANNING_PLAN_SLICES_H

#include "jobs/run/run_plan.h"

typedef struct plan_slices {
    double lead_s;           /* from the signal to the end of the job */
    const plan_phase *waits; /* the phase with the longest unit, which sets lead_s */
    int64_t n;               /* jobs, where times are the longest of the plan; 1 without a limit */
    double again_s;          /* work that is done more than once, in all */
    const plan_phase *stuck; /* of this phase a job finishes nothing; NULL: all come forward */
    double least_s;          /* the shortest limit under which that is not so */
} plan_slices;

/* Local. limit_s: wall clock of a job, 0 for none. */
plan_slices plan_slices_of(const run_plan *p, double limit_s);
/* Local. ERR_NOFIT where a job of limit_s finishes nothing of some phase, for ever. */
err plan_slices_refuse(const run_plan *p, double limit_s);

#endif
