/* dmat_internal - what the files of dmat share: the grid, the part of a cell, and where it stands
 * in the whole. Not for callers (mpi/dmat.h), and nothing of ScaLAPACK but its descriptors. */
#ifndef SPINSHARD_MPI_DMAT_INTERNAL_H
#define SPINSHARD_MPI_DMAT_INTERNAL_H

#include "mpi/dmat.h"

struct dgrid {
    const comm *c;
    comm *cells; /* NULL where this rank is no cell */
    grid_shape shape;
    int block, threads;
    int system, context; /* of BLACS; cells only */
    int row, col;        /* of this cell; -1 elsewhere */
};

struct dmat {
    dgrid *g;
    int64_t n, rows, cols; /* order; rows and columns of the part */
    double *part;          /* column-major [cols][rows]; NULL where this rank is no cell */
    int order, desc[9];
};

/* Local. Where entry `local` of cell `which` of `of` stands in the whole. */
static inline int64_t dmat_whole(int64_t local, int64_t nb, int which, int of) {
    return (local / nb * of + which) * nb + local % nb;
}

/* Collective. Numbers of which each is known to one cell, and zero bits elsewhere, to all. */
static inline void dmat_share(const comm *c, double *v, int64_t n) {
    comm_sum_i64(c, (int64_t *)v, n);
}

#endif
