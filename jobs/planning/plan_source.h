/* plan_source - a model for a plan: its folder, of which only config.json has to be there. Where
 * the weights are not, or not all, a list of them is made from config.json and held against the
 * index. Not for runs (jobs/setup/source.h). */
#ifndef SPINSHARD_JOBS_PLANNING_PLAN_SOURCE_H
#define SPINSHARD_JOBS_PLANNING_PLAN_SOURCE_H

#include "jobs/setup/source.h"

/* Local; c is a world of one. *files: of the weights, by the index, or 1. Caller closes
 * (source_close). Fails with ERR_INPUT as source_open, where the index names other tensors than
 * config.json demands, and for weights that another tool has quantized, by its name. */
err plan_source_open(const comm *c, const char *dir, source *out, int64_t *files);

#endif
