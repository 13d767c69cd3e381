/* learn_looks - inputs of all linears before and after what was learned, for the report of a run in
 * which no GPTQ looks at them. */
#ifndef SPINSHARD_JOBS_PHASES_LEARN_LOOKS_H
#define SPINSHARD_JOBS_PHASES_LEARN_LOOKS_H

#include "jobs/phases/learner.h"

/* Local. Are rows for it to be kept in the capture? The same on every rank. */
bool learn_looks_wanted(const quantize_run *q);

/* Local. Their bytes of the layers l->range, added to *p: they stay from the capture to the end of
 * learning, beside the passes of objectives that run the whole model too. */
void learn_looks_memory(const learner *l, memory_plan *p);

/* Collective. Room for the rows, l->looks, where they are wanted: on all ranks, or, with a warning,
 * on none, since a report of some layers would give them the numbers of others. */
void learn_looks_room(learner *l);

/* Collective, once q->rotations are those that fusion uses: an event for each layer, from the rows
 * of l->looks, which are freed. Nothing where no rank has any. */
err learn_look(learner *l);

#endif
