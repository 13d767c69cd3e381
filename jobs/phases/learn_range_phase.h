/* learn_range_phase - a phase with the layer-local objective `range`. */
#ifndef SPINSHARD_JOBS_PHASES_LEARN_RANGE_PHASE_H
#define SPINSHARD_JOBS_PHASES_LEARN_RANGE_PHASE_H

#include "jobs/phases/learn_state.h"
#include "jobs/phases/learner.h"
#include "jobs/run/phase.h"

/* Collective. Phase k of learn, from `saved` if it is a state of it. */
err learn_range_phase(learner *l, int64_t k, const learn_saved *saved);
err learn_range_plan(learner *l, plan_maker *m, int64_t k); /* local; the phase of a plan */

#endif
