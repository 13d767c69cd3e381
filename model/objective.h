/* objective - losses at the end of the model and their gradient: next-token cross entropy (ce) and
 * the divergence to a teacher's most likely tokens (kl-top), DESIGN.md 2.5. The head is taken in
 * slices of the vocabulary: logits are never held whole. Not the layer-local objective range, which
 * needs no loss. Stands at "block forward -> loss", before llama_block_backward. */
#ifndef SPINSHARD_MODEL_OBJECTIVE_H
#define SPINSHARD_MODEL_OBJECTIVE_H

#include "model/backward.h"

/* What a phase of learning minimises, in the order of the recipe's words. */
typedef enum objective_kind { OBJECTIVE_RANGE, OBJECTIVE_CE, OBJECTIVE_KL_TOP } objective_kind;
#define OBJECTIVE_WORDS "range|ce|kl-top"

/* What is kept of a teacher: per row the top_k tokens of greatest logit, ties to the lower id, in
 * the order of ids, and log p under the softmax over the whole vocabulary. top_k of the work's
 * shape, at most the vocabulary. */
typedef struct llama_teacher {
    int32_t *token; /* [n_rows, top_k] */
    float *log_p;   /* [n_rows, top_k] */
} llama_teacher;

/* Local, threaded. x: rows out of the last block with all sites off. Fills the caller's arrays. */
err llama_teacher_save(const llama_stage *stage, int64_t n_rows, const void *x, llama_teacher *out,
                       llama_work *work);

/* Rows out of the last block, on the rank that has the head. */
typedef struct objective_rows {
    int64_t n;
    const void *x;       /* [n, hidden] real */
    const int32_t *next; /* ce: [n] the token that follows a row; -1: no loss, no gradient */
    const llama_teacher *teacher; /* kl-top: of these rows */
    double weight;                /* of each row's loss in the gradient */
    void *dx;                     /* [n, hidden] real = weight d(sum of losses) / dx; may be x */
} objective_rows;

/* Local, threaded. each [n] (NULL: not wanted): the loss of each row in nats; *sum their sum in
 * order. ce: -log p(next), 0 where there is none. kl-top: sum over the kept tokens of p (log p -
 * log q), q the softmax of x's logits over the whole vocabulary (a part of a divergence: it may be
 * negative); OSTQuant, equation 9. Fails with ERR_INPUT (a token outside the vocabulary), ERR_BUG
 * (no head here, no room, an objective without a loss). */
err llama_objective_backward(objective_kind kind, const llama_stage *stage, const objective_rows *r,
                             double *sum, double *each, llama_work *work);

/* Local, threaded. llama_objective_backward of ce, in arguments. */
err llama_ce_backward(const llama_stage *stage, int64_t n_rows, const void *x, const int32_t *next,
                      double weight, void *dx, double *nll_sum, double *nll, llama_work *work);

#endif
