/* setup - from recipe keys to the values that the lower floors take: rotations, sites, quantizers.
 * The one place where recipe words meet their meaning. */
#ifndef SPINSHARD_JOBS_SETUP_SETUP_H
#define SPINSHARD_JOBS_SETUP_SETUP_H

#include "base/err.h"
#include "io/text.h"
#include "jobs/setup/options.h"
#include "jobs/setup/recipe.h"
#include "jobs/setup/source.h"
#include "model/forward.h"
#include "quant/rtn.h"
#include "rotations/rotation_set.h"
#include "shard/layout.h"

/* Collective on c. Read the --recipe file (rank 0) and resolve. base: recipe of an archive or NULL.
 * Same result on every rank; caller owns *out. */
err setup_recipe(const comm *c, const options *o, const json_t *base, recipe **out);

/* Local. ERR_USAGE for keys that contradict each other: learning, scales or a cache with nothing to
 * act on, or that no runtime has. */
err setup_refuse_missing(const settings *s);

/* Local. Takes those pairs out of scale.pairs that nothing quantized would profit from, and says
 * so: the recipe then tells what is done. With none left scale.start is ones. */
void setup_resolve_scales(recipe *r);

/* Local. rotate.r1 and rotate.r2 become what the set has, which a file may bring otherwise than the
 * recipe asks; a difference is said. */
void setup_resolve_rotations(recipe *r, const rotation_set *set);

/* Collective on c. The rotations of a recipe for a model. Same result on every rank. r1_later: R1
 * is started by learning, maybe over a grid; one that each rank would have to factor (orthogonal)
 * is left the identity. */
err setup_rotations(const comm *c, const settings *s, const source *from, bool r1_later,
                    rotation_set **out);

/* Local. How weights are quantized; resolves weights.group "auto" in the recipe. */
err setup_weights(recipe *r, const llama_config *cfg, st_dtype store, wquant *out);

/* Local. Resolves activations.group "weights" in the recipe. ERR_USAGE where it does not divide the
 * inputs of all linears. */
err setup_inputs_group(recipe *r, const llama_config *cfg);

/* Local. The type that archive.dtype means for this source: BF16, F16 or F32. */
st_dtype setup_store_dtype(const settings *s, const source *from);

/* Local. Options of the layout of the archive. */
layout_options setup_layout(const settings *s, const wquant *how, st_dtype store, bool untied);

/* What the weights of a pass hold of its rotations and scales already. */
typedef enum weights_hold {
    HOLD_NONE,     /* those of the checkpoint: sites apply R1, R2, R4 and scales themselves */
    HOLD_R1_R2,    /* R1, R2 and scales; R4 is undone after the quantizer */
    HOLD_R1_R2_R4, /* also R4: inputs of down stay rotated */
} weights_hold;

/* Local. Quantization sites of an evaluation or a phase, for weights that hold so much. *r2
 * receives an array to free (free) that sites.R2 points to. */
err setup_sites(const settings *s, const llama_config *cfg, rotation_set *set, weights_hold held,
                llama_sites *out, const rotation ***r2);

/* Local. archive.base_model: an id as given, or that of a snapshot in a cache, put into r. */
err setup_base_model(recipe *r, const char *model_dir);

/* Local. The name of the archive: archive.name, or made from the model's folder; put into r. */
err setup_name(recipe *r, const char *model_dir, const wquant *how);

#endif
