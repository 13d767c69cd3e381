/* load_stage - safetensors tensors into the weight slots of the rank that owns them: each tensor is
 * read once, in one piece, in the type it has on disk; NaN and Inf are refused by name. The one
 * place where checkpoint names meet the slots of model/forward.h. Not a converter to files. */
#ifndef SPINSHARD_PIPELINE_STAGES_LOAD_STAGE_H
#define SPINSHARD_PIPELINE_STAGES_LOAD_STAGE_H

#include "base/err.h"
#include "io/hf_checkpoint.h"
#include "model/forward.h"
#include "pipeline/stages/partition.h"
#include "rotations/rotation_set.h"
#include "shard/form.h"

#include <stdint.h>

/* The rows of the embedding that a text uses: token ids to rows of a smaller matrix. */
typedef struct embed_rows {
    int64_t n;    /* rows kept */
    int32_t *row; /* owned; [vocab]: row of a token id, -1: does not occur */
    int32_t *id;  /* owned; [n]: the token id of a row, rising */
} embed_rows;

/* Local. Rows for the ids that occur; ids outside 0..vocab-1 are ERR_INPUT. embed_rows_clear frees.
 */
err embed_rows_init(const int32_t *ids, int64_t n_ids, int64_t vocab, embed_rows *out);
void embed_rows_clear(embed_rows *r);

typedef struct load_options {
    const hf_checkpoint *checkpoint; /* borrowed */
    const llama_config *cfg;         /* borrowed; must outlive the stage */
    form_scheme linears;             /* form NULL: plain tensors only */
    rotation_set *fuse;      /* NULL: weights as they are; else gains and rotations folded in */
    const embed_rows *embed; /* NULL: no embedding on this rank */
    bool head;               /* final norm and head on this rank */
    stage_range range;
    compute_type compute;
} load_options;

/* Local. Fill a stage, ready for products. With `embed` its embedding has the kept rows alone, in
 * their order. Caller clears *out (llama_stage_clear), also after an error. Fails with ERR_INPUT
 * (NaN or Inf in a tensor, by name and count; what reading gives) or ERR_NOFIT. */
err load_stage(const load_options *opts, llama_stage *out);

/* Local. Bytes that load_stage will hold, for the plan. */
uint64_t load_stage_bytes(const load_options *opts);

#endif
