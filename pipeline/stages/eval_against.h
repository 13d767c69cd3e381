/* eval_against - windows through two models, one after the other, and how far their predictions are
 * apart (model/divergence.h). A rank holds the same stage of both; the last one makes the logits of
 * a few rows at a time, so those of a window are never held. The result does not depend on how many
 * stages there are. Not the perplexity of one model (eval_run.h). */
#ifndef SPINSHARD_PIPELINE_STAGES_EVAL_AGAINST_H
#define SPINSHARD_PIPELINE_STAGES_EVAL_AGAINST_H

#include "model/divergence.h"
#include "pipeline/stages/eval_run.h"

/* A model on this rank: its part of the layers, and what is quantized on the way. Borrowed. */
typedef struct eval_side {
    const llama_stage *stage;
    const llama_sites *sites;
} eval_side;

/* Collective on c, all of whose ranks hold one stage of both models, in order; the models have the
 * same vocabulary. p is the model that is the measure, q the other. rows: as for eval_run, of both
 * embeddings. out [n * (length - 1)] at root (NULL elsewhere): one for each prediction, window by
 * window. nll [n] at root: what eval_run gives of q, bit for bit. Same error on every rank. */
err eval_against(const comm *c, const eval_side *p, const eval_side *q, compute_type compute,
                 const embed_rows *rows, const eval_windows *w, divergence *out, double *nll);

/* Local. Bytes beyond the scratch of q and its boundary buffers. */
uint64_t eval_against_bytes(const llama_config *p, const llama_config *q, compute_type compute,
                            const eval_windows *w, bool last);

#endif
