/* quantize_item - one independent piece of quantization: its tensors are read from the checkpoint
 * (each once), fused in fp64, and the linears rounded to codes; the results go to a sink. An item
 * is a layer, the embedding, or the final norm and head; a tied model's embedding and head are one
 * item because both come from one tensor. Not packing and not files: the sink does those. On the
 * way: safetensors tensor, R1, R2 -> fused weight -> INT4 codes + scales. */
#ifndef SPINSHARD_PIPELINE_WEIGHTS_QUANTIZE_ITEM_H
#define SPINSHARD_PIPELINE_WEIGHTS_QUANTIZE_ITEM_H

#include "base/err.h"
#include "base/sha256.h"
#include "io/hf_checkpoint.h"
#include "model/tensors.h"
#include "pipeline/weights/fused_tensor.h"
#include "pipeline/weights/read_ahead.h"
#include "quant/rtn.h"
#include "rotations/rotation_set.h"

#include <stdint.h>

typedef struct quantize_job {
    const hf_checkpoint *checkpoint; /* borrowed */
    const llama_config *cfg;         /* borrowed */
    rotation_set *rotations;         /* borrowed; without R1 the norm gains stay where they are */
    wquant how;                      /* 16 bits: linears are only fused */
    bool r1_dense;                   /* for plans: R1 will be a dense matrix */
    bool untied; /* give a tied model a head of its own (R1 and the final gain make it differ) */
} quantize_job;

/* Where results go. `t` is the checkpoint's tensor a result stands for (role HEAD for the head of a
 * tied model). Rows come from several threads at a time and in any order, unless in_order: then
 * from the calling thread. */
typedef struct quantize_sink {
    void *arg;
    bool in_order;
    /* Rows [row0, row0 + rows) of a tensor that stays at 16 bit, as fp32 [rows, cols]. */
    err (*plain)(void *arg, const llama_tensor *t, int64_t row0, int64_t rows, const float *w);
    /* A quantized linear; borrowed. NULL: linears are only fused, not quantized. */
    err (*quantized)(void *arg, const llama_tensor *t, const qmatrix *q);
    /* Fused rows of a linear before they are quantized; may be NULL. */
    err (*fused)(void *arg, const llama_tensor *t, int64_t row0, int64_t rows, const float *w);
} quantize_sink;

/* Error of the linears of an item against the fused weights, and the hash of what was read. */
typedef struct quantize_result {
    qerror error;
    fused_spread spreads[LLAMA_LINEARS]; /* of a layer's linears */
    char source_sha256[SHA256_HEX];      /* over the sha256 of each tensor read, in order */
} quantize_result;

/* Local. Items 0 .. count-1: 0 the embedding, 1..L the layers, L+1 norm and head (in item 0 if
 * tied). */
int64_t quantize_item_count(const quantize_job *job);
double quantize_item_cost(const quantize_job *job, int64_t item); /* in parameters */

/* Local. Units of the archive's layout (0, 1..L, L+1) that an item fills: 1 or 2. */
int quantize_item_units(const quantize_job *job, int64_t item, int64_t units[2]);

/* Local. A reader of the tensors of these items, in the order in which quantize_item takes them:
 * the items must then be done in this order; ahead as read_ahead_bytes. Caller owns *out
 * (read_ahead_destroy). */
err quantize_item_read_ahead(const quantize_job *job, const int64_t *items, int64_t n, bool ahead,
                             read_ahead **out);

/* Local. Do one item, its tensors from `reader`. Fails with ERR_INPUT (NaN or Inf, by tensor and
 * count), ERR_NOFIT, or what the sink gives. */
err quantize_item(const quantize_job *job, int64_t item, read_ahead *reader,
                  const quantize_sink *sink, quantize_result *out);

/* Local. Bytes of that reader. */
uint64_t quantize_item_read_bytes(const quantize_job *job, const int64_t *items, int64_t n,
                                  bool ahead);

/* Local. Largest memory of one item beside the reader, for the plan. */
typedef struct quantize_memory {
    uint64_t fusion, codes;
} quantize_memory;
quantize_memory quantize_item_memory(const quantize_job *job, int64_t item);

#endif
