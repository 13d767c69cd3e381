/* partition - which rank does what: contiguous stages of layers for a forward pass, and a dealing
 * of independent items for work without order. Pure arithmetic on costs; no ranks, no weights.
 * Stands between "options -> plan" and the weight slots of the owning ranks. */
#ifndef SPINSHARD_PIPELINE_STAGES_PARTITION_H
#define SPINSHARD_PIPELINE_STAGES_PARTITION_H

#include "base/err.h"
#include "model/config.h"

#include <stdint.h>

/* Layers [first, first + n) of a stage; stage 0 also embeds, the last one with layers has the head.
 */
typedef struct stage_range {
    int64_t first, n;
} stage_range;

/* Costs in any common unit (parameters will do): of a layer, and what the first and last stage
 * carry on top, each as computing and as memory. */
typedef struct stage_costs {
    double layer_work, layer_memory;
    double first_work, first_memory;
    double last_work, last_memory;
} stage_costs;

/* Local. Costs of a forward pass of cfg, in parameters: the head counts as work and memory; the
 * embedding as embed_rows rows of memory (only rows that occur are kept). */
stage_costs partition_costs(const llama_config *cfg, int64_t embed_rows);

/* Local. Cut n_layers into at most `ranks` contiguous stages so that the largest stage is smallest,
 * where a stage counts half by its share of all work and half by its share of all memory. ranges
 * [ranks]; stages beyond *n_stages get no layers (idle ranks). Deterministic. n_layers >= 1. */
void partition_stages(int64_t n_layers, const stage_costs *costs, int ranks, stage_range *ranges,
                      int *n_stages);

/* Local. Deal items to ranks, largest first to the least loaded rank (lowest rank at a tie).
 * owner [n_items]. Deterministic. Fails with ERR_NOFIT. */
err partition_items(const double *cost, int64_t n_items, int ranks, int *owner);

#endif
