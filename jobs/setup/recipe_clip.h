/* recipe_clip - the values of activations.clip and kv.clip: a number, "search", or a map of places
 * to a number or [low, high]. Not what is done with them (jobs/setup/setup.h). */
#ifndef SPINSHARD_JOBS_SETUP_RECIPE_CLIP_H
#define SPINSHARD_JOBS_SETUP_RECIPE_CLIP_H

#include "base/json.h"
#include "jobs/setup/settings.h"

/* Local. Is it such a value, its numbers in lo..hi and its places among `words`? */
bool recipe_clip_fits(const json_t *v, double lo, double hi, const char *words);
/* Local. A value that fits; places that it does not name get ones. */
void recipe_clip_store(const json_t *v, const char *words, clip_setting *to);

#endif
