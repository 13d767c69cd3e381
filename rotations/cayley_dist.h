/* cayley_dist - R1 and its optimiser over ranks: the same steps as rotations/optimizer.h on a
 * matrix dealt over a grid (mpi/dmat.h), or, where the grid is 1x1, whole: up to order 2048 on
 * every rank, which share the work (rotations/cayley_team.h), beyond on the first rank alone. Not
 * the gradient. Stands between the summed gradient of R1 and the R1 that the sites use.
 *
 * No rank needs the whole of a large matrix: R and gradients go in and out in rows, as many at a
 * time as the caller has room for. Bits depend on the grid and on its BLAS threads alone, never on
 * the number of ranks; on 1x1 they are those of optimizer_step, for any number of threads. */
#ifndef SPINSHARD_ROTATIONS_CAYLEY_DIST_H
#define SPINSHARD_ROTATIONS_CAYLEY_DIST_H

#include "base/half.h"
#include "mpi/comm.h"
#include "mpi/grid_shape.h"
#include "rotations/optimizer.h"

typedef struct cayley_dist cayley_dist;

typedef struct cayley_dist_options {
    int64_t n;
    optimizer_kind kind;
    grid_shape grid;  /* grid_resolve */
    int blas_threads; /* numerics.threads; of a cell inside ScaLAPACK; not used on 1x1 */
    int block;        /* 0: DMAT_BLOCK; for tests */
    /* The gradient is a sum of products in 16 bit, and W is made of it in fp32 where ranks share
     * the step of a 1x1 grid: its error is far below the gradient's. R stays as orthogonal. */
    bool rough_gradient;
} cayley_dist_options;

/* Collective on c. R is zero until put. Borrows c. Caller owns *out. Fails, the same on every rank,
 * with ERR_NOFIT, ERR_MISMATCH. Takes 5 matrices over the cells; on 1x1
 * 6, of which a rank that works alone takes 2 within a step. */
err cayley_dist_create(const comm *c, const cayley_dist_options *o, cayley_dist **out);
void cayley_dist_destroy(cayley_dist **d); /* collective; NULL is fine; sets NULL */

/* Local. Rows [row, row + rows) of R, [rows, n], that every rank holds. Cells take their part. */
void cayley_dist_put_rows(cayley_dist *d, int64_t row, int64_t rows, const double *R);

/* The gradient G = dL/dR of the next step, one of the two, in rows until all are given:
 * - Local. Rows of the summed G that every rank holds. For tests and benches.
 * - Collective. Rows of this rank's contribution in fixed point, v * 2^exponent; summed exactly
 *   over ranks into the cells. v is overwritten. bytes: as of comm_sum_i64_parts. */
void cayley_dist_put_gradient(cayley_dist *d, int64_t row, int64_t rows, const double *G);
void cayley_dist_sum_gradient(cayley_dist *d, int64_t row, int64_t rows, int64_t *v, int exponent,
                              int bytes);
/* Collective, where ranks share the step; false elsewhere. All of a contribution at once, as G^T
 * [n, n]: v[j * n + i] * 2^exponent of G[i, j]. */
bool cayley_dist_sum_transposed(cayley_dist *d, const int64_t *v, int exponent);

/* Collective. One step with the gradient given. loss: as of optimizer_step; the same on every rank;
 * 0: not known. The report is the same on every rank; may be NULL.
 * Fails, agreed, with ERR_NUMERICS (a gradient that is not finite; R is then as before) or
 * ERR_NOFIT. */
err cayley_dist_step(cayley_dist *d, double lr, double loss, optimizer_report *report);

/* Local, to be called on every rank. R is remembered as it is now (from the first
 * cayley_dist_snapshot on; the memory is taken at creation); and R becomes what was remembered
 * last, and its optimiser forgets what led away from there (optimizer_forget). */
void cayley_dist_snapshot(cayley_dist *d);
void cayley_dist_restore(cayley_dist *d);

/* Collective. Rows of R to every rank, in fp64 or rounded to fp32, or from there to bf16 (a quarter
 * of the traffic). */
void cayley_dist_get_rows(const cayley_dist *d, int64_t row, int64_t rows, double *R);
void cayley_dist_get_rows_f32(const cayley_dist *d, int64_t row, int64_t rows, float *R);
void cayley_dist_get_rows_bf16(const cayley_dist *d, int64_t row, int64_t rows, bf16 *R);

/* Collective. *max = max |R^T R - I|, on every rank. For tests: n^3 work. */
err cayley_dist_orthogonality(cayley_dist *d, double *max);

/* Collective. *max = max |R^T (R z) - z| over random unit vectors of (seed, step): n^2 work. */
err cayley_dist_probe(cayley_dist *d, uint64_t seed, int64_t step, double *max);

/* Local. R, what is remembered of it, and the optimiser's state on this rank, where they stand: to
 * be read, or to be written, before cayley_dist_state_taken. Returns how many pieces; 0 where the
 * rank is no cell. A state goes back only onto the same grid, and continues bit for bit. */
enum { CAYLEY_STATE_PIECES = 2 + OPTIMIZER_PIECES };
int cayley_dist_state_pieces(cayley_dist *d, byte_piece out[CAYLEY_STATE_PIECES]);
/* Collective. After each cell has written its pieces. */
void cayley_dist_state_taken(cayley_dist *d);

/* Local. Bytes that the largest cell of such a grid will hold within a step; for plans. */
uint64_t cayley_dist_plan_bytes(const cayley_dist_options *o);
/* Local. And a rank that is no cell: as much on 1x1 where ranks share the step, else none. */
uint64_t cayley_dist_beside_bytes(const cayley_dist_options *o);

/* Local. Bytes of a step that each rank but one, and each node but one, gets or gives, from the
 * gradient's rows of each rank, numbers of so many bytes, to R in that many on all of them, by way
 * of mpi/comm.h: without what ScaLAPACK sends within a step over a grid. */
uint64_t cayley_dist_step_network(const cayley_dist_options *o, int sum_bytes, int r_bytes);
/* Local. As above, of R alone, in numbers of so many bytes (cayley_dist_get_rows and its like). */
uint64_t cayley_dist_get_network(const cayley_dist_options *o, int r_bytes);

/* Local. Bytes of the matrices on this rank; and whether it is a cell. */
uint64_t cayley_dist_bytes(const cayley_dist *d);
bool cayley_dist_is_cell(const cayley_dist *d);

#endif
