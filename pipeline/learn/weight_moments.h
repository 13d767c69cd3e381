/* weight_moments - how much the loss feels noise on each row of each linear: sums over the tokens
 * of a full-precision pass. Not the weights themselves. Stands before the rows of weights of the
 * objective range (pipeline/learn/weight_rows.h).
 *
 * Noise e on row i of W changes output i of token t by <x_t, e>. With e of variance s^2 in every
 * entry, independent, the expected change of the loss to second order is
 *     1/2 E[(sum_t g_ti <x_t, e>)^2] ~ 1/2 s^2 sum_t g_ti^2 |x_t|^2,      g = dL/dy
 * where the terms of two tokens are taken to be uncorrelated (Fisher). So the weight of a row is
 * the mean of g_i^2 |x|^2. Of o and down a rotation mixes the outputs, after which all channels
 * carry about as much: for them it is the mean over channels too. Inputs of the others are
 * normalised: |x|^2 = hidden. */
#ifndef SPINSHARD_PIPELINE_LEARN_WEIGHT_MOMENTS_H
#define SPINSHARD_PIPELINE_LEARN_WEIGHT_MOMENTS_H

#include "base/byte_piece.h"
#include "model/backward.h"
#include "model/tensors.h"

typedef struct weight_moments weight_moments;

/* Local. For layers [first, first + n) of cfg and windows of at most `window` tokens. Caller owns
 * *out. Fails with ERR_NOFIT. */
err weight_moments_create(const llama_config *cfg, int64_t first, int64_t n, int64_t window,
                          weight_moments **out);
void weight_moments_destroy(weight_moments **m); /* local; NULL is fine; sets NULL */
uint64_t weight_moments_bytes(const llama_config *cfg, int64_t n, int64_t window); /* local */

/* Local. The hook that adds a backward pass to *m. Sums are integers, so windows may come in any
 * order. */
llama_hook weight_moments_hook(weight_moments *m);

/* Local. The sums of one layer, to be kept for a restart and to be read into. */
enum { WEIGHT_MOMENTS_PIECES = 2 };
int weight_moments_pieces(const weight_moments *m, int64_t layer,
                          byte_piece out[WEIGHT_MOMENTS_PIECES]);

/* Local. Mean over all tokens so far of g_row^2 |x|^2 of a linear; of o and down the mean over
 * channels, whatever the row. */
double weight_moments_row(const weight_moments *m, int64_t layer, llama_role linear, int64_t row);

#endif
