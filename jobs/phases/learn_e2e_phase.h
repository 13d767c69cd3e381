/* learn_e2e_phase - a phase with an objective at the end of the model: `ce` or `kl-top`. */
#ifndef SPINSHARD_JOBS_PHASES_LEARN_E2E_PHASE_H
#define SPINSHARD_JOBS_PHASES_LEARN_E2E_PHASE_H

#include "jobs/phases/learn_state.h"
#include "jobs/phases/learner.h"
#include "jobs/run/phase.h"

/* Collective. Phase k of learn, from `saved` if it is a state of it; loads its own weights. */
err learn_e2e_phase(learner *l, int64_t k, const learn_saved *saved);
err learn_e2e_plan(learner *l, plan_maker *m, int64_t k); /* local; the phase of a plan */

/* Collective. How the ranks will share each such phase of the recipe, told; refuses what cannot be.
 */
err learn_e2e_announce(const quantize_run *q);

#endif
