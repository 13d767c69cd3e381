/* dealt_rows - an fp64 matrix of which each rank holds some rows: so a large one stands between two
 * uses without any rank holding all of it. No arithmetic (mpi/dmat.h has that), no grid. Holds R1
 * between the phases of learning. */
#ifndef SPINSHARD_MPI_DEALT_ROWS_H
#define SPINSHARD_MPI_DEALT_ROWS_H

#include "mpi/comm.h"

typedef struct dealt_rows dealt_rows;

/* Collective on c. [n, width] of zeros: equal shares of neighbouring rows, in rank order. Borrows
 * c. Caller owns *out. Fails, agreed, with ERR_NOFIT. */
err dealt_rows_create(const comm *c, int64_t n, int64_t width, const char *what, dealt_rows **out);
void dealt_rows_destroy(dealt_rows **d); /* local; NULL is fine; sets NULL */

/* Local. Rows [row, row + rows) from `from` [rows, width], which every rank must hold: each keeps
 * its own. */
void dealt_rows_put(dealt_rows *d, int64_t row, int64_t rows, const double *from);

/* Collective. Rows [row, row + rows) to every rank as out [rows, width]. */
void dealt_rows_get(const dealt_rows *d, int64_t row, int64_t rows, double *out);

/* Collective. These rows in fp32 to every rank, in `out` that has room for as many doubles, on
 * their way through it. */
void dealt_rows_get_f32(const dealt_rows *d, int64_t row, int64_t rows, void *out);

/* Local. Bytes of this rank. For tests. */
uint64_t dealt_rows_bytes(const dealt_rows *d);

/* Rows that pass through all ranks at a time, where a caller has no reason for another number. */
enum { DEALT_ROWS_BAND = 128 };

#endif
