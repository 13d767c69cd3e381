/* setup_form - archive.form: what of a recipe an archive can say so that runtimes do it, and what
 * only eval does. */
#ifndef SPINSHARD_JOBS_SETUP_SETUP_FORM_H
#define SPINSHARD_JOBS_SETUP_SETUP_FORM_H

#include "base/err.h"
#include "base/json.h"
#include "jobs/setup/recipe.h"
#include "model/config.h"
#include "shard/form.h"

/* Local. The order of R4's blocks. */
int64_t setup_r4_block(const settings *s, int64_t intermediate);

/* Local. R4 as the archive tells its runtime. After setup_form. */
form_online setup_online(const settings *s);

/* Local. rotate.r4_block: pow2 becomes a number. archive.form: auto becomes int-quantized for
 * weights of 8 bits whose inputs an archive can say (symmetric, 8 bits, by token), else
 * pack-quantized. ERR_USAGE, with what works, where int-quantized is asked for and the recipe
 * contradicts it, or where a plain folder (weights.bits 16) or gguf could not say what it
 * needs (R4). */
err setup_form(recipe *r, const llama_config *cfg);

/* Local. A line where the recipe says how a cache is rotated or stored that it does not quantize.
 */
void setup_cache_say(const settings *s);

/* Local. Lines about what the recipe quantizes and no runtime will, with that one. */
void setup_form_say(const settings *s);

/* Local. The recipe keys that eval of the archive needs, for its config.json; NULL for none, and
 * for a plain folder. And
 * back, from a config.json: those keys, or what the form itself says of inputs and cache. Caller
 * frees.
 */
json_t *setup_eval_keys(const recipe *r);
json_t *setup_eval_keys_of(const json_t *config, const form_scheme *linears, int64_t layers);

/* Local. What the archive tells its runtime of the inputs of linears; of 16 bits where it cannot
 * say what the recipe asks. */
form_inputs setup_inputs(const settings *s);

/* Local. The form of the archive, after setup_form; NULL: a plain folder. */
const form *setup_form_of(const settings *s);

#endif
