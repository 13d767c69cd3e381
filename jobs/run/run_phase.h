/* run_phase - start and end of a phase of a run, in the log and the events: its time and memory
 * beside what the plan said. Not what a phase does (jobs/run/phase.h). */
#ifndef SPINSHARD_JOBS_RUN_RUN_PHASE_H
#define SPINSHARD_JOBS_RUN_RUN_PHASE_H

#include "jobs/run/quantize_run.h"

/* Local. The phases of the plan go into the events, for who watches the run. */
void quantize_tell_plan(const quantize_run *q);

/* Local. The phase begins: its clock, its peak of memory, an event. */
void quantize_phase_start(quantize_run *q, const char *phase);
/* Collective on q->c. It ends, told with its plan; `more` (root; or NULL) is taken over into the
 * event. */
void quantize_phase_end(quantize_run *q, const char *phase, json_t *more);

#endif
