/* site_look - what a sample of the inputs of a layer's linears looks like, as they are and as
 * rotations and scales make them: the statistics of model/site_stats.h on both sides, and a
 * picture. For events and reports: nothing of an archive depends on it. Not the sampling: rows come
 * from GPTQ's windows (pipeline/gptq/gptq_sites.h) or from the capture
 * (pipeline/learn/site_rows.h). */
#ifndef SPINSHARD_PIPELINE_SITE_LOOK_H
#define SPINSHARD_PIPELINE_SITE_LOOK_H

#include "model/config.h"
#include "model/forward.h"
#include "model/site_stats.h"
#include "rotations/rotation_set.h"

/* A picture of some tokens: of each band of channels the largest |x|, as SITE_MAP_ONE + 16 log2 of
 * what it is over the rms of all, in 0 .. 255. */
enum { SITE_MAP_ROWS = 48, SITE_MAP_COLS = 96, SITE_MAP_ONE = 128 };
typedef struct site_map {
    int rows, cols; /* rows 0: none, for it is made of one layer */
    uint8_t before[SITE_MAP_ROWS * SITE_MAP_COLS], after[SITE_MAP_ROWS * SITE_MAP_COLS];
} site_map;

typedef struct site_look {
    bool there;               /* looked at: on the rank that has the rows, where memory allowed */
    site_stats before, after; /* of the same tokens, without and with rotations and scales */
    double log_det;           /* of the covariance before; NAN: not asked for, or it has none */
    double log_scales; /* log det of what the scales do: log_det after is log_det + 2 of it */
    site_map map;      /* of the layer in the middle */
} site_look;

/* Which side the rows show. */
typedef enum site_side { SITE_BEFORE, SITE_AFTER } site_side;

/* Local, threaded. Look at x [rows, llama_step_width], the inputs of a step of a layer on one side;
 * x is rotated to the other in place. The set may be NULL. covariance: log_det is wanted, of more
 * than `width` rows. Where memory is short out->there stays false, or log_det NAN; other errors are
 * those of making R2. */
err site_look_take(const llama_config *cfg, rotation_set *set, int64_t layer, llama_step step,
                   site_side side, bool covariance, float *x, int64_t rows, site_look *out);

#endif
