/* learn_range_state - what a phase of the objective `range` (pipeline/learn/learn_range.h) keeps
 * for a restart, as raw doubles for the run state. */
#ifndef SPINSHARD_PIPELINE_LEARN_LEARN_RANGE_STATE_H
#define SPINSHARD_PIPELINE_LEARN_LEARN_RANGE_STATE_H

#include "pipeline/learn/learn_range.h"

/* Everything a restart needs, as doubles. common: the step, the
 * verdicts, all R2 and their optimisers, for any
 * ranks. cell: R1 and its optimiser as this rank has them: 0 of them but on the cells of the grid,
 * where a restart must have the same ones (the first ranks; on 1x1 the first). */
void learn_range_state_counts(const learn_range *l, int64_t *common, int64_t *cell); /* local */
/* Collective. common is written at root alone, cell where it counts. */
err learn_range_state_save(learn_range *l, double *common, double *cell);
/* Collective. common on every rank. */
err learn_range_state_load(learn_range *l, const double *common, const double *cell);

#endif
