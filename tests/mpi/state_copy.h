/* state_copy - a state in pieces to one array and back, for tests that take it elsewhere. */
#ifndef SPINSHARD_TESTS_MPI_STATE_COPY_H
#define SPINSHARD_TESTS_MPI_STATE_COPY_H

#include "rotations/state_piece.h"

#include <string.h>

static inline void state_copy_out(const state_piece *pieces, int n, double *to) {
    for (int i = 0; i < n; to += pieces[i++].n)
        memcpy(to, pieces[i].v, (size_t)pieces[i].n * sizeof *to);
}

static inline void state_copy_in(const double *from, const state_piece *pieces, int n) {
    for (int i = 0; i < n; from += pieces[i++].n)
        memcpy(pieces[i].v, from, (size_t)pieces[i].n * sizeof *from);
}

#endif
