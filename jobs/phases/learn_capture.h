/* learn_capture - rows of calibration text for the layer-local objectives: the windows once forward
 * and back through the stages; how the layers are cut for it. */
#ifndef SPINSHARD_JOBS_PHASES_LEARN_CAPTURE_H
#define SPINSHARD_JOBS_PHASES_LEARN_CAPTURE_H

#include "jobs/phases/learner.h"
#include "jobs/run/phase.h"

/* Local. Layers of the phases before those end to end: contiguous stages of the ranks, ranges
 * [ranks], cut by the work and the memory of the capture, as planned. Looks at the recipe, the
 * model, the scales that are asked for and q->calib_windows: the same on every rank. */
void learn_cut(const learner *l, int ranks, stage_range *ranges, int *n_stages);

/* Local. Tokens of each site in the pool. */
int64_t learn_pool_tokens(const quantize_run *q);

/* Local. Large buffers that the capture leaves until the last phase `range` is done, for plans and
 * runs alike, added to *p. Looks at the recipe, the model, l->range, l->n_stages and
 * q->calib_windows, and not at what is there already. */
void learn_saved_memory(const learner *l, int ranks, memory_plan *p);
/* Local. What a learner holds of the whole model, added to *p: R1 between two uses, its rows dealt
 * over so many ranks, of the largest; R2, scales, R3 and clips on every rank. */
void learn_model_memory(const learner *l, int ranks, memory_plan *p);
err learn_capture_plan(learner *l, plan_maker *m); /* local; the phase of a plan */

/* Collective. The rank's layers into l->stage; calibration windows forward and backward: rows into
 * l->pool, moments into l->moments. Weights stay where phases or the start point need them. */
err learn_capture_rows(learner *l);

/* Parts of it, for a start that reads back what the capture left (learn_captured.h). Collective,
 * and its error is not yet agreed: room for all that this learner needs of it, which is freed by
 * learn_capture_clear. Local: the weights that stay, of the rank's layers alone. */
err learn_capture_room(learner *l);
void learn_capture_clear(learner *l); /* local; all that the capture makes, also where it failed */
void learn_rows_clear(learner *l);    /* local; the same but for the inputs of the report */
err learn_capture_weights(learner *l);
uint64_t learn_capture_weights_bytes(const learner *l); /* local; of l->range, 0 where none stay */

#endif
