/* plan_print - a plan for people and for programs. */
#ifndef SPINSHARD_JOBS_PLANNING_PLAN_PRINT_H
#define SPINSHARD_JOBS_PLANNING_PLAN_PRINT_H

#include "base/json.h"
#include "jobs/run/run_plan.h"

void plan_print(const run_plan *p);   /* local; for people, on stdout */
json_t *plan_json(const run_plan *p); /* local; new reference */
void plan_log(const run_plan *p);     /* local; in a few lines of the log */

#endif
