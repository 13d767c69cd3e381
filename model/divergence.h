/* divergence - how far the predictions of one model are from those of another, row by row of their
 * logits: the divergence of the distributions and the likeliest tokens. For measuring (eval
 * --against), over the whole vocabulary and without a gradient; what is learned from a teacher is
 * kl-top (model/objective.h). Stands behind the head: residual stream -> logits -> here. */
#ifndef SPINSHARD_MODEL_DIVERGENCE_H
#define SPINSHARD_MODEL_DIVERGENCE_H

#include <stdint.h>

/* What one predicted token tells. */
typedef struct divergence {
    double kl;           /* sum of p (log p - log q) over the vocabulary, in nats */
    double nll_p, nll_q; /* -log of p and of q at the token that follows, in nats */
    double same_top;     /* 1 where the likeliest token is the same (of equals the first), else 0 */
} divergence;

/* Local, threaded. p [n_rows, vocab]: logits of the model that is the measure; q: of the other;
 * next [n_rows]: the token that follows each row. Fills out [n_rows]. */
void divergence_rows(const double *p, const double *q, int64_t n_rows, int64_t vocab,
                     const int32_t *next, divergence *out);

#endif
