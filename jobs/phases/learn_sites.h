/* learn_sites - what belongs to single quantizers and is found in closed form or by a search, after
 * the phases `range` and the scales and before the phases that run the whole model: R3 from keys
 * (rotate.r3), then the clips (activations.clip, kv.clip: search), what the noise of each
 * quantizer costs in nats, and by that the inputs of 8 bits (activations.average). Each rank does
 * its own layers; all ranks get all. */
#ifndef SPINSHARD_JOBS_PHASES_LEARN_SITES_H
#define SPINSHARD_JOBS_PHASES_LEARN_SITES_H

#include "jobs/phases/learner.h"
#include "jobs/run/phase.h"

/* Collective. With R1, R2 and scales as they are; then into the set of q. */
err learn_sites(learner *l);
/* Collective. What is known into the set of q. */
err learn_sites_adopt(learner *l);

/* Collective. The scales of an FP8 cache, where one is asked for, into the set: by the peaks that
 * learn_sites shared and the scales of the set as they are now. So again when those have changed:
 * for each phase of the whole model, which sees what the archive would hold if it began here, and
 * for the archive itself. Fails with ERR_NOFIT, ERR_NUMERICS. */
err learn_sites_scale_cache(learner *l);

/* Local. The phase of a plan. */
err learn_sites_plan(learner *l, plan_maker *m);

#endif
