/* gptq_sites - statistics of the inputs of a layer's linears, as they are and as they would be
 * without rotations and scales, from a sample of the tokens that GPTQ has at hand. For events and
 * reports: codes do not depend on it. On the first rank alone, from its own windows: others wait
 * for less time than a message would take, and what is told does not change the archive. */
#ifndef SPINSHARD_PIPELINE_GPTQ_GPTQ_SITES_H
#define SPINSHARD_PIPELINE_GPTQ_GPTQ_SITES_H

#include "model/config.h"
#include "model/forward.h"
#include "model/site_stats.h"
#include "pipeline/gptq/gptq_windows.h"
#include "rotations/rotation_set.h"

/* A picture of some tokens: of each band of channels the largest |x|, as SITE_MAP_ONE + 16 log2 of
 * what it is over the rms of all, in 0 .. 255. */
enum { SITE_MAP_ROWS = 48, SITE_MAP_COLS = 96, SITE_MAP_ONE = 128 };
typedef struct site_map {
    int rows, cols; /* rows 0: none, for it is made of one layer */
    uint8_t before[SITE_MAP_ROWS * SITE_MAP_COLS], after[SITE_MAP_ROWS * SITE_MAP_COLS];
} site_map;

typedef struct gptq_site {
    bool there;               /* on the first rank, where memory allowed */
    site_stats before, after; /* of the same tokens, without and with rotations and scales */
    double log_det;           /* of the covariance before; NAN: not asked for, or it has none */
    double log_scales; /* log det of what the scales do: log_det after is log_det + 2 of it */
    site_map map;      /* of the layer in the middle */
} gptq_site;

/* Local. Sample of the inputs of a step of a layer in a stream, [length, width] of each own window,
 * as they stand in w. The set may be NULL. Where memory is short out->there stays false; other
 * errors are those of reading the windows. */
err gptq_sites_take(gptq_windows *w, int stream, const llama_config *cfg, rotation_set *set,
                    int64_t layer, llama_step step, gptq_site *out);

/* Local. Bytes of its buffers at most, of a model of this shape. */
uint64_t gptq_sites_bytes(const llama_config *cfg);

#endif
