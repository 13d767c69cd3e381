/* objective - losses at the end of the model and their gradient: next-token cross entropy (ce) and
 * the divergence to a teacher's most likely tokens (kl-top), DESIGN.md 2.5. The head is taken in
 * slices of the vocabulary: logits are never held whole. Not the layer-local objective range, which
 * needs no loss. Stands at "block forward -> loss", before llama_block_backward. */
#ifndef SPINSHARD_MODEL_OBJECTIVE_H
#define SPINSHARD_MODEL_OBJECTIVE_H

#include "model/backward.h"

/* Local, threaded. x [n_rows, hidden] real: rows out of the last block; next[i]: the token that
 * follows row i, or -1: the row has no loss and no gradient. nll [n_rows] (NULL: not wanted):
 * -log p(next[i]) in nats, 0 where there is none; *nll_sum their sum in order. dx [n_rows, hidden]
 * real = weight * d nll_sum / dx; dx may be x. Fails with ERR_INPUT (a token outside the
 * vocabulary), ERR_BUG (no head here, no room). */
err llama_ce_backward(const llama_stage *stage, int64_t n_rows, const void *x, const int32_t *next,
                      double weight, void *dx, double *nll_sum, double *nll, llama_work *work);

/* What is kept of a teacher: per row the top_k tokens of greatest logit, ties to the lower id, in
 * the order of ids, and log p under the softmax over the whole vocabulary. top_k of the work's
 * shape, at most the vocabulary. */
typedef struct llama_teacher {
    int32_t *token; /* [n_rows, top_k] */
    float *log_p;   /* [n_rows, top_k] */
} llama_teacher;

/* Local, threaded. x: rows out of the last block with all sites off. Fills the caller's arrays. */
err llama_teacher_keep(const llama_stage *stage, int64_t n_rows, const void *x, llama_teacher *out,
                       llama_work *work);

/* Local, threaded. The loss of a row is sum over the kept tokens of p (log p - log q), q the
 * softmax of x's logits over the whole vocabulary (a part of a divergence: it may be negative). kl
 * [n_rows] or NULL, *kl_sum their sum, dx = weight * d kl_sum / dx; dx may be x. OSTQuant,
 * equation 9. */
err llama_kl_backward(const llama_stage *stage, int64_t n_rows, const void *x,
                      const llama_teacher *teacher, double weight, void *dx, double *kl_sum,
                      double *kl, llama_work *work);

#endif
