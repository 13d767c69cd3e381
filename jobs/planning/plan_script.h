/* plan_script - a Slurm script that runs quantize as planned. */
#ifndef SPINSHARD_JOBS_PLANNING_PLAN_SCRIPT_H
#define SPINSHARD_JOBS_PLANNING_PLAN_SCRIPT_H

#include "jobs/run/run_plan.h"
#include "jobs/setup/options.h"

/* Local. A Slurm script that runs quantize as planned; published whole. */
typedef struct plan_job {
    const options *o; /* borrowed: model, recipe and the flags that quantize takes too */
    const char *out;
    double limit_s; /* wall clock of a job; 0: not given */
    double lead_s;  /* so long before its end it is told to stop */
} plan_job;
err plan_write_script(const char *path, const run_plan *p, const plan_job *job);

#endif
