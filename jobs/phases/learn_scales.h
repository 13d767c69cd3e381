/* learn_scales - scales in closed form, layer-local: after the phases `range`, before those that
 * run the whole model. Each rank computes those of its layers; all ranks get all. */
#ifndef SPINSHARD_JOBS_PHASES_LEARN_SCALES_H
#define SPINSHARD_JOBS_PHASES_LEARN_SCALES_H

#include "jobs/phases/learner.h"
#include "jobs/run/phase.h"

/* Collective. From the moments and the pool, with R1 as it is; then into the set of q. */
err learn_scales(learner *l);
/* Collective. Scales that are known into the set of q, for sites and fusion. */
err learn_scales_adopt(learner *l);

/* Local. The phase of a plan. */
err learn_scales_plan(learner *l, plan_maker *m);

#endif
