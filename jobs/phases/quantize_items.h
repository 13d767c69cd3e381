/* quantize_items - phase gptq of quantize, where it rounds to nearest: every rank does its items,
 * each unit becomes an object of the run state, rank 0 commits. A killed run finds its objects
 * again. */
#ifndef SPINSHARD_JOBS_PHASES_QUANTIZE_ITEMS_H
#define SPINSHARD_JOBS_PHASES_QUANTIZE_ITEMS_H

#include "jobs/run/phase.h"

err quantize_items_plan(plan_maker *m);
err quantize_do_items(quantize_run *q); /* collective; items that are not done yet, to objects */

#endif
