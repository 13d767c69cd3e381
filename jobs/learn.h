/* learn - the phases learn.k of quantize: what they share on a rank, and the steps between them.
 * Private to jobs/quantize_learn.c and jobs/learn_*.c. */
#ifndef SPINSHARD_JOBS_LEARN_H
#define SPINSHARD_JOBS_LEARN_H

#include "jobs/quantize_run.h"
#include "pipeline/learn_range.h"
#include "pipeline/partition.h"
#include "pipeline/row_pool.h"

/* What learning holds on a rank. */
typedef struct learner {
    quantize_run *q;
    comm *stages; /* ranks with layers; NULL: all of them */
    int n_stages;
    stage_range range; /* layers of this rank */
    row_pool pool;
    int64_t r2_heads; /* R2 of a layer */
    double *R1;       /* [hidden, hidden]; NULL: not rotated */
    double *R2;       /* [layers, r2_heads, d, d] of the whole model, on every rank */
} learner;

/* Local. */
static inline const llama_config *learner_cfg(const learner *l) {
    return &l->q->source.cfg;
}
/* Local. Doubles of the R2 of one layer. */
static inline int64_t learner_r2_entries(const learner *l) {
    return l->r2_heads * learner_cfg(l)->head_dim * learner_cfg(l)->head_dim;
}

/* Collective. Calibration windows forward and backward; the rows of the rank's layers into l->pool.
 */
err learn_capture_rows(learner *l);

/* Collective. R1 and R2 become the start points of the recipe. */
err learn_start(learner *l);

/* Collective. Every rank has its own layers' R2; after this all ranks have all. */
void learn_share_r2(learner *l);

/* Root only. Doubles to an object, and its name into the work tree under `key`, with the phase. */
err learn_keep(quantize_run *q, const char *key, const double *v, int64_t n, int64_t phase);

/* Collective. What learn_keep kept, on every rank; *out NULL where there is none, or where it is
 * damaged (said: that phase is done again). Caller frees (free). */
err learn_recall(quantize_run *q, const char *key, double **out, int64_t *n, int64_t *phase);

/* Collective. Rotations, and how many phases are behind them, into a commit. */
err learn_keep_rotations(learner *l, int64_t phases_done);
void learn_take_rotations(learner *l, const double *v); /* local; the same back */
int64_t learn_rotations_count(const learner *l);        /* local; doubles of the two */

/* A phase as the loop of steps sees it: the functions of pipeline/learn_*.h with their object. */
typedef struct learn_phase {
    void *self;
    int64_t number; /* k of learn.k */
    int64_t steps;
    int64_t commit_steps; /* a commit after so many steps at most (and each 60 s) */
    err (*step)(void *self, learn_report *report);
    int64_t (*state_count)(void *self);
    err (*state_save)(void *self, double *out); /* collective; written at root */
} learn_phase;

/* Collective. Steps done + 1 .. p->steps with their events, commits, and stops (ERR_STOPPED). */
err learn_run_steps(learner *l, const learn_phase *p, int64_t done);

/* Collective. Phase k with the objective range. saved (NULL: none) is the state to go on from. */
err learn_range_phase(learner *l, int64_t k, const double *saved, int64_t n_saved);

#endif
