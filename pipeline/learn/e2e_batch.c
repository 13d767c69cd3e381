/* Each epoch is a permutation by Fisher and Yates from counter-based random numbers; a step takes
 * the next pieces. */
#include "pipeline/learn/e2e_batch.h"

#include "base/rng.h"

#include <stdlib.h>

typedef struct lot {
    uint64_t key;
    int64_t piece;
} lot;

static int by_key(const void *a, const void *b) {
    const lot *x = a, *y = b;
    if (x->key != y->key) return x->key < y->key ? -1 : 1;
    return (x->piece > y->piece) - (x->piece < y->piece);
}

static void shuffle(uint64_t seed, int64_t epoch, int64_t pieces, lot *lots) {
    for (int64_t i = 0; i < pieces; i++)
        lots[i] = (lot){rng_u64(seed, RNG_DATA, (uint64_t)(epoch * pieces + i)), i};
    qsort(lots, (size_t)pieces, sizeof *lots, by_key);
}

void e2e_batch_draw(uint64_t seed, int64_t step, int64_t batch, int64_t pieces, int64_t *pick) {
    lot *lots = malloc((size_t)pieces * sizeof *lots);
    int64_t epoch = -1;
    if (!lots) abort();
    for (int64_t i = 0; i < batch; i++) {
        const int64_t at = step * batch + i;
        if (at / pieces != epoch) shuffle(seed, epoch = at / pieces, pieces, lots);
        pick[i] = lots[at % pieces].piece;
    }
    free(lots);
}
