/* learn_range_internal - a phase of the objective `range` as its three files share it: its life and
 * its steps (learn_range.c), the judgement on held-out rows (learn_range_held.c), and what a
 * restart needs (learn_range_state.c). Not for others. */
#ifndef SPINSHARD_PIPELINE_LEARN_LEARN_RANGE_INTERNAL_H
#define SPINSHARD_PIPELINE_LEARN_LEARN_RANGE_INTERNAL_H

#include "pipeline/learn/learn_judge.h"
#include "pipeline/learn/learn_range.h"
#include "pipeline/learn/range_step.h"

enum { R2_ROWS = 512 }; /* of each kind of site, a matrix and step */

struct learn_range {
    const comm *c;
    learn_range_options o;
    row_pool *pool;
    weight_rows *weights; /* NULL: activations alone */
    int64_t n, d, n_r2;   /* hidden, head_dim, R2 matrices of this rank */
    cayley_dist *r1;
    optimizer *r2;
    bf16 *R1;        /* as products use it, on every rank */
    double *R2, *W2; /* R2 and its directions of this rank */
    range_work *work1, *work2;
    int64_t *grad1, *grad2, *rows; /* rows: a band of G on its way */
    int64_t per_site, step;
    learn_judge judge1, judge2;
    double *kept2; /* R2 as it was when it was best, [n_r2, d, d] */
    double w_max1, w_max2;
    double factor1, factor2; /* of rows of weights in the sums of R1 and R2 */
    double *G2;              /* [n_r2, d, d] what rows of weights give R2; NULL without them */
    double peak;             /* flop/s of all ranks' products; 0: not measured */
};

enum { RANGE_BAND = 64 }; /* rows of R1 or its gradient that pass at a time */

/* The share of its loss of which a step of `range` may promise OPTIMIZER_PROMISE, 3 % in all. What
 * no rotation takes away is most of this loss near its least, so a larger promise cannot be kept
 * there (docs/MEASUREMENTS.md); an end-to-end distance has no such floor. */
#define RANGE_PROMISED 0.6

/* Which activations are samples of R2. Not values in FP8: the error of a number with an exponent is
 * a share c of its square whatever else stands in the row, so that by the model of this objective
 * (a gradient that is alike in all entries) the row costs |g|^2 c sum_j u_j^2 / n, and no rotation
 * changes the sum of squares. */
static inline bool range_values_count(const learn_range_options *o) {
    return aquant_on(&o->kv) && o->kv.rule != AQUANT_FP8;
}
static inline bool range_outputs_count(const learn_range_options *o) {
    return aquant_on(&o->act) && o->o_rows;
}

/* Local. Losses a row of R1 and R2, from sums over the model in units of RANGE_LOSS_UNIT. */
double learn_range_loss_r1(const learn_range *l, int64_t sum);
double learn_range_loss_r2(const learn_range *l, int64_t sum);

/* Collective. R1 in bf16 to every rank, after each change. */
void learn_range_share_r1(learn_range *l);

/* Which rows a step may draw, and which are held out to judge it. */
typedef enum range_part { RANGE_LEARNED, RANGE_HELD } range_part;

/* Local. Rows of activations of this rank's R1 sites into work1, per_site of each: those of the
 * step at hand, or the same held-out ones each time. */
void learn_range_draw_r1(learn_range *l, range_part part);

/* Local. Rows of one R2 into work2, which begins with the rotation that they see: values, then
 * o_proj inputs of the query heads that share it. Where the runtime rotates the cache by T
 * (o.cache_rotation), values see R2 T and the inputs R2 alone: then they are drawn in two passes,
 * and else in one. */
int learn_range_passes_r2(const learn_range *l);
void learn_range_draw_r2(learn_range *l, int64_t matrix, range_part part, int pass);

#endif
