/* eval_run - windows of tokens through the stages as a pipeline: each rank runs its layers on a
 * window and hands the residual stream to the next; the last one takes the cross entropy. The
 * result does not depend on how many stages there are. Not learning: forward only. */
#ifndef SPINSHARD_PIPELINE_STAGES_EVAL_RUN_H
#define SPINSHARD_PIPELINE_STAGES_EVAL_RUN_H

#include "base/err.h"
#include "model/forward.h"
#include "mpi/comm.h"
#include "pipeline/stages/load_stage.h"

#include <stdint.h>

typedef struct eval_windows {
    const int32_t *const *ids; /* [n] windows of `length` ids; borrowed; on every rank */
    int64_t n, length;
} eval_windows;

/* Collective on c, all of whose ranks hold one stage of the model, in order. rows maps ids to the
 * rows of the embedding on rank 0 (NULL elsewhere). nll [n] (root: filled; elsewhere NULL): the sum
 * over the window's length - 1 predictions of -log p, in nats. Same error on every rank. */
err eval_run(const comm *c, const llama_stage *stage, const llama_sites *sites,
             compute_type compute, const embed_rows *rows, const eval_windows *w, double *nll);

/* Collective on c. As eval_run, but instead of losses the last rank computes the logits of all
 * positions and hands them to `take`, [length, vocab] for each window; `take` is NULL on the other
 * ranks. Used by verify --equivalence. */
typedef err (*eval_logits_sink)(void *arg, int64_t window, const double *logits);
err eval_logits(const comm *c, const llama_stage *stage, const llama_sites *sites,
                compute_type compute, const embed_rows *rows, const eval_windows *w,
                eval_logits_sink take, void *arg);

#endif
