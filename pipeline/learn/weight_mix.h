/* weight_mix - rows of weights that R1 and R2 mix (o, down, v), as samples of a phase `range`: the
 * part of weight_rows.h that goes through a product. */
#ifndef SPINSHARD_PIPELINE_LEARN_WEIGHT_MIX_H
#define SPINSHARD_PIPELINE_LEARN_WEIGHT_MIX_H

#include "base/half.h"
#include "pipeline/learn/weight_rows.h"

/* Local, threaded. Loss and gradient of this step's rows of the linears with A (o, down, v). R1
 * [hidden, hidden], NULL where not learned; R2 [n_layers, r2_heads, d, d] of this rank's layers.
 * Adds to the integers and the loss of b (after range_finish; its grad is NULL where R1 is not
 * learned, its unit is then not used), and to G2 [n_layers, r2_heads, d, d] (NULL: no R2). With
 * neither a grad nor G2 the loss alone is made. */
void weight_rows_mix(weight_rows *w, int64_t step, float factor, const bf16 *R1, const double *R2,
                     range_batch *b, double *G2);

#endif
