/* cayley - one step on the orthogonal group: R <- (I - A/2)^-1 (I + A/2) R with A skew, in fp64.
 * Not the choice of A (rotations/optimizer.h) and not over ranks (rotations/cayley_dist.h). Stands
 * between the gradient of a rotation and the rotation that the sites use.
 *
 * Row vectors, y = x R; G = dL/dR [n, n] row-major. For skew A every leading block of I - A/2 is
 * regular and its condition is sqrt(1 + s^2), s = |A/2|_2: the step is exact to rounding for any
 * length. Same bits for any number of threads: products by base/gemm.h, factors and columns of the
 * solve by one thread each in a cut that n alone decides. */
#ifndef SPINSHARD_ROTATIONS_CAYLEY_H
#define SPINSHARD_ROTATIONS_CAYLEY_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

/* Local. W = -1/2 (G R^T - R G^T) [n, n], exactly skew: the direction of descent, dR = W R. Any G
 * that differs by S R, S symmetric, gives the same. W may be G, but not overlap R. Fails with
 * ERR_NOFIT. */
err cayley_skew(int64_t n, const double *G, const double *R, double *W);

/* Local. W' = R^T W R, exactly skew: the same direction as a step from the right, dR = R W'. W' may
 * not overlap the others. Fails with ERR_NOFIT. */
err cayley_turn(int64_t n, const double *W, const double *R, double *W_right);

/* Local. R <- 2 (I - A/2)^-1 R - R, equal to (I - A/2)^-1 (I + A/2) R and one product less (8/3 n^3
 * flops). A [n, n] skew. Fails with ERR_NOFIT, and with ERR_NUMERICS where A is not finite; R is
 * then as before. */
err cayley_step(int64_t n, const double *A, double *R);

/* Local. The same for `count` matrices behind each other (R2 of many heads): threads over matrices,
 * one thread a matrix, the bits of cayley_skew and cayley_step. */
err cayley_skew_batch(int64_t n, int64_t count, const double *G, const double *R, double *W);
err cayley_step_batch(int64_t n, int64_t count, const double *A, double *R);

/* Local. Largest column sum of absolute values, |W|_1; and the sum of squares, by rows in order. */
double cayley_norm_1(int64_t n, const double *W);
double cayley_sum_squares(int64_t n, const double *W);
bool cayley_finite(int64_t count, const double *x); /* local; no NaN, no infinity */

/* Local. *max = max |R^T R - I|: one product. Fails with ERR_NOFIT. */
err cayley_orthogonality(int64_t n, const double *R, double *max);

/* Local. *max = max |R^T (R z) - z| over a few random unit vectors z of (seed, step): n^2 work, for
 * every step. About |R^T R - I|_F / n: far below the full measure where one column alone is off.
 * Fails with ERR_NOFIT. */
err cayley_probe(int64_t n, const double *R, uint64_t seed, int64_t step, double *max);

/* Local. R <- R (3 I - R^T R) / 2, one Newton-Schulz step: squares a small defect. 4 n^3 flops.
 * Fails with ERR_NOFIT. */
err cayley_polish(int64_t n, double *R);

#endif
