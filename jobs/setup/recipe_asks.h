/* recipe_asks - what a recipe asks a run to do, as yes or no: which phases it has, and what these
 * need. Asked by plans and runs alike. Not how a phase does it (jobs/phases/). */
#ifndef SPINSHARD_JOBS_SETUP_RECIPE_ASKS_H
#define SPINSHARD_JOBS_SETUP_RECIPE_ASKS_H

#include "jobs/setup/recipe.h"

/* Local. True where the recipe needs calibration text: where it learns, and for GPTQ. */
bool quantize_needs_calibration(const recipe *r);
/* Local. True where it learns from that text: phases, or a start from activations. */
bool quantize_learns(const recipe *r);
bool quantize_uses_gptq(const recipe *r); /* local; weights.method is gptq or gptaq */

/* Local. True where the objective of a phase stands at the end of the model: ce, kl-top. */
bool learn_e2e_is(const json_t *phase);
/* Local. True where phase `first` or a later one takes rows, or, at a fresh start, the start. */
bool learn_needs_rows(const recipe *r, int64_t first, bool fresh);

/* Local. True where rows of weights are samples of this phase, or of any. */
bool learn_weights_count(const recipe *r, const json_t *phase);
bool learn_weights_needed(const recipe *r);

#endif
