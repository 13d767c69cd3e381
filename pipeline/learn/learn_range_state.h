/* learn_range_state - what a phase of the objective `range` (pipeline/learn/learn_range.h) keeps
 * for a restart, as raw doubles for the run state. */
#ifndef SPINSHARD_PIPELINE_LEARN_LEARN_RANGE_STATE_H
#define SPINSHARD_PIPELINE_LEARN_LEARN_RANGE_STATE_H

#include "pipeline/learn/learn_range.h"

/* Everything a restart needs, as doubles. common: the step, the verdicts, all R2 and their
 * optimisers, for any ranks. cell: R1 and its optimiser as this rank has them, where they stand:
 * none but on the cells of the grid, where a restart must have the same ones (the first ranks; on
 * 1x1 the first). */
int64_t learn_range_state_count(const learn_range *l); /* local; doubles of common */
int learn_range_state_cell(learn_range *l, byte_piece out[CAYLEY_STATE_PIECES]); /* local */
/* Collective. common is written at root alone. */
err learn_range_state_save(learn_range *l, double *common);
/* Collective. common on every rank, and after the pieces of the cells were written. */
err learn_range_state_load(learn_range *l, const double *common);

#endif
