/* learn_state - what learning keeps in the run state: objects of doubles, in two generations. In
 * the work tree "learning", "learning.before":   {object, doubles, phase, cells: [{object,
 * doubles}]} "rotations", "rotations.before": {object, doubles, phase}   R1 in rows, R2, scales,
 * clips "dropped": names of objects that go after the next commit. */
#ifndef SPINSHARD_JOBS_PHASES_LEARN_STATE_H
#define SPINSHARD_JOBS_PHASES_LEARN_STATE_H

#include "jobs/phases/learner.h"

/* Collective. R1 whole on every rank, for those who need it so: *out [hidden, hidden], NULL where
 * R1 is NULL; caller frees (mem_free). Fails, agreed, with ERR_NOFIT. */
err learn_r1_whole(const learner *l, double **out);

/* The state of a phase: `common` of the whole run, `cell` what one rank alone has (a cell of the
 * grid of R1). Kept by learn_keep: common as root has it, cells as their ranks have them; given
 * back by learn_recall: common on every rank, a cell to the rank of its number. */
typedef struct learn_kept {
    double *common, *cell; /* NULL: none; learn_kept_clear */
    int64_t n_common, n_cell;
    int64_t phase; /* k of learn.k */
} learn_kept;
void learn_kept_clear(learn_kept *k); /* local */

/* Collective. The state of a phase to objects and their names into the work tree; the state before
 * it stays, the one before that goes with the next learn_commit. Fails, agreed. */
err learn_keep(quantize_run *q, const learn_kept *k);

/* Collective. What learn_keep kept last, or where that is damaged (said) what it kept before; with
 * neither *out is empty, and the phase begins anew. Fails, agreed, with ERR_NOFIT. */
err learn_recall(quantize_run *q, learn_kept *out);

/* Root only. Commit; then the objects that nothing names any more are removed. */
err learn_commit(quantize_run *q, const char *phase);

/* Collective. Rotations, and how many phases are behind them, into a commit. */
err learn_keep_rotations(learner *l, int64_t phases_done);
/* Collective. Read back the rotations that learn_keep_rotations kept last, and the number of phases
 * that are behind them. If they are damaged, that is logged and the ones kept before are read. If
 * there are none that are whole, *phases_done is -1. */
err learn_recall_rotations(learner *l, int64_t *phases_done);

/* Local. True where `saved` is a state of phase k of these sizes on this rank. */
bool learn_state_fits(const learn_kept *saved, int64_t k, int64_t n_common, int64_t n_cell);

#endif
