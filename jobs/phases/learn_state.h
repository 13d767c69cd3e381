/* learn_state - what learning keeps in the run state: objects of doubles, in two generations. In
 * the work tree "learning", "learning.before":   {object, doubles, phase, cells: [{object,
 * doubles}]} "rotations", "rotations.before": {object, doubles, phase}   R1 in rows, R2, scales,
 * clips. */
#ifndef SPINSHARD_JOBS_PHASES_LEARN_STATE_H
#define SPINSHARD_JOBS_PHASES_LEARN_STATE_H

#include "base/byte_piece.h"
#include "base/sha256.h"
#include "jobs/phases/learner.h"

/* The state of a phase: `common` of the whole run, and what one rank alone has (a cell of the grid
 * of R1), which is large and goes from where it stands to its object and back. Kept by learn_save:
 * common as root has it, cells as their ranks have them; given back by learn_recall: common on
 * every rank, to the rank of a cell the name of its object. */
typedef struct learn_saved {
    double *common; /* NULL: none; learn_saved_clear */
    int64_t n_common, n_cell;
    char cell[SHA256_HEX]; /* learn_recall: the object of this rank; "" where n_cell is 0 */
    int64_t phase;         /* k of learn.k */
} learn_saved;
void learn_saved_clear(learn_saved *k); /* local */

/* Collective. The state of a phase to objects and their names into the work tree, `cell` being the
 * pieces of this rank; the state before it stays, the one before that goes with the next
 * learn_commit. Fails, agreed. */
err learn_save(quantize_run *q, const learn_saved *k, const byte_piece *cell, int pieces);

/* Collective. What learn_save kept last, or where that is damaged (said) what it kept before; with
 * neither *out is empty, and the phase begins anew. Fails, agreed, with ERR_NOFIT. */
err learn_recall(quantize_run *q, learn_saved *out);
/* Collective. The object of this rank, which learn_recall found whole, into its pieces. Fails,
 * agreed, with what reading gives. */
err learn_recall_cell(quantize_run *q, const learn_saved *k, const byte_piece *cell, int pieces);

/* Root only. Commit; then the objects that nothing names any more are removed. */
err learn_commit(quantize_run *q, const char *phase);

/* What the capture left (jobs/phases/learn_captured.h) is an entry of its own in the work tree, of
 * one generation: {cells: [{object}], ...}. */
#define LEARN_CAPTURED "captured"

/* Root only, elsewhere nothing. What `key` of the work tree names is removed with the next
 * learn_commit, and the key now. */
void learn_drop(quantize_run *q, const char *key);
/* Collective. The entry of that name of the work tree, on every rank; NULL where there is none. New
 * reference. */
json_t *learn_share_entry(quantize_run *q, const char *name);

/* Collective. Rotations, and how many phases are behind them, into a commit. */
err learn_save_rotations(learner *l, int64_t phases_done);
/* Collective. Read back the rotations that learn_save_rotations kept last, and the number of phases
 * that are behind them. If they are damaged, that is logged and the ones kept before are read. If
 * there are none that are whole, *phases_done is -1. */
err learn_recall_rotations(learner *l, int64_t *phases_done);

/* Local. True where `saved` is a state of phase k of these sizes on this rank. */
bool learn_state_fits(const learn_saved *saved, int64_t k, int64_t n_common, const byte_piece *cell,
                      int pieces);

#endif
