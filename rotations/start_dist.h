/* start_dist - the start points of rotations/start.h for an R1 that no rank holds whole: the same
 * formulas over a grid (mpi/dmat.h). Fills R of a cayley_dist. Not for R2, which is small. Bits
 * depend on the grid and its BLAS threads. */
#ifndef SPINSHARD_ROTATIONS_START_DIST_H
#define SPINSHARD_ROTATIONS_START_DIST_H

#include "mpi/dmat.h"
#include "rotations/cayley_dist.h"

/* Collective on g's communicator. R of `d` becomes a uniform random orthogonal matrix of (seed,
 * RNG_R1_NORMAL). Fails with ERR_NOFIT. */
err start_dist_orthogonal(dgrid *g, uint64_t seed, int64_t n, cayley_dist *d);

/* Collective on g's communicator. R of `d` becomes V H / sqrt(n) from the symmetric C (n x n on g,
 * overwritten), as start_pca. Fails as start_pca. */
err start_dist_pca(dgrid *g, dmat *C, int64_t n, cayley_dist *d);

#endif
