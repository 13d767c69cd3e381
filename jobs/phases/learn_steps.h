/* learn_steps - the loop of steps of a learning phase: progress, events, commits, stops. */
#ifndef SPINSHARD_JOBS_PHASES_LEARN_STEPS_H
#define SPINSHARD_JOBS_PHASES_LEARN_STEPS_H

#include "jobs/phases/learn_state.h"
#include "jobs/phases/learner.h"
#include "pipeline/learn/learn_report.h"
#include "pipeline/learn/learn_verdict.h"

enum { LEARN_COMMIT_SECONDS = 60 }; /* between commits at most */

/* A phase as the loop of steps sees it: the functions of pipeline/learn/learn_*.h with their
 * object. */
typedef struct learn_phase {
    void *self;
    int64_t number; /* k of learn.k */
    int64_t steps;
    int64_t commit_steps; /* a commit after so many steps at most (and each 60 s) */
    int64_t judge_every;  /* learn_judge_due */
    err (*step)(void *self, learn_report *report);
    err (*judge)(void *self, learn_verdict *v); /* collective; NULL: nothing is taken back */
    /* The state for a restart has a part that is common to the run, of state_count doubles (local).
     * state_save writes it at root, state_load takes it on every rank, after the pieces were read
     * (both collective). state_cell (local) tells where the part stands that this rank alone has,
     * and returns how many pieces that is. */
    int64_t (*state_count)(void *self);
    err (*state_save)(void *self, double *common);
    err (*state_load)(void *self, const double *common);
    int (*state_cell)(void *self, byte_piece out[CAYLEY_STATE_PIECES]);
    /* Local. Bytes that must be equal on every rank that has them (mpi/replicas.h), and their
     * number. */
    uint64_t (*replica)(void *self, const void **data);
} learn_phase;

/* Collective. Steps up to p->steps with their events, commits, and stops (ERR_STOPPED), after those
 * of `saved` where that is a state of this phase and of its sizes on every rank. */
err learn_run_steps(learner *l, const learn_phase *p, const learn_saved *saved);

#endif
