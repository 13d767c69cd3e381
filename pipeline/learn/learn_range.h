/* learn_range - a phase of learning by the layer-local objective: each rank works on the rows of
 * its own layers; per step only the integer sums of R1's gradient and the Cayley step cross ranks.
 * R2 of a layer is learned by the rank that owns it. No pipeline, no bubbles. On the way: gradient
 * of R at each site -> sum over layers and ranks -> Cayley step. */
#ifndef SPINSHARD_PIPELINE_LEARN_LEARN_RANGE_H
#define SPINSHARD_PIPELINE_LEARN_LEARN_RANGE_H

#include "base/err.h"
#include "model/input_bits.h"
#include "mpi/comm.h"
#include "mpi/dealt_rows.h"
#include "pipeline/learn/learn_report.h"
#include "pipeline/learn/row_pool.h"
#include "pipeline/learn/weight_rows.h"
#include "quant/fake_quant.h"
#include "rotations/cayley_dist.h"

#include <stdint.h>

typedef struct learn_range_options {
    int64_t steps, rows; /* rows: of R1 sites a step, over the whole model; as many of weights */
    optimizer_kind kind;
    lr_schedule schedule;
    double lr_r1, lr_r2;
    const rotation *cache_rotation; /* llama_sites.cache_rotation; borrowed */
    aquant act, kv;                 /* what is quantized: sites at 16 bit drop out */
    input_eight eight;              /* inputs of 8 bits, whose noise counts less */
    bool o_rows;      /* ranges of the o_proj input lie within heads, so that R2 alone decides them;
                         else only values count */
    bool r1;          /* learn R1 */
    int64_t r2_heads; /* R2 of a layer: 0, 1, or one a KV head */
    int64_t layers;   /* of the model */
    uint64_t seed;
    grid_shape grid;
    int blas_threads;
    bool measure; /* the product peak, for the reports: rows of R1 a second, and share of it */
} learn_range_options;

/* Bytes of a number of R1's gradient on its way from rank to rank, for plans. */
enum { RANGE_SUM_BYTES = 7 };

typedef struct learn_range learn_range;

/* Collective on c; ranks own contiguous layers in rank order (the pool's); ranks without layers
 * have an empty pool. Borrows pool, weights and c. weights: rows of weights are samples too
 * (pipeline/learn/weight_rows.h); NULL: they are not. R1 [hidden, hidden] dealt over c, R2
 * [n_layers, r2_heads, head_dim, head_dim] of the rank's own layers: start points, copied (NULL
 * where not learned). No rank holds R1 in fp64 but the cells of the grid their parts (1x1 up to
 * order 2048: all); all hold it in bf16. Caller owns *out. Same result on every rank. Fails with
 * ERR_NOFIT, ERR_USAGE (nothing quantized that a rotation could help). */
err learn_range_create(const comm *c, const learn_range_options *o, row_pool *pool,
                       weight_rows *weights, const dealt_rows *R1, const double *R2,
                       learn_range **out);
void learn_range_destroy(learn_range **l); /* collective; NULL is fine; sets NULL */

/* Collective. One step. Fails, agreed, with ERR_NUMERICS. */
err learn_range_step(learn_range *l, learn_report *report);

/* Collective. R1 as it is, into `to`, where R1 is learned; else `to` is left alone. */
void learn_range_take_r1(learn_range *l, dealt_rows *to);
/* Local. R2 of the rank's own layers as they are. Borrowed; change with a step. */
const double *learn_range_r2(const learn_range *l);
/* Local. What every rank holds a copy of, for mpi/replicas.h: R1 in bf16, NULL where it is not
 * learned; returns its bytes. Borrowed; changes with a step. */
uint64_t learn_range_replica(const learn_range *l, const void **data);

/* Local. Bytes of learn_range_create and its steps on a rank with n_layers layers, for plans; cell:
 * the rank is one of the grid. rows_of_weights: that it draws at most, 0 without them; groups:
 * ranges of one. */
uint64_t learn_range_bytes(const llama_config *cfg, const learn_range_options *o, int64_t n_layers,
                           bool cell, int64_t rows_of_weights, int64_t groups);

/* Collective. Bytes of R1, its optimiser and the step, of the largest rank. */
uint64_t learn_range_r1_bytes(const learn_range *l);

#endif
