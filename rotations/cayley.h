/* cayley - one step on the orthogonal group: R <- (I - A/2)^-1 (I + A/2) R with A skew, in fp64.
 * Not the choice of A (rotations/optimizer.h) and not over ranks (rotations/cayley_dist.h). Stands
 * between the gradient of a rotation and the rotation that the sites use.
 *
 * Row vectors, y = x R; G = dL/dR [n, n] row-major. For skew A every leading block of I - A/2 is
 * regular and its condition is sqrt(1 + s^2), s = |A/2|_2: the step is exact to rounding for any
 * length. Same bits for any number of threads: factors by products of base/gemm.h; bands of rows of
 * G R^T and slabs of columns of the solve are units of a width that n alone decides, so that ranks
 * share them too (rotations/cayley_team.h). */
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
err cayley_skew_right(int64_t n, const double *W, const double *R, double *W_right);

/* Local. R <- 2 (I - A/2)^-1 R - R, equal to (I - A/2)^-1 (I + A/2) R and one product less (8/3 n^3
 * flops). A [n, n] skew. Fails with ERR_NOFIT, and with ERR_NUMERICS where A is not finite; R is
 * then as before. */
err cayley_step(int64_t n, const double *A, double *R);

/* Local. cayley_skew and cayley_step for `count` matrices that lie behind each other (R2 of many
 * heads). Each matrix is computed by one thread, with the bits of the single functions. */
err cayley_skew_batch(int64_t n, int64_t count, const double *G, const double *R, double *W);
err cayley_step_batch(int64_t n, int64_t count, const double *A, double *R);

/* The units of a step, for callers that deal them to ranks or threads: rows [i, i + b) of G R^T and
 * columns [i, i + b) of (I - A/2)^-1 R, b = min(cayley_unit(n), n - i), i a multiple of it. */
int64_t cayley_unit(int64_t n); /* local */

/* Local. P [b, n] <- G R^T of b rows G [b, n], and when all are there W = f (P - P^T), exactly skew
 * (f = -1/2: cayley_skew). P and W may not overlap. */
void cayley_gradient_rows(int64_t n, int64_t b, const double *G, const double *R, double *P);
void cayley_skew_part(int64_t n, double f, const double *P, double *W);
void cayley_skew_part_f32(int64_t n, double f, const float *P, double *W);

/* I - A/2 factored by blocks. */
typedef struct cayley_factors {
    int64_t n;
    double *M;        /* [n, n]; owned, as all */
    double *inverses; /* of the diagonal blocks */
    double *X;        /* [n, b] of each unit, behind each other: columns of the solution */
    double *panel;    /* scratch of the factorization, then of each unit */
} cayley_factors;

/* Local. Buffers for order n, cayley_factors_count(n) doubles. Fails with ERR_NOFIT. */
err cayley_factors_create(int64_t n, cayley_factors *out);
void cayley_factors_destroy(cayley_factors *f);
int64_t cayley_factors_count(int64_t n);

/* Local. Factor I - A/2, then X of the unit at column i, then 2 X - R into those columns of R. The
 * first fails with ERR_NUMERICS where A is not finite. Units are independent. */
err cayley_factor(cayley_factors *f, const double *A);
void cayley_solve_unit(cayley_factors *f, int64_t i, const double *R);
void cayley_reflect_unit(const cayley_factors *f, int64_t i, double *R);

/* Local. Largest column sum of absolute values, |W|_1; and the sum of squares, in a fixed order. */
double cayley_norm_1(int64_t n, const double *W);
double cayley_sum_squares(int64_t n, const double *W);
bool cayley_finite(int64_t count, const double *x); /* local; no NaN, no infinity */
/* Local, threaded. squares [n]: the sum of squares of each row of W [n, n], in a fixed order. */
void cayley_row_squares(int64_t n, const double *W, double *squares);

/* Local. *angle = about |W|_2 of a skew W: the largest angle, in radians, by which exp(W) turns any
 * vector. Found by CAYLEY_ANGLE_PRODUCTS products with a vector (n^2 work each): the eigenvalues of
 * a skew matrix are i s_k, so the lengths of z, W z, W^2 z, ... grow by ratios that never fall
 * (Cauchy-Schwarz) and tend to the largest s_k. The last ratio is what is given: never above |W|_2
 * but by rounding, and close to it from below where a few planes stand out, which is where it
 * matters. NaN where W is not finite. Fails with ERR_NOFIT. Same bits for any number of threads. */
enum { CAYLEY_ANGLE_PRODUCTS = 4 };
err cayley_angle(int64_t n, const double *W, double *angle);
/* cayley_angle of a matrix that is stored in another way, by a function that multiplies it: y = W
 * z, both [n]. Local or collective as that function is, with its errors. room [2 n]: the caller's,
 * since ranks must agree that all have it before they multiply together. */
typedef err (*cayley_product)(int64_t n, const void *W, const double *z, double *y);
err cayley_angle_by(int64_t n, cayley_product times, const void *W, double *room, double *angle);
/* Local. Entry i of the vector that the products begin with. */
double cayley_angle_start(int64_t i);

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
