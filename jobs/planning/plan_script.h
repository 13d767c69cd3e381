/* plan_script - a Slurm script that runs quantize as planned. */
#ifndef SPINSHARD_JOBS_PLANNING_PLAN_SCRIPT_H
#define SPINSHARD_JOBS_PLANNING_PLAN_SCRIPT_H

#include "jobs/run/run_plan.h"
#include "jobs/setup/options.h"

typedef struct plan_job {
    const options *o; /* borrowed: model, recipe and the flags that quantize takes too */
    const char *out;
    const char *name; /* of the job */
    double limit_s;   /* wall clock of a job; 0: not given */
    double lead_s;    /* so long before its end it is told to stop */
    int64_t chain;    /* jobs that the script submits, each after the one before; 0: it requeues */
} plan_job;

/* Local. What of its flags and files would make such a job fail as it starts: ERR_USAGE, ERR_INPUT.
 */
err plan_check_job(const plan_job *job);

/* Local. Published whole. A file that is there and is not as this function left it was edited, or
 * is another one: ERR_USAGE, but for --force. */
err plan_write_script(const char *path, const run_plan *p, const plan_job *job);

#endif
