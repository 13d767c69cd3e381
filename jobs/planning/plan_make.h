/* plan_make - the plan of a run, from the recipe, config.json and headers; never from weights. Each
 * phase says what it will take (jobs/run/phase.h); the same functions say what the phases allocate,
 * so that plan and run cannot drift apart. `spinshard plan` prints it for any cluster; quantize
 * prints it for the ranks it has and holds each phase against it. First arrow of the way: options
 * -> plan. */
#ifndef SPINSHARD_JOBS_PLANNING_PLAN_MAKE_H
#define SPINSHARD_JOBS_PLANNING_PLAN_MAKE_H

#include "jobs/run/phase.h"
#include "jobs/run/run_plan.h"

/* Local. The plan of these phases. q has recipe, source, rotations and quantize_describe behind it;
 * its calibration windows count and are not read. q is not changed: the plan works on a copy of its
 * recipe and deals items anew. used_rows: rows of the embedding that the calibration text uses; 0:
 * guessed. Fails with ERR_USAGE, ERR_NOFIT (not: too small). */
err plan_make(const phase_table *phases, const quantize_run *q, const plan_place *place,
              const plan_rates *rates, int64_t used_rows, run_plan *out);

#endif
