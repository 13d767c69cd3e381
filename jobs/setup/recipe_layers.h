/* recipe_layers - the value of activations.eight: a map of places to layers, as {mlp: 5-19, down:
 * [0, 4-6], o: all}. Not what is done with it (jobs/setup/setup_eight.h). */
#ifndef SPINSHARD_JOBS_SETUP_RECIPE_LAYERS_H
#define SPINSHARD_JOBS_SETUP_RECIPE_LAYERS_H

#include "base/json.h"
#include "model/input_bits.h"

/* Local. Is it such a value, its places among `words`? */
bool recipe_layers_fit(const json_t *v, const char *words);
/* Local. A value that fits; "all" names every layer that any model may have. */
void recipe_layers_store(const json_t *v, const char *words, input_eight *to);
/* Local. The value that says it for a model of so many layers; the caller's. */
json_t *recipe_layers_json(const input_eight *e, int64_t layers);

#endif
