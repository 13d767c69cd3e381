/* byte_piece - bytes where they stand in memory: what is kept for a restart is written from such
 * pieces, one after the other, and read into them, so that it is never held twice. Of doubles there
 * is rotations/state_piece.h. */
#ifndef SPINSHARD_BASE_BYTE_PIECE_H
#define SPINSHARD_BASE_BYTE_PIECE_H

#include <stdint.h>

typedef struct byte_piece {
    void *p; /* borrowed; NULL: bytes that nobody wants, where pieces are read into */
    uint64_t n;
} byte_piece;

/* Local. Bytes of `count` pieces. */
static inline uint64_t byte_pieces_total(const byte_piece *pieces, int count) {
    uint64_t sum = 0;
    for (int i = 0; i < count; i++) sum += pieces[i].n;
    return sum;
}

#endif
