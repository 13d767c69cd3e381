/* learn_e2e_state - what a phase of learning end to end (pipeline/learn/learn_e2e.h) saves for a
 * restart, as raw doubles for the run state; of `range` that is learn_range_state.h. */
#ifndef SPINSHARD_PIPELINE_LEARN_LEARN_E2E_STATE_H
#define SPINSHARD_PIPELINE_LEARN_LEARN_E2E_STATE_H

#include "pipeline/learn/learn_e2e.h"

/* common: the step, the exponents of the sums, the judge, all R2 with their optimisers, then, where
 * scales are learned, their exponent, steps, and each layer's scales with their optimiser; for any
 * ranks. cell: R1 and its optimiser as this rank has them, where they stand: none but on the cells
 * of the grid, where a restart must have the same ones. */
int64_t learn_e2e_state_count(const learn_e2e *l);                           /* local */
int learn_e2e_state_cell(learn_e2e *l, byte_piece out[CAYLEY_STATE_PIECES]); /* local */
/* Collective. common is written at root alone. */
err learn_e2e_state_save(learn_e2e *l, double *common);
/* Collective. common on every rank, and after the pieces of the cells were written. Fails, agreed,
 * as scale_part_state_load. */
err learn_e2e_state_load(learn_e2e *l, const double *common);

#endif
