/* quantize_gptq - phase gptq where weights.method is gptq or gptaq: the layers, one after the other
 * with all ranks, each an object of the run state as soon as it is done. A killed run takes its
 * streams through the finished layers again and goes on with the layer that it lost. The embedding
 * and the head follow as with rounding to nearest (quantize_items.h). */
#ifndef SPINSHARD_JOBS_PHASES_QUANTIZE_GPTQ_H
#define SPINSHARD_JOBS_PHASES_QUANTIZE_GPTQ_H

#include "jobs/run/phase.h"

bool quantize_gptq_wanted(const quantize_run *q);
err quantize_gptq_plan(plan_maker *m);
err quantize_gptq(quantize_run *q); /* collective */

#endif
