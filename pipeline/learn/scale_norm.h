/* scale_norm - the scales of a norm, which stand after R1 (u = x R S^-1), by an objective of the
 * layer alone (DESIGN.md 2.6): one site at a time, from its sampled rows, with R1 as learned. Not
 * the pairs that a rotation mixes (pipeline/learn/scale_closed.h). Stands between the phases
 * `range` and the scale_set.
 *
 * The error of the site is e' = (Q(u) - u) S R^T: its channels in the rotated basis have variance
 * ~ s_j^2 range(u)^2, and the loss feels sum_j s_j^2 E[(gR)_j^2] of them, g = dL/dx^. With w, the
 * sensitivity of a row (the pool's weight), standing for the part of g that goes with the row:
 *     J(s) = log mean_r w_r range(u_r / s)^2 + log mean_j s_j^2 t_j,    t_j = E[(gR)_j^2]
 * which does not change with the size of s. Where a range is that of a group of channels, noise and
 * what is felt of it go group by group: J(s) = log sum_g mean_r w_r range_g(u_r / s)^2 mean_{j in
 * g} s_j^2 t_j. Minimised over log s by Adam (Kingma and Ba, 2015). */
#ifndef SPINSHARD_PIPELINE_LEARN_SCALE_NORM_H
#define SPINSHARD_PIPELINE_LEARN_SCALE_NORM_H

#include "base/err.h"
#include "pipeline/learn/range_step.h"
#include "pipeline/learn/row_pool.h"

typedef struct scale_norm scale_norm;

/* Local. Buffers for sites of at most max_rows rows of width n, with at most `groups` ranges a row.
 * Caller owns *out. ERR_NOFIT. */
err scale_norm_create(int64_t n, int64_t max_rows, int64_t groups, scale_norm **out);
void scale_norm_destroy(scale_norm **s); /* local; NULL is fine; sets NULL */
uint64_t scale_norm_bytes(int64_t n, int64_t max_rows, int64_t groups);

/* Local, threaded. Set the site that the next calls work on: its rows with gradients
 * (row_pool_keep_gradients), R [n, n] in fp32 or NULL for the identity. */
void scale_norm_take(scale_norm *s, const row_set *rows, const float *R, range_rule rule);

/* Local, threaded. J at log s [n], and its gradient where that is not NULL. Bits depend on the site
 * alone. */
double scale_norm_objective(scale_norm *s, const double *log_s, double *gradient);

/* Local, threaded. `steps` Adam steps of `rate` from log s = 0; scale [n] is settled
 * (scale_settle). *before and *after are J at ones and at the end. */
void scale_norm_learn(scale_norm *s, int steps, double rate, double *scale, double *before,
                      double *after);

#endif
