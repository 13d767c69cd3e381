/* start - where learning begins: a random orthogonal matrix, or eigenvectors times a Hadamard
 * matrix. Not Hadamard starts themselves (rotations/rotation.h), not files, not the moments that
 * the eigenvectors are of. For matrices that a rank holds whole; rotations/start_dist.h has those
 * that it does not. fp64, row-major, y = x R; same bits for any number of threads. */
#ifndef SPINSHARD_ROTATIONS_START_H
#define SPINSHARD_ROTATIONS_START_H

#include "base/err.h"
#include "base/rng.h"

#include <stdint.h>

/* Local. Uniform (Haar) random R [n, n]: Q of the Gaussian matrix rng_normal(seed, purpose,
 * first_index + row * n + column) = Q U with U's diagonal positive (F. Mezzadri, How to generate
 * random matrices from the classical compact groups, Notices AMS 54, 2007). Fails with ERR_NOFIT.
 */
err start_orthogonal(int64_t n, uint64_t seed, rng_purpose purpose, uint64_t first_index,
                     double *R);

/* Local. R = V T [n, n]: V eigenvectors of the symmetric C [n, n], largest first, in columns, each
 * with its entry of largest magnitude positive (the first of equals); T Hadamard where there is
 * one, else Hartley (flat_mix.h), with a constant first row, so the direction of most energy
 * becomes an offset of all channels, which the zero point absorbs. C is the second moment of
 * activations (`pca`), or the covariance of weights (`womi`: Hu et al., OSTQuant, 2025). C may not
 * overlap R. values: [n] largest first, or NULL. Fails with ERR_NUMERICS where C is not finite,
 * ERR_NOFIT. */
err start_pca(int64_t n, const double *C, double *R, double *values);

#endif
