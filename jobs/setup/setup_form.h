/* setup_form - archive.form: what of a recipe an archive can say so that runtimes do it, and what
 * only eval does. */
#ifndef SPINSHARD_JOBS_SETUP_SETUP_FORM_H
#define SPINSHARD_JOBS_SETUP_SETUP_FORM_H

#include "base/err.h"
#include "base/json.h"
#include "jobs/setup/recipe.h"
#include "shard/form.h"

/* Local. archive.form: auto becomes int-quantized where the recipe's inputs are what that form can
 * say (8 bits, symmetric, by token, compressed-tensors' scale, no R4), else pack-quantized.
 * ERR_USAGE, with what works, where int-quantized is asked for and the recipe contradicts it. */
err setup_form(recipe *r);

/* Local. One line where the recipe quantizes what no runtime will. */
void setup_form_say(const settings *s);

/* Local. The recipe keys that eval of the archive needs, for its config.json; NULL for none. And
 * back, from a config.json: those keys, or what the form itself says of the inputs. Caller frees.
 */
json_t *setup_eval_keys(const recipe *r);
json_t *setup_eval_keys_of(const json_t *config, const form_inputs *inputs);

/* Local. What the archive tells its runtime of the inputs of linears. */
form_inputs setup_inputs(const settings *s);

/* Local. The form of the archive, after setup_form. */
const form *setup_form_of(const settings *s);

#endif
