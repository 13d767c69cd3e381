/* gptq_source - the fused weights of one layer after the other, for GPTQ: each linear is read and
 * fused by one rank (all ranks at the same time), and goes from there to all of them in bands of
 * rows. Norms and biases are on every rank, rounded to the type they are stored in: what the
 * archive will hold is what the streams go through. Not an item's codes (gptq_layer.h). On the way:
 * safetensors tensor, R1, R2 -> fused weight. */
#ifndef SPINSHARD_PIPELINE_GPTQ_GPTQ_SOURCE_H
#define SPINSHARD_PIPELINE_GPTQ_GPTQ_SOURCE_H

#include "model/forward.h"
#include "mpi/comm.h"
#include "pipeline/weights/quantize_item.h"

typedef struct gptq_source gptq_source;

/* Local. The first of the linears (llama_linears) that take the input of a step, which follow each
 * other; how many. */
int gptq_step_first(llama_step step);
int gptq_step_count(llama_step step);

/* Local. Copy norms and biases of a layer into another that has none yet. Fails with ERR_NOFIT. */
err gptq_layer_copy_vectors(const llama_config *cfg, llama_layer *from, llama_layer *to);

/* Collective on c. Reads the tensors of these layers (rising) in their order; ahead: while others
 * are worked on, which takes more memory. job, c are borrowed. Caller owns *out. Fails, agreed,
 * with ERR_NOFIT. */
err gptq_source_create(const comm *c, const quantize_job *job, const int64_t *layers, int64_t n,
                       bool ahead, gptq_source **out);
void gptq_source_destroy(gptq_source **s); /* local; NULL is fine; sets NULL */

/* Collective. Read and fuse the next layer, which must be this one: every rank its linears; norms
 * and biases, as stored, into `layer` (its vectors, which are then owned there). hex: sha256 over
 * the hashes of all tensors of the layer, as quantize_item gives it. Fails, agreed, with ERR_INPUT
 * (NaN or Inf, by tensor), ERR_NOFIT, and what reading gives. */
err gptq_source_next(gptq_source *s, int64_t layer, llama_layer *to, char hex[SHA256_HEX]);

/* Local. [LLAMA_LINEARS] of that layer, on every rank; borrowed, until the next layer. */
const fused_spread *gptq_source_spreads(const gptq_source *s);

/* Collective. Broadcast the rows of a linear of that layer in bands, which every rank gets by
 * `take`. Each linear can be had once, since its memory is freed. `take` may fail; errors are
 * agreed. */
typedef err (*gptq_band_sink)(void *arg, int64_t row0, int64_t rows, const float *w);
err gptq_source_share(gptq_source *s, int linear, gptq_band_sink take, void *arg);

/* Bytes of one of so many ranks: of the reader, always; of fusing, while a layer begins; of this
 * rank's fused linears of a step, from then until they are shared. */
typedef struct gptq_source_sizes {
    uint64_t reader, fusion, fused[STEP_COUNT];
} gptq_source_sizes;
void gptq_source_bytes(const quantize_job *job, int ranks, int rank, bool ahead,
                       gptq_source_sizes *out); /* local */

#endif
