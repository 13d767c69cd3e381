/* fused_tensor - a matrix or a bias of the checkpoint with gains, rotations and scales folded in:
 * the one place that plans what its role takes, fuses it, refuses NaN and Inf by name, and holds
 * the norm of a random probe of what came out against that of the source, since a rotation that is
 * applied rightly keeps it. Reads nothing and quantizes nothing. On the way: safetensors tensor,
 * learned R1, R2 -> fused weight. */
#ifndef SPINSHARD_PIPELINE_WEIGHTS_FUSED_TENSOR_H
#define SPINSHARD_PIPELINE_WEIGHTS_FUSED_TENSOR_H

#include "base/err.h"
#include "model/fuse.h"
#include "model/tensors.h"
#include "pipeline/weights/weight_spread.h"
#include "rotations/rotation_set.h"

#include <stdbool.h>
#include <stdint.h>

/* Of a linear, as the checkpoint has it and as it is quantized. */
typedef struct fused_spread {
    bool known;
    spread before, after;
} fused_spread;

/* A matrix before fusion; all pointers are borrowed. */
typedef struct fused_source {
    const void *raw; /* [rows, cols] of the tensor, as on disk */
    fuse_dtype dtype;
    const float *gain;    /* [cols] of the norm before it, to be folded in; NULL: none */
    fused_spread *spread; /* filled where it is not NULL */
    const wquant *how;    /* as it is rounded, for the spread */
} fused_source;

/* Local. Of the gains of the norms of a layer, in the order of llama_vectors, that which goes into
 * a linear: of the norm before attention into q k v, of that before the MLP into gate up, none into
 * o and down. */
const float *fused_gain_of(llama_role linear, float *const gains[LLAMA_NORMS]);

/* Local. Fuse the matrix t, in the role it has there, and hand its rows over: `each` from several
 * threads at a time in any order (fuse_matrix_each), `in_order` from the calling thread
 * (fuse_matrix); `into` has them all in to [rows, cols]. R2 of the layer is prepared if needed.
 * Fails with ERR_INPUT (NaN or Inf, by tensor and count; nothing is handed over then), ERR_NUMERICS
 * (the probe; by tensor, after the last row), ERR_NOFIT, ERR_BUG, or what take gives. */
err fused_tensor_each(rotation_set *set, const llama_tensor *t, const fused_source *from,
                      fuse_each_sink take, void *arg);
err fused_tensor_in_order(rotation_set *set, const llama_tensor *t, const fused_source *from,
                          fuse_sink take, void *arg);
err fused_tensor_into(rotation_set *set, const llama_tensor *t, const fused_source *from,
                      float *to);

/* Local. Scale and turn a vector t behind a linear, v [rows] in fp32, in place: its bias, or the
 * gain of the norm of heads. */
err fused_tensor_vector(rotation_set *set, const llama_tensor *t, float *v);

/* Local. Bytes that fusing t allocates at most, for the plan: fusion and probe, without `to`.
 * dense: R1 is not known yet and will be a dense matrix. */
uint64_t fused_tensor_bytes(rotation_set *set, const llama_tensor *t, fuse_dtype dtype, bool dense);

#endif
