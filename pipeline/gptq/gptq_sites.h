/* gptq_sites - a look at the inputs of a layer's linears (pipeline/site_look.h), from a sample of
 * the tokens that GPTQ has at hand. On the first rank alone, from its own windows: others wait
 * for less time than a message would take, and what is told does not change the archive. */
#ifndef SPINSHARD_PIPELINE_GPTQ_GPTQ_SITES_H
#define SPINSHARD_PIPELINE_GPTQ_GPTQ_SITES_H

#include "pipeline/gptq/gptq_windows.h"
#include "pipeline/site_look.h"

/* Local. Sample of the inputs of a step of a layer in a stream, [length, width] of each own window,
 * as they stand in w. The set may be NULL. Where memory is short out->there stays false; other
 * errors are those of reading the windows. */
err gptq_sites_take(gptq_windows *w, int stream, const llama_config *cfg, rotation_set *set,
                    int64_t layer, llama_step step, site_look *out);

/* Local. Bytes of its buffers at most, of a model of this shape. */
uint64_t gptq_sites_bytes(const llama_config *cfg);

#endif
