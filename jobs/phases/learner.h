/* learner - what learning holds on a rank from its capture to its last phase. Its steps are in
 * jobs/phases/learn_*.h. */
#ifndef SPINSHARD_JOBS_PHASES_LEARNER_H
#define SPINSHARD_JOBS_PHASES_LEARNER_H

#include "jobs/run/quantize_run.h"
#include "mpi/dealt_rows.h"
#include "pipeline/learn/cache_peaks.h"
#include "pipeline/learn/key_moments.h"
#include "pipeline/learn/learn_range.h"
#include "pipeline/learn/noise_rows.h"
#include "pipeline/learn/row_pool.h"
#include "pipeline/learn/scale_closed.h"
#include "pipeline/learn/scale_smooth.h"
#include "pipeline/learn/site_rows.h"
#include "pipeline/learn/weight_rows.h"
#include "pipeline/plan/memory_plan.h"
#include "pipeline/stages/load_stage.h"
#include "pipeline/stages/partition.h"

/* What learning holds on a rank. */
typedef struct learner {
    quantize_run *q;
    comm *stages; /* ranks with layers; NULL: all of them */
    int n_stages;
    stage_range range; /* layers of this rank */
    row_pool pool;
    llama_stage stage;       /* weights of the layers, while their rows are samples */
    weight_moments *moments; /* of the same layers; NULL: not needed */
    int64_t r2_heads;        /* R2 of a layer */
    dealt_rows *R1;          /* [hidden, hidden], rows dealt over the ranks; NULL: not rotated */
    double *R2;              /* [layers, r2_heads, d, d] of the whole model, on every rank */
    uint32_t scale_kinds;    /* bit 1 << scale_kind: the recipe asks for it, and it helps */
    double *scales;          /* [0] 1 once they are known; then each kind [layers, length]; on every
                                rank; NULL: none asked for */
    int64_t n_scales;
    scale_moments *scale_moments; /* of the rank's layers; NULL: not needed */
    scale_peaks *scale_peaks;     /* the same for scale.start: smooth */
    double *sites; /* [0] 1 once clips, R3 and peaks are known; then they, learn_site_state.c; on
                      every rank; NULL: none asked for */
    int64_t n_sites;
    uint32_t noise_places; /* bit 1 << clip_place: quantized, and judged */
    bool r3_wanted;
    bool cache_wanted;  /* scales of an FP8 cache */
    cache_peaks *peaks; /* of the rank's layers; NULL: not needed */
    key_moments *keys;  /* of the rank's layers; NULL: not needed */
    noise_rows *noise;
    noise_rows *drawn; /* rows of R1 sites until the pool has them; NULL: not needed */
    site_rows *looks;  /* for the report; NULL: not needed, or memory was short */
} learner;

/* Local. */
static inline const llama_config *learner_cfg(const learner *l) {
    return &l->q->source.cfg;
}
/* Local. Doubles of the R2 of one layer. */
static inline int64_t learner_r2_entries(const learner *l) {
    return l->r2_heads * learner_cfg(l)->head_dim * learner_cfg(l)->head_dim;
}

#endif
