/* plan_nodes - whether Slurm has nodes for the job of a plan, where it can be asked. */
#ifndef SPINSHARD_JOBS_PLANNING_PLAN_NODES_H
#define SPINSHARD_JOBS_PLANNING_PLAN_NODES_H

#include "jobs/planning/plan_script.h"

/* Local. The partition that --partition names must have such nodes: ERR_USAGE where there is none
 * of that name, ERR_NOFIT saying what it has. Without --partition the default one is looked at and
 * a warning is all. Silent where there is no Slurm. */
err plan_check_nodes(const run_plan *p, const plan_job *job);

#endif
