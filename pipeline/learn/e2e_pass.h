/* e2e_pass - windows of tokens forward and backward through the stages of one replica with every
 * quantization site on: loss of each window, and the gradients of the rotations and scales as exact
 * sums. It carries out a schedule (pipeline/stages/schedule.h). Not the sum over replicas and not
 * the step (pipeline/learn/learn_e2e.h). Stands at "block forward with quantization sites -> loss
 * -> gradient of R at each site".
 *
 * Bits do not depend on stages, replicas, recompute or threads: the unit of a sum is the gradient
 * of one layer, window and slice. */
#ifndef SPINSHARD_PIPELINE_LEARN_E2E_PASS_H
#define SPINSHARD_PIPELINE_LEARN_E2E_PASS_H

#include "model/weight_site.h"
#include "mpi/comm.h"
#include "pipeline/fixed_sum.h"
#include "pipeline/learn/e2e_objective.h"
#include "pipeline/stages/load_stage.h"
#include "pipeline/stages/schedule.h"

/* What a pass works with. All ranks of a replica pass equal values, except stage and rows, which
 * are each rank's own. Everything is borrowed. */
typedef struct e2e_setting {
    const comm *stages; /* ranks of the replica, one a stage, in order */
    const llama_stage *stage;
    const embed_rows *rows; /* first stage; NULL: its embedding has every token */
    const schedule *order;
    llama_pass_shape shape; /* head and top_k are filled in here for the rank */
    const e2e_objective *objective;
    int64_t top_k;
    int64_t r2_entries;   /* doubles of the R2 of a layer */
    weight_site *weights; /* weights in the loop, refreshed by the caller; NULL: as they are */
} e2e_setting;

typedef struct e2e_window {
    const int32_t *ids; /* [shape.window] */
    int64_t number;     /* for messages */
} e2e_window;

/* What a pass gives on a rank. */
typedef struct e2e_result {
    fixed_sum *R1; /* [hidden, hidden]; NULL: not wanted */
    fixed_sum *R2; /* [layers of the stage, r2_entries]; NULL: not wanted */
    fixed_sum
        *scales;  /* dL / d log s, [layers of the stage, scale_sizes_at of shape.scales]; NULL */
    double *loss; /* [windows], last stage: summed over the predictions of a window, in nats */
} e2e_result;

typedef struct e2e_pass e2e_pass;

/* Local. sites: which act, as for llama_saved_create; gemm_threads() is taken here. Caller owns
 * *out. Fails with ERR_NOFIT. */
err e2e_pass_create(const e2e_setting *s, const llama_sites *sites, e2e_pass **out);
void e2e_pass_destroy(e2e_pass **p); /* local; NULL is fine; sets NULL */

/* Local. Bytes that create takes on a stage of n_layers layers, with k windows in flight. */
uint64_t e2e_pass_bytes(const llama_config *cfg, const llama_sites *sites,
                        const llama_pass_shape *shape, int64_t n_layers, int64_t k, bool recompute,
                        int64_t teacher_windows);

/* Collective on the replica. All windows of the schedule; weight: of each token's loss in the
 * gradient. Sums are added to (fixed_sum_begin by the caller). The error is this rank's own: the
 * caller lets all ranks agree. ERR_NUMERICS names layer and window where numbers stop being finite;
 * `step` is for the message. */
err e2e_pass_run(e2e_pass *p, const llama_sites *sites, const e2e_window *windows, double weight,
                 int64_t step, const e2e_result *out);

#endif
