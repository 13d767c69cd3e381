/* noise_table - what the noise of each quantizer of the running model costs, in nats a token, and
 * its clips, as JSON for events.jsonl and as a table for `inspect --sites`. Not how it is found
 * (jobs/phases/learn_sites.h). */
#ifndef SPINSHARD_JOBS_RUN_NOISE_TABLE_H
#define SPINSHARD_JOBS_RUN_NOISE_TABLE_H

#include "base/err.h"
#include "base/json.h"

/* Local. {"site", "bits", "clip": [a, b], "nats_unclipped", "nats"} of a quantizer. An event
 * "noise" has those of a layer as {"layer", "noise": [..]}. */
json_t *noise_table_row(const char *site, int bits, const double ends[2], double unclipped,
                        double clipped);

/* Root only. Sums of each site over the layers, [{"layer", "noise"}], as lines of the log. */
void noise_table_tell(const json_t *layers);

void noise_table_print(const json_t *layers); /* root only; on stdout */

#endif
