/* dmat - square fp64 matrices dealt block-cyclically over a grid of ranks.
 * The only module that speaks to BLACS and ScaLAPACK (dmat.c; dmat_rows.c and dmat_sums.c do
 * without); callers think of row-major matrices and rows of them. Not a general array: square, one
 * block size a grid, no views. Stands under the Cayley step of R1 and the start points at large
 * hidden sizes (rotations/cayley_dist.h, start_dist.h).
 *
 * The cells of a grid are the first rows x cols ranks of its communicator, row by row. All ranks of
 * the communicator make the same calls; ranks that are no cell take part only in what moves data
 * between ranks. Bits depend on the grid, its block and its BLAS threads, never on how many ranks
 * stand beside the cells. Errors are agreed: the same on every rank. */
#ifndef SPINSHARD_MPI_DMAT_H
#define SPINSHARD_MPI_DMAT_H

#include "base/gemm.h"
#include "base/half.h"
#include "mpi/comm.h"
#include "mpi/grid_shape.h"

#include <stdbool.h>

typedef struct dgrid dgrid;
typedef struct dmat dmat;

enum { DMAT_BLOCK = 128 }; /* rows and columns of a block; 32 is ruinous, 64 to 256 alike */

/* Collective on c. The process grid of `shape` on the first ranks of c; matrices of it are cut in
 * block x block (0: DMAT_BLOCK); blas_threads: of each cell inside ScaLAPACK. Borrows c, which must
 * outlive it. Needs comm_start. Caller owns *out. Fails with ERR_MISMATCH where c is too small. */
err dgrid_create(const comm *c, grid_shape shape, int block, int blas_threads, dgrid **out);
void dgrid_destroy(dgrid **g);      /* collective on its communicator; NULL is fine; sets NULL */
bool dgrid_is_cell(const dgrid *g); /* local */
grid_shape dgrid_shape(const dgrid *g); /* local; for tests */
const comm *dgrid_comm(const dgrid *g); /* local; borrowed */

/* Collective on g's communicator. An n x n zero matrix; about 8 n^2 / cells bytes a cell. Borrows
 * g. Caller owns *out. Fails with ERR_NOFIT, ERR_BUG (order 0 or a part beyond the library's
 * int).*/
err dmat_create(dgrid *g, int64_t n, const char *what, dmat **out);
void dmat_destroy(dmat **m); /* local; NULL is fine; sets NULL */

/* Local. This cell's part: entries in its own order (0 and NULL where the rank is no cell), and
 * bytes. To save and restore a matrix on the same grid, and for element-wise work. */
double *dmat_part(dmat *m);
int64_t dmat_part_entries(const dmat *m);
int64_t dmat_order(const dmat *m);     /* local; n; for benches */
const dgrid *dmat_grid(const dmat *m); /* local; borrowed */

/* Local. Rows and columns of this cell's part, and the row or column of the whole matrix that a
 * local one is. Entry (i, j) of the part stands at part[j * rows + i]. */
void dmat_part_shape(const dmat *m, int64_t *rows, int64_t *cols);
int64_t dmat_row(const dmat *m, int64_t local_row);
int64_t dmat_col(const dmat *m, int64_t local_col);

/* Local. Each cell takes its entries of rows [row, row + rows) from `from` [rows, n], which every
 * cell must hold. */
void dmat_put_rows(dmat *m, int64_t row, int64_t rows, const double *from);

/* Collective. Rows [row, row + rows) to every rank as out [rows, n]. f32 and bf16 round before they
 * send; to bf16 by way of fp32. */
void dmat_get_rows(const dmat *m, int64_t row, int64_t rows, double *out);
void dmat_get_rows_f32(const dmat *m, int64_t row, int64_t rows, float *out);
void dmat_get_rows_bf16(const dmat *m, int64_t row, int64_t rows, bf16 *out);
/* Of a lower triangle: entries (i, j) of these rows with j <= i, others of out are undefined. Half
 * of what dmat_get_rows sends. */
void dmat_get_rows_lower(const dmat *m, int64_t row, int64_t rows, double *out);

/* Collective. Sum over all ranks of fixed-point rows `v` [rows, n] (overwritten), times 2^exponent,
 * to the cells: exact, so the same for any number and order of ranks. bytes: as of
 * comm_sum_i64_parts. */
void dmat_sum_rows_i64(dmat *m, int64_t row, int64_t rows, int64_t *v, int exponent, int bytes);

/* Collective; matrices of one grid and order, that may not overlap. */
void dmat_copy(const dmat *from, dmat *to);
/* C = a op(A) op(B) + b C. */
void dmat_gemm(gemm_op op_a, gemm_op op_b, double a, const dmat *A, const dmat *B, double b,
               dmat *C);
/* B = a A^T + b B. */
void dmat_add_transpose(double a, const dmat *A, double b, dmat *B);
/* B <- A^-1 B; A is overwritten by its factors. ERR_NUMERICS where A is singular or not finite. */
err dmat_solve(dmat *A, dmat *B);
/* The lower triangle of the symmetric A becomes that of L^-1, A = L L^T; what stands above it is
 * neither read nor meant. *failed, the same everywhere: A is not positive definite, and spoilt. */
err dmat_cholesky_inverse(dmat *A, bool *failed);
/* Eigenvectors of the symmetric A (overwritten) in the columns of V, values [n] ascending on every
 * rank. ERR_NUMERICS, ERR_NOFIT. */
err dmat_eigen(dmat *A, dmat *V, double *values);
/* A = Q U; A becomes Q, with the diagonal of U positive. ERR_NUMERICS, ERR_NOFIT. */
err dmat_qr(dmat *A);

/* Collective. y = M x, or M^T x: [n] on every rank, summed in a fixed order. ERR_NOFIT. */
err dmat_times(bool trans, const dmat *m, const double *x, double *y);

/* Collective. The result is equal on every rank, and does not depend on how many ranks there are
 * beside the cells. */
double dmat_sum_squares(const dmat *m);
double dmat_sum_of_cells(const dmat *m, double mine); /* of a number of each cell */
err dmat_norm_1(const dmat *m, double *out);          /* largest column sum of absolute values */
err dmat_col_squares(const dmat *m, double *out); /* [n] sums of squares of columns; ERR_NOFIT */
double dmat_max_minus_identity(const dmat *m);    /* max |m - I|; NaN gives infinity */
bool dmat_finite(const dmat *m);                  /* no NaN, no infinity */

#endif
