/* grid_shape - how many rows and columns of ranks a distributed matrix is dealt over.
 * Not the process grid itself (mpi/dmat.h): plain arithmetic, no MPI. The answer is written into
 * the recipe (`numerics.grid`), since bits of distributed factorizations depend on it. */
#ifndef SPINSHARD_MPI_GRID_SHAPE_H
#define SPINSHARD_MPI_GRID_SHAPE_H

#include "base/err.h"

#include <stdint.h>

typedef struct grid_shape {
    int rows, cols;
} grid_shape;

/* Matrices below this order are not worth more than one rank. */
enum { GRID_MIN_ORDER = 4096 };

/* Local. Below order 4096 1x1; from there 2x1 on 2 or 3 ranks, and the largest square on more. */
grid_shape grid_choose(int64_t n, int ranks);

/* Local. "auto" (grid_choose) or "ROWSxCOLS", the text of a recipe's key. Fails with ERR_USAGE for
 * other text, and with ERR_MISMATCH where `ranks` are fewer than the cells; the key is named and
 * the hint tells the way out. */
err grid_resolve(const char *key, const char *text, int64_t n, int ranks, grid_shape *out);

/* Local. "2x2" into buf. */
const char *grid_text(grid_shape g, char buf[24]);

/* Local. How many of n rows (or columns), dealt in blocks of nb, the cell `which` of `of` has. */
int64_t grid_part(int64_t n, int64_t nb, int which, int of);

/* Local. Entries of the largest cell's part of an n x n matrix in blocks of nb. */
int64_t grid_cell_entries(grid_shape g, int64_t n, int64_t nb);

#endif
