/* quantize_numerics - grids, threads and slices of a run: chosen once, kept by every restart, since
 * bytes may depend on them. */
#ifndef SPINSHARD_JOBS_RUN_QUANTIZE_NUMERICS_H
#define SPINSHARD_JOBS_RUN_QUANTIZE_NUMERICS_H

#include "jobs/run/quantize_run.h"

/* Collective on q->c. numerics.grid and .threads in the recipe become those of this run, or of the
 * unfinished run that it goes on with; left at auto where no byte depends on them. Fails with
 * ERR_MISMATCH where the ranks are fewer than the cells. */
err quantize_resolve_numerics(quantize_run *q);
/* Local. numerics.slice_tokens of phases end to end becomes a number. */
void quantize_resolve_slices(quantize_run *q);
/* Local. numerics.gptq_grid: auto, as a fresh run on so many ranks would resolve it. */
void quantize_choose_gptq_grid(quantize_run *q, int ranks);

#endif
