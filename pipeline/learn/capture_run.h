/* capture_run - calibration windows once forward and once backward through the stages in full
 * precision; the inputs of the rotated sites and their sensitivities go into the row pools of the
 * ranks that own the layers. Not learning: weights and rotations stay. Stands before the objective
 * `range` and the start points that need activations. */
#ifndef SPINSHARD_PIPELINE_LEARN_CAPTURE_RUN_H
#define SPINSHARD_PIPELINE_LEARN_CAPTURE_RUN_H

#include "base/err.h"
#include "model/backward.h"
#include "mpi/comm.h"
#include "pipeline/learn/row_pool.h"
#include "pipeline/stages/eval_run.h"

/* Hooks that see the activations and gradients of the pass; n may be 0. The order in which the
 * windows reach a layer depends on the number of stages, so what a hook adds up must not depend on
 * order. */
typedef struct capture_hooks {
    const llama_hook *hooks; /* borrowed */
    int n;
    int64_t *window; /* borrowed; set to the window whose rows come next; NULL: nobody asks */
} capture_hooks;

/* Called on every rank of c between two waves of windows, with those done. What it returns must be
 * the same on all of them; an error ends the capture. call NULL: nobody is to be told. */
typedef struct capture_between {
    err (*call)(void *ctx, const comm *c, int64_t done, int64_t total);
    void *ctx;
} capture_between;

/* Collective on c, all of whose ranks hold one stage, in order. pool: of this rank's layers, filled
 * with pool->tokens tokens of each site spread evenly over all windows (the first tokens where the
 * windows have fewer; pool->tokens may be 0). *nll (may be NULL): mean cross entropy of the windows
 * in nats, on every rank. Same error on every rank. The rows do not depend on how many stages there
 * are. */
err capture_run(const comm *c, const llama_stage *stage, compute_type compute,
                const embed_rows *rows, const eval_windows *w, row_pool *pool,
                const capture_hooks *also, const capture_between *between, double *nll);

/* Local. Bytes of its buffers on a rank with n_layers layers. */
uint64_t capture_bytes(const llama_config *cfg, compute_type compute, int64_t n_layers,
                       int64_t length, int stages, bool head);

#endif
