/* weight_site - weights in the loop of learning end to end: W is used as W^ = A Q(A^T W B) B^T, the
 * weight that an archive would hold, in the basis of the checkpoint; and the gradient of the
 * rotations through it. The published method learns with 16-bit weights; this is the other way, to
 * be compared, and takes two more copies of the weights. Not for activations (model/site.h).
 * Stands beside "block forward with quantization sites -> loss -> gradient of R at each site".
 *
 * A (on the outputs): R1 of o and down, R2 of the KV head of v; B (on the inputs): R1 of q, k, v,
 * gate, up, whose gains are folded in before, R2 of o, R4 of down. With E = Q(A^T W B) - A^T W B,
 *     W^ = W + D,  D = A E B^T,       straight-through: E is constant, so for orthogonal A and B
 *     dL = <G, dA E B^T + A E dB^T>,  G = dL/dW^ = g^T x^ (g: dL/dy, x^: the product's input)
 *     (dL/dB) B^T = G^T D = x^T (g D),   (dL/dA) A^T = G D^T = g^T (x^ D^T)
 * so G is never formed: one product with D a side, and what is summed needs no rotation but one
 * product of the sum with R at the end.
 *
 * With scales o on the outputs and i on the inputs before A and B, and a on the inputs after R1
 * (rotations/scale_set.h), D = diag(1/o) A E diag(1/a) B^T diag(1/i), and
 *     (dL/dB) B^T = diag(1/i) G^T D diag(i),   (dL/dA) A^T = diag(1/o) G D^T diag(o)
 * so that x^, g and what D makes of them are scaled on their way. For the gradients of the scales
 * themselves (model/weight_scale.h) G is formed, a linear at a time: rare, and costly. */
#ifndef SPINSHARD_MODEL_WEIGHT_SITE_H
#define SPINSHARD_MODEL_WEIGHT_SITE_H

#include "model/backward.h"
#include "quant/rtn.h"

typedef struct weight_site weight_site;

/* Local. For the layers of a stage (borrowed) and passes of `shape`, which says of which scales
 * gradients are wanted. Caller owns *out. Fails with ERR_NOFIT. */
err weight_site_create(const llama_stage *stage, const wquant *how, const llama_pass_shape *shape,
                       weight_site **out);
void weight_site_destroy(weight_site **w); /* local; NULL is fine; sets NULL */
uint64_t weight_site_bytes(const llama_config *cfg, const llama_pass_shape *shape,
                           int64_t n_layers); /* local */

/* Local, threaded. W^ and D of all layers from the rotations and scales in sites: after each change
 * of them, before the first pass. Fails with ERR_NOFIT, ERR_USAGE (a group that does not divide).
 */
err weight_site_refresh(weight_site *w, const llama_sites *sites);

/* Local. The stage with W^ in place of W: norm gains are ones where R1 or scales act. Borrowed. */
const llama_stage *weight_site_stage(const weight_site *w);

/* Local. What shows a backward of weight_site_stage to *w. sites as in the pass. */
llama_hook weight_site_hook(weight_site *w, const llama_sites *sites);

/* Local, threaded. What the hook saw of one block and slice is added to its gradients (real), and
 * forgotten. */
void weight_site_add(weight_site *w, int64_t layer, const rotation_grads *grads);

#endif
