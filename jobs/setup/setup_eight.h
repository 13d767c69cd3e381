/* setup_eight - activations.eight and activations.average: inputs of 8 bits where the others have
 * fewer. What of them contradicts the recipe or the model, and what they come to. */
#ifndef SPINSHARD_JOBS_SETUP_SETUP_EIGHT_H
#define SPINSHARD_JOBS_SETUP_SETUP_EIGHT_H

#include "base/err.h"
#include "jobs/setup/recipe.h"
#include "model/config.h"

/* Local. ERR_USAGE where a layer is named that the model does not have. */
err setup_check_eight(const settings *s, const llama_config *cfg);

/* Local. The bits of inputs, on average over the multiplications of the model's linears. */
double setup_average_bits(const settings *s, const llama_config *cfg);

/* Local. For a run that learns or rounds: setup_check_eight, and ERR_USAGE where 8 bits would be no
 * more than what the recipe says without, or where the average is below what is fixed already. Then
 * activations.eight becomes ranges of the layers that the model has. */
err setup_resolve_eight(recipe *r, const llama_config *cfg);
/* Local. Into the recipe, as ranges. */
void setup_put_eight(recipe *r, const llama_config *cfg, const input_eight *e);

/* Local. A line on how many inputs have 8 bits, where any have. */
void setup_eight_say(const settings *s, const llama_config *cfg);

#endif
