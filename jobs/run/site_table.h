/* site_table - what the inputs of the linears of each layer look like, before and after rotation,
 * as JSON for events.jsonl and as a table for `inspect --sites`. Not how it is found
 * (pipeline/site_look.h, model/site_stats.h). */
#ifndef SPINSHARD_JOBS_RUN_SITE_TABLE_H
#define SPINSHARD_JOBS_RUN_SITE_TABLE_H

#include "base/err.h"
#include "base/json.h"
#include "pipeline/site_look.h"

/* Local. {"layer", "sites": [{"site", "tokens", "width", "before": S, "after": S}]}, the sites that
 * are there; S is {"rms", "max_over_rms", "kurtosis", "token_max_over_rms", "outlier_tokens",
 * "log_qsur", "edges", "shares"}: max_over_rms of all entries, token_max_over_rms the mean over
 * tokens of each token's own, outlier_tokens a share, log_qsur log QSUR / d or null; shares [k] of
 * the entries have |x| / rms in edges [k] .. edges [k + 1], the last ends at max_over_rms, and what
 * is below the first edge is in none. Of the layer in the middle also "map": {"tokens", "bands",
 * "one", "before", "after"}, two hex digits for each band of channels of each token: `one` + 16
 * log2 of the largest |x| over the rms of all. New reference. */
json_t *site_table_of(int64_t layer, const site_look sites[STEP_COUNT]);

void site_table_print(const json_t *layers); /* root only; [site_table_of of each] on stdout */

#endif
