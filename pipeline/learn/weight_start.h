/* weight_start - second moments of the weights, for the start point `womi` (rotations/start.h): R1
 * from what reads and writes the residual stream, R2 from v and o. Not of activations
 * (pipeline/learn/row_pool.h). Means of weights are near zero: moments stand for covariances.
 *   R1: sum over layers of G W^T W G for q, k, v, gate, up (G: norm gains), and W W^T for o, down
 *   R2: W_v,h G^2 W_v,h^T of the KV head, and W_o^T W_o of the inputs of its query heads */
#ifndef SPINSHARD_PIPELINE_LEARN_WEIGHT_START_H
#define SPINSHARD_PIPELINE_LEARN_WEIGHT_START_H

#include "model/forward.h"
#include "mpi/dmat.h"

/* Collective on c. stage: this rank's layers, ready for bf16 products. [hidden, hidden] on every
 * rank; exact in any order, so the same for any number of ranks. Fails, agreed, with ERR_NOFIT. */
err weight_start_moment_r1(const comm *c, const llama_stage *stage, double *out);

/* Collective on the communicator of out's grid. As weight_start_moment_r1, into a block-cyclic
 * matrix and in bands of rows. Only the lower triangle of *out is defined. */
err weight_start_moment_r1_dist(const llama_stage *stage, dmat *out);

/* Local. Of layer i of the stage (from 0): of all heads, or (kv_head >= 0) of one KV head and its
 * query heads; out [head_dim, head_dim]. Fails with ERR_NOFIT. */
err weight_start_moment_r2(const llama_stage *stage, int64_t i, int64_t kv_head, double *out);

#endif
