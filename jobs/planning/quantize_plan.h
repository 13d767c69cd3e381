/* quantize_plan - the plan of a run that begins: printed, held against what a rank has, and kept so
 * that each phase can be held against it. */
#ifndef SPINSHARD_JOBS_PLANNING_QUANTIZE_PLAN_H
#define SPINSHARD_JOBS_PLANNING_QUANTIZE_PLAN_H

#include "jobs/run/phase.h"

/* Collective on q->c. The plan of these phases into q->plan, told; ERR_NOFIT, agreed, where one
 * does not fit. */
err quantize_plan(quantize_run *q, const phase_table *phases);

#endif
