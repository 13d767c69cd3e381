/* learn_weights - rows of weights in the phases of `range`: what they need. */
#ifndef SPINSHARD_JOBS_PHASES_LEARN_WEIGHTS_H
#define SPINSHARD_JOBS_PHASES_LEARN_WEIGHTS_H

#include "jobs/phases/learner.h"

weight_rows_options learn_weights_options(const learner *l,
                                          const learn_settings *phase); /* local */

/* Collective. The rows of weights of a phase; *out NULL where it takes none. Caller owns *out. */
err learn_weights_create(const learner *l, const learn_settings *phase, weight_rows **out);

#endif
