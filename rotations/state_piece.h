/* state_piece - the arrays that a state consists of, where they stand: what is kept for a restart
 * is written from them and read into them, so that a state of gigabytes is never held twice. Not a
 * file (jobs/phases/learn_state.h). */
#ifndef SPINSHARD_ROTATIONS_STATE_PIECE_H
#define SPINSHARD_ROTATIONS_STATE_PIECE_H

#include <stdint.h>

typedef struct state_piece {
    double *v; /* borrowed */
    int64_t n;
} state_piece;

/* Local. Doubles of `count` pieces, which stand one after the other in what is kept. */
static inline int64_t state_pieces_total(const state_piece *pieces, int count) {
    int64_t sum = 0;
    for (int i = 0; i < count; i++) sum += pieces[i].n;
    return sum;
}

#endif
