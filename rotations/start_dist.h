/* start_dist - the start points of rotations/start.h for an R1 that no rank holds whole: the same
 * formulas over a grid (mpi/dmat.h). Hands R out in rows. Not for R2, which is small. Bits depend
 * on the grid and its BLAS threads. */
#ifndef SPINSHARD_ROTATIONS_START_DIST_H
#define SPINSHARD_ROTATIONS_START_DIST_H

#include "mpi/dmat.h"

/* Who takes R: rows [row, row + rows) as R [rows, n], the same on every rank; called on every rank,
 * from the first row to the last. */
typedef struct start_sink {
    void *to;
    void (*put)(void *to, int64_t row, int64_t rows, const double *R);
} start_sink;

/* Collective on g's communicator. A uniform random orthogonal matrix of (seed, RNG_R1_NORMAL).
 * Fails with ERR_NOFIT. */
err start_dist_orthogonal(dgrid *g, uint64_t seed, int64_t n, start_sink sink);

/* Collective on g's communicator. V H / sqrt(n) from the symmetric C (n x n on g, overwritten; its
 * lower triangle counts), as start_pca. Fails as start_pca. */
err start_dist_pca(dgrid *g, dmat *C, int64_t n, start_sink sink);

#endif
