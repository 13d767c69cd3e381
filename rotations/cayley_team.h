/* cayley_team - R1 of moderate order and its optimiser on every rank, the work of a step shared: a
 * rank sums and multiplies its bands of rows of the gradient, and solves its slabs of columns; all
 * else, of order n^2 or 2/3 n^3, every rank does itself. Not for large orders, which no rank should
 * hold whole (rotations/cayley_dist.h chooses). Stands between the summed gradient of R1 and the R1
 * that the sites use.
 *
 * The units are those of rotations/cayley.h, so bits do not depend on the number of ranks or
 * threads, are equal on all ranks and, unless the gradient is rough, those of optimizer_step. */
#ifndef SPINSHARD_ROTATIONS_CAYLEY_TEAM_H
#define SPINSHARD_ROTATIONS_CAYLEY_TEAM_H

#include "mpi/comm.h"
#include "rotations/optimizer.h"

typedef struct cayley_team cayley_team;

/* Collective on c. R is zero until put. Borrows c. Caller owns *out. rough: G R^T in fp32
 * (cayley_dist_options). Fails, agreed, with ERR_NOFIT. */
err cayley_team_create(const comm *c, int64_t n, optimizer_kind kind, bool rough,
                       cayley_team **out);
void cayley_team_destroy(cayley_team **t);                  /* local; NULL is fine; sets NULL */
uint64_t cayley_team_bytes(int64_t n, optimizer_kind kind); /* local; of each rank */

double *cayley_team_R(cayley_team *t);   /* local; [n, n], owned by t; equal on every rank */
void cayley_team_forget(cayley_team *t); /* local; optimizer_forget, to be called on every rank */

/* Rows [row, row + rows) of the gradient of the next step: local, where every rank has the sum;
 * collective, of this rank's part, v * 2^exponent, v is overwritten. */
void cayley_team_put_gradient(cayley_team *t, int64_t row, int64_t rows, const double *G);
void cayley_team_sum_gradient(cayley_team *t, int64_t row, int64_t rows, int64_t *v, int exponent);
/* Collective. As cayley_team_sum_gradient for all rows at once, given as G^T [n, n], which is not
 * changed. */
void cayley_team_sum_transposed(cayley_team *t, const int64_t *v, int exponent);

/* Collective. As cayley_dist_step. */
err cayley_team_step(cayley_team *t, double lr, double loss, optimizer_report *report);

/* The state where it stands, as optimizer_state_pieces: local, equal on every rank. taken:
 * collective, after it was written at root. */
enum { CAYLEY_TEAM_PIECES = 1 + OPTIMIZER_PIECES };
int cayley_team_state_pieces(cayley_team *t, byte_piece out[CAYLEY_TEAM_PIECES]);
void cayley_team_state_taken(cayley_team *t);

#endif
