/* range_step - the layer-local objective `range` on a batch of sampled rows, and its gradient:
 *   L = sum_rows w (max_j u_j - min_j u_j)^2,  u = x R
 * the noise of quantizing a row grows with its squared range whatever else the rotation does
 * (DESIGN.md 2.5). The subgradient has two non-zeros a row, at the ends of the range:
 *   dL/dR = sum x^T du,  du = 2 w (max - min) (e_max - e_min)
 * so a batch costs one product. An end that is held at zero (range includes zero) has no term.
 * Sums are exact: coefficients and rows are rounded to fixed point first and integers added, so no
 * order, and no number of ranks or threads, changes a bit. Not the step on the group. */
#ifndef SPINSHARD_PIPELINE_LEARN_RANGE_STEP_H
#define SPINSHARD_PIPELINE_LEARN_RANGE_STEP_H

#include "base/err.h"
#include "base/half.h"
#include "base/rng.h"
#include "pipeline/learn/row_pool.h"

#include <stdint.h>

/* How ranges are taken at a kind of site. */
typedef struct range_rule {
    bool symmetric;    /* range 2 max |u| */
    bool include_zero; /* asymmetric: lo <= 0 <= hi */
    int64_t group;     /* entries that share a range; 0: the whole row */
} range_rule;

/* The ends of a range as channels (-1: none, zero holds that end) with the derivative of the range
 * by them: 1 and -1; symmetric, where the range is 2 max |u|, 2 or -2 at the one end. */
typedef struct range_ends {
    float range;
    int32_t channel[2];
    int sign[2];
} range_ends;

/* Local. The ends of u[0 .. n); of several equal entries the first is taken. */
range_ends range_ends_of(const float *u, int64_t n, range_rule rule);

/* The gradient of one batch as integers: dL/dR[i, j] = grad[j * n + i] * unit (transposed: the rows
 * of R^T are what a batch touches). */
typedef struct range_batch {
    int64_t n;     /* order of R */
    double unit;   /* of the integers in grad; a power of two */
    int64_t *grad; /* [n, n]; borrowed */
    int64_t loss;  /* in units of RANGE_LOSS_UNIT */
} range_batch;

/* Loss in fixed point: 2^-20; rows weigh 1 on average and ranges are of order 10. */
#define RANGE_LOSS_UNIT 0x1p-20

typedef struct range_work range_work;

/* Local. Buffers for batches of at most max_rows rows of order n, of at most `groups` ranges each.
 * Caller owns *out. ERR_NOFIT. */
err range_work_create(int64_t n, int64_t max_rows, int64_t groups, range_work **out);
void range_work_destroy(range_work **w); /* local; NULL is fine; sets NULL */
uint64_t range_work_bytes(int64_t n, int64_t max_rows, int64_t groups);

/* Local. Begin a step with R [n, n]; R is rounded to bf16 for the products. */
void range_begin(range_work *w, const double *R);
void range_begin_bf16(range_work *w, const bf16 *R); /* R rounded already */

/* How rows are drawn. One token in HELD_OUT_OF is held out: of a set that is shuffled
 * (row_pool_finish) the last rows, else every HELD_OUT_OF-th token; what is learned from, and what
 * learning is judged by, never meet. A set of one token serves as both. */
typedef enum range_order {
    RANGE_AT_RANDOM,      /* tokens at random, of those that are not held out */
    RANGE_IN_ORDER,       /* row first_index + i of those that are not held out, round and round */
    RANGE_HELD_AT_RANDOM, /* tokens at random, of those held out */
    RANGE_HELD_IN_ORDER,
} range_order;
enum { HELD_OUT_OF = 8 };

/* Local. Of n rows or tokens, how many are held out. */
int64_t range_held(int64_t n);

/* Which rows of a set to draw: the set is tokens of `period` rows (heads) each; of a random token
 * one of the rows offset .. offset + span - 1 is taken. */
typedef struct range_draw {
    range_rule rule;
    float weight; /* a constant of the site, on top of the weight of the row */
    uint64_t seed;
    rng_purpose purpose;
    uint64_t first_index;
    int64_t period, offset, span;
    range_order order;
} range_draw;

/* Local. Add `count` rows of a set to the batch. Which row the i-th is follows from first_index + i
 * alone, in order or through the random number of (seed, purpose, first_index + i), and so does not
 * depend on the rank that draws it. */
void range_add(range_work *w, const row_set *s, range_draw d, int64_t count);

/* Local. Add one row x [n]. */
void range_add_row(range_work *w, const float *x, float weight, range_rule rule);

/* Local. What one unit of the integers in range_batch.grad is worth (a power of two) where weight *
 * w of no row exceeds w_max. */
double range_unit(int64_t n, double w_max);

/* Local. R as the products take it, [n, n]; borrowed. */
const bf16 *range_rotation(const range_work *w);

/* Local, threaded. Ends of all rows added, and the loss alone, in units of RANGE_LOSS_UNIT. */
int64_t range_loss(range_work *w);

/* Local, after range_loss or range_finish. How hard the rows [first, first + count) of the batch
 * push R: the sum over them of |dL/dR|, in fixed point (units of RANGE_LOSS_UNIT), and the largest
 * of them. */
int64_t range_push(const range_work *w, int64_t first, int64_t count, int64_t *largest);

/* Local, threaded. Ends of all rows added, the gradient and the loss. w_max bounds weight * w of
 * every row of the model, and |x| <= sqrt(n) for every row: with them no coefficient overflows its
 * bits. */
void range_finish(range_work *w, double w_max, range_batch *out);

#endif
