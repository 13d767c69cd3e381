/* state_copy - a state in pieces to one array and back, for tests that take it elsewhere. */
#ifndef SPINSHARD_TESTS_MPI_STATE_COPY_H
#define SPINSHARD_TESTS_MPI_STATE_COPY_H

#include "base/byte_piece.h"

#include <string.h>

static inline void state_copy_out(const byte_piece *pieces, int n, double *to) {
    for (int i = 0; i < n; to += byte_pieces_doubles(&pieces[i++], 1))
        memcpy(to, pieces[i].p, pieces[i].n);
}

static inline void state_copy_in(const double *from, const byte_piece *pieces, int n) {
    for (int i = 0; i < n; from += byte_pieces_doubles(&pieces[i++], 1))
        memcpy(pieces[i].p, from, pieces[i].n);
}

#endif
