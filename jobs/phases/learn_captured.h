/* learn_captured - what the capture leaves in the run state, so that a later start reads it in
 * place of capturing again: an object for each layer, whose bytes depend neither on ranks nor on
 * the order of windows. In the work tree "captured": {bytes, looks (inputs for the report are
 * there), cells: [{object}]}. Whether it is worth it the plan says. */
#ifndef SPINSHARD_JOBS_PHASES_LEARN_CAPTURED_H
#define SPINSHARD_JOBS_PHASES_LEARN_CAPTURED_H

#include "jobs/phases/learner.h"
#include "jobs/run/phase.h"

/* Local. Bytes and times of it, to the phase "capture" of the plan, which is there. */
void learn_captured_plan(learner *l, plan_maker *m);

/* Collective. Where the plan says so and the disk has room, what learn_capture_rows left goes to
 * objects, and a commit names them. A disk that is full is no error: then a restart captures again.
 * Fails, agreed. */
err learn_captured_save(learner *l);

/* Collective. It has served: a commit names it no longer, and its objects go. */
err learn_captured_drop(learner *l);

/* Collective. All that this learner needs of a capture, as a commit names it, and the weights that
 * stay: as after learn_capture_rows. *whole false, which is said: there is none, it is damaged, or
 * a part that is needed now was not kept; the learner holds nothing of it then, and its objects are
 * gone, so that they take no room from the next. Fails, agreed, with ERR_NOFIT and for weights that
 * cannot be read. */
err learn_captured_recall(learner *l, bool *whole);

/* Collective. Of that the inputs for the report alone, l->looks: for a start that comes between the
 * end of learning and the look at them. Nothing where none are named; a warning where they are
 * damaged. */
err learn_captured_recall_looks(learner *l);

#endif
