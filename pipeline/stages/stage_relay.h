/* stage_relay - one batch of rows after the other through the stages as a pipeline: the first rank
 * embeds token ids, each runs its layers on the residual stream and hands it to the next, and the
 * last has what comes out. Two boundary buffers: one is computed while the other is on its way.
 * Forward only, and no losses: what the rows are for is the caller's (pipeline/stages/eval_run.h,
 * task_run.h). On the way: weight slot of the owning rank -> block forward. */
#ifndef SPINSHARD_PIPELINE_STAGES_STAGE_RELAY_H
#define SPINSHARD_PIPELINE_STAGES_STAGE_RELAY_H

#include "base/err.h"
#include "model/forward.h"
#include "mpi/comm.h"
#include "pipeline/stages/load_stage.h"

#include <stdint.h>

typedef struct stage_relay stage_relay;

/* Local. For batches of up to `tokens` rows over the ranks of c, all of which hold one stage of the
 * model, in order. rows maps ids to the rows of the embedding on rank 0 (NULL elsewhere). All are
 * borrowed. Caller owns *out (NULL after an error). Fails with ERR_NOFIT, on this rank alone. */
err stage_relay_create(const comm *c, const llama_stage *stage, const llama_sites *sites,
                       compute_type compute, const embed_rows *rows, int64_t tokens,
                       stage_relay **out);
void stage_relay_destroy(stage_relay **r); /* local; waits for what it sent; NULL is fine */

/* Local. The scratch that its layers run in: llama_scratch_pack before a batch of sequences, the
 * head after one. */
llama_scratch *stage_relay_scratch(stage_relay *r);
/* Local. Bytes of one of its rows. */
size_t stage_relay_row_bytes(const stage_relay *r);

/* Collective, no waiting; ids [n], n must agree. One batch through this rank. Returns its rows as
 * they leave the stage, [n, hidden], good until the batch after the next. Where *e is set already,
 * or is set here, the buffer still goes on: a rank that left would hang the others; all agree when
 * the last batch is through. */
void *stage_relay_pass(stage_relay *r, const int32_t *ids, int64_t n, err *e);

/* Collective on c. `results` of the last rank, which has the losses, are copied to rank 0. */
void stage_relay_results(const comm *c, void *results, uint64_t bytes);

/* Local. Bytes of the two boundary buffers. */
uint64_t stage_relay_bytes(const llama_config *cfg, compute_type compute, int64_t tokens);

#endif
