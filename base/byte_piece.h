/* byte_piece - bytes where they stand in memory: what is kept for a restart is written from such
 * pieces, one after the other, and read into them, so that a state of gigabytes is never held
 * twice. Not a file (io/run_state.h). */
#ifndef SPINSHARD_BASE_BYTE_PIECE_H
#define SPINSHARD_BASE_BYTE_PIECE_H

#include <stdint.h>

typedef struct byte_piece {
    void *p; /* borrowed; NULL: bytes that nobody wants, where pieces are read into */
    uint64_t n;
} byte_piece;

/* Local. An array of n doubles, borrowed. */
static inline byte_piece byte_piece_of_doubles(double *v, int64_t n) {
    return (byte_piece){v, (uint64_t)n * sizeof *v};
}

/* Local. Bytes of `count` pieces; of pieces of doubles, how many these are. */
static inline uint64_t byte_pieces_total(const byte_piece *pieces, int count) {
    uint64_t sum = 0;
    for (int i = 0; i < count; i++) sum += pieces[i].n;
    return sum;
}
static inline int64_t byte_pieces_doubles(const byte_piece *pieces, int count) {
    return (int64_t)(byte_pieces_total(pieces, count) / sizeof(double));
}

#endif
