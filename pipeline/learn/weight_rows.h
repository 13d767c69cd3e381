/* weight_rows - rows of the rotated weights of this rank's layers as samples of the objective
 * `range`: for weights of few bits, whatever the bits of activations. Not activations
 * (pipeline/learn/row_pool.h) and not the step on the group. Weights are read where they stand
 * (model/forward.h); nothing is copied but the rows of a step.
 *
 * What is quantized is W' = A^T W B (model/fuse.h), a range for each row i and group of inputs k.
 * Rounding makes noise of variance range^2 / (12 L^2) with L = 2^b - 1 (symmetric, range 2 max |u|:
 * 2^b - 2), so by pipeline/learn/weight_moments.h the expected change of the loss per token is
 *     sum_W sum_i sum_k m_i range_ik^2 / (24 L^2 groups),      m_i = mean g_i^2 |x|^2
 * (inputs are mixed: every group sees its share of |x|^2). With z_i = (A^T W)_i and u = z_i B
 *     dL/dB = sum_i z_i^T du_i          two non-zeros in du for each range
 *     dL/dA = W (B du_i^T) in column i
 * A     none: q, k, gate, up;  R2 of the KV head: v;  R1: o, down
 * B     R1: q, k, v, gate, up; R2 of the KV head: o;  R4 or none: down
 *
 * A step takes `rows` samples over the whole model, drawn by their share K_i = m_i |z_i|^2 of what
 * is to be lost: a drawn row is scaled to |z| = sqrt(hidden), and then all weigh the same. Rows of
 * matrices with A have equal shares within the matrix (after mixing), and are taken
 * evenly spread, from a random first one. Embedding and head stay at 16 bit and are not here. */
#ifndef SPINSHARD_PIPELINE_LEARN_WEIGHT_ROWS_H
#define SPINSHARD_PIPELINE_LEARN_WEIGHT_ROWS_H

#include "model/forward.h"
#include "mpi/comm.h"
#include "pipeline/learn/range_step.h"
#include "pipeline/learn/weight_moments.h"
#include "quant/rtn.h"

typedef struct weight_rows_options {
    wquant how;         /* bits, group, symmetric */
    bool r1;            /* R1 is learned */
    int64_t r2_heads;   /* R2 of a layer: 0, 1, or one a KV head */
    const rotation *R4; /* as folded into down; NULL: none; borrowed */
    int64_t rows;       /* samples of a step over the whole model */
    int64_t layers;     /* of the model */
    uint64_t seed;
} weight_rows_options;

typedef struct weight_rows weight_rows;

/* Collective on c; ranks own contiguous layers in rank order. stage: this rank's layers, ready for
 * bf16 products; m: of the same layers; both borrowed. Caller owns *out. Same result on every
 * rank. Fails with ERR_NOFIT, and with ERR_NUMERICS if all moments or weights are zero or one is
 * not finite. */
err weight_rows_create(const comm *c, const weight_rows_options *o, const llama_stage *stage,
                       const weight_moments *m, weight_rows **out);
void weight_rows_destroy(weight_rows **w); /* local; NULL is fine; sets NULL */
/* Local. Bytes of weight_rows_create for n_layers layers. */
uint64_t weight_rows_bytes(const llama_config *cfg, const weight_rows_options *o, int64_t n_layers);

/* Local. Rows of this rank that weight_rows_add adds; ranges of one row. */
int64_t weight_rows_direct(const weight_rows *w);
int64_t weight_rows_groups(const weight_rows *w);
/* Local. Largest weight of a sample at factor 1, over the model; samples of the whole model. */
double weight_rows_heaviest(const weight_rows *w);
int64_t weight_rows_samples(const weight_rows *w);
/* Local. Expected change of the loss (nats per token) for each unit of the sum of w range^2 over
 * the samples of a step. */
double weight_rows_unit(const weight_rows *w);

/* Local. Add this step's rows of the linears without A (q, k, gate, up) to the batch of R1, each
 * weighted by its own weight times `factor`. */
void weight_rows_add(weight_rows *w, int64_t step, float factor, range_work *batch);

#endif
