/* gptq_table - what GPTQ did to each linear, for people and machines: relative error of its output
 * before (rounding to nearest with the same scales) and after, damping, rows that fell back, time.
 * Not measured here (pipeline/gptq/gptq_layer.h). */
#ifndef SPINSHARD_JOBS_RUN_GPTQ_TABLE_H
#define SPINSHARD_JOBS_RUN_GPTQ_TABLE_H

#include "base/err.h"
#include "base/json.h"
#include "pipeline/gptq/gptq_layer.h"

/* Local. {"layer", "seconds", "steps": [s], "tensors": [{"tensor", "before", "after", "damping",
 * "raises", "fell_back", "rows", "alpha"}]}; before and after are null where not defined. */
json_t *gptq_table_of(const llama_config *cfg, int64_t layer, double seconds,
                      const gptq_layer_report *report);

/* Root only. A layer as one line of the log; all layers {"0": table, ..} by linear. */
void gptq_table_tell(const llama_config *cfg, int64_t layer, double seconds,
                     const gptq_layer_report *report);
void gptq_table_summary(const json_t *layers);

/* Local. The table of an output folder from its events.jsonl: [table of each layer] in *out, of a
 * layer the newest; caller owns *out. ERR_INPUT where the file is missing or tells of none. */
err gptq_table_read(const char *out_dir, json_t **out);
void gptq_table_print(const json_t *layers); /* root only; on stdout */

#endif
