/* lapack - the factorizations that the program needs in fp64: LU, QR, symmetric eigenvectors.
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

/* Local. A = P L U in place; a [n, n], pivots [n]. Fails with ERR_NUMERICS where a pivot is zero
 * or not a number; `what` names the matrix. */
err lapack_lu(int64_t n, double *a, int *pivots, const char *what);

/* Local. B <- A^-1 B for `columns` columns of length n, from the factors of lapack_lu. */
err lapack_lu_solve(int64_t n, int64_t columns, const double *lu, const int *pivots, double *b);

/* Local. A = Q U with the diagonal of U positive (which makes Q unique): a [n, n] becomes Q.
 * Fails with ERR_NOFIT, ERR_NUMERICS where a column depends on those before it. */
err lapack_qr(int64_t n, double *a);

/* Local. Eigenvectors of the symmetric a [n, n]: column j (contiguous) belongs to values[j],
 * ascending, with unit length; signs are the library's. Fails with ERR_NOFIT, ERR_NUMERICS. */
err lapack_eigen(int64_t n, double *a, double *values);

#endif
