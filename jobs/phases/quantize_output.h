/* quantize_output - the output of quantize: opening the run folder (or finding one to go on with),
 * objects into tars, and what is left beside them. */
#ifndef SPINSHARD_JOBS_PHASES_QUANTIZE_OUTPUT_H
#define SPINSHARD_JOBS_PHASES_QUANTIZE_OUTPUT_H

#include "jobs/run/phase.h"

/* Collective. Phase load: run folder, state, what is done already. */
err quantize_open_output(quantize_run *q);
/* Phases pack and verify: objects to tars, flushed, read back and hashed, then the manifest. */
err quantize_pack_plan(plan_maker *m);
err quantize_pack(quantize_run *q); /* collective */
/* Collective. Phase done: reports, the run folder is removed. */
err quantize_finish(quantize_run *q);

#endif
