/* teacher - which tokens of a row of logits are kept of a teacher: the k of greatest logit, ties to
 * the lower id, found while the row comes in slices of the vocabulary. Not the logits themselves
 * (objective_real.c makes them), not what is learned from them. */
#ifndef SPINSHARD_MODEL_TEACHER_H
#define SPINSHARD_MODEL_TEACHER_H

#include <stdint.h>

typedef struct candidate {
    double logit;
    int32_t id;
} candidate;

/* Rows whose candidates one thread holds. */
enum { TEACHER_ROWS = 32 };

typedef struct teacher_rows {
    candidate *c; /* [TEACHER_ROWS, 2 top_k] */
    int64_t count[TEACHER_ROWS];
    double worst[TEACHER_ROWS]; /* of the top_k, once there are so many */
    double max[TEACHER_ROWS], total[TEACHER_ROWS];
} teacher_rows;

/* Local. The logit of token `id` of row i, greater than the row's worst. */
void teacher_add(teacher_rows *t, int64_t i, int64_t k, double logit, int64_t id);

/* Local. The logit of token `id` of row i; each token of a row once. `worst` and `max` of a row
 * begin at -INFINITY, count and total at 0; max and total are the caller's. */
static inline void teacher_offer(teacher_rows *t, int64_t i, int64_t k, double logit, int64_t id) {
    if (logit > t->worst[i]) teacher_add(t, i, k, logit, id);
}

/* Local. The k best of row i in the order of ids, with log p = logit - (max + log total). At least
 * k were offered. */
void teacher_take(teacher_rows *t, int64_t i, int64_t k, int32_t *token, float *log_p);

#endif
