/* lapack - the factorizations that the program needs, in fp64: inverse of a block, QR, symmetric
 * eigenvectors; in fp32 the determinant of a correlation.
 * The one door to LAPACK. Not a LAPACK: square matrices, no products (base/gemm.h), no ranks
 * (mpi/dmat.h). Serves the Cayley step and the start points of learning.
 *
 * Matrices here are column-major, as LAPACK has them: a row-major matrix is read as its transpose.
 * BLAS runs on one thread (gemm_blas_threads), so bits do not depend on the number of threads. A
 * size that does not fit the library's int fails with ERR_BUG. */
#ifndef SPINSHARD_BASE_LAPACK_H
#define SPINSHARD_BASE_LAPACK_H

#include "base/err.h"

#include <stdint.h>

/* Local. A <- A^-1, by LU with pivots; a [n, n] in either order, with rows at distance n. For
 * blocks, not for large matrices. Fails with ERR_NUMERICS where A is singular; `what` names it. For
 * tests. */
err lapack_inverse(int64_t n, double *a, const char *what);

/* Local. A = Q U with the diagonal of U positive (which makes Q unique): a [n, n] becomes Q.
 * Fails with ERR_NOFIT, ERR_NUMERICS where a column depends on those before it. */
err lapack_qr(int64_t n, double *a);

/* Local. Eigenvectors of the symmetric a [n, n]: column j (contiguous) belongs to values[j],
 * ascending, with unit length; signs are the library's. Fails with ERR_NOFIT, ERR_NUMERICS. */
err lapack_eigen(int64_t n, double *a, double *values);

/* Local. log det of a symmetric a [n, n] with ones on its diagonal by its Cholesky factor, which
 * takes its place; the lower triangle (of a row-major matrix the upper) is read alone. *out is NAN
 * where a is not positive definite, or not by more than fp32 tells: a pivot is the share of a
 * channel that those before it do not explain, and one of `least` or less is taken for none. */
err lapack_log_det(int64_t n, float *a, double least, double *out);

#endif
