/* rng - counter-based random numbers: the value depends on (seed, purpose, index) alone, so any
 * rank can draw any element in any order. Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel
 * random numbers: as easy as 1, 2, 3, SC'11). Not for cryptography. */
#ifndef SPINSHARD_BASE_RNG_H
#define SPINSHARD_BASE_RNG_H

#include <stdint.h>

/* What a number is for; part of the key, so streams never meet. Values are part of the formats. */
typedef enum rng_purpose {
    RNG_TEST = 1,
    RNG_R1_SIGNS = 2, /* index: channel */
    RNG_R2_SIGNS = 3, /* index: (layer << 40) + (KV head << 20) + channel */
    RNG_PROBE = 4,
    RNG_R1_NORMAL = 5, /* index: row * n + column */
    RNG_R2_NORMAL = 6,
    RNG_RANGE_ROWS = 7,     /* index: site, where its rows begin */
    RNG_DATA = 8,           /* index: window */
    RNG_RANGE_ROWS_R2 = 9,  /* index: (step * matrices + matrix) * rows + i */
    RNG_POOL_ORDER = 11,    /* index: site * rows + i: pipeline/learn/row_pool.c */
    RNG_RANGE_HELD_R2 = 12, /* index: matrix * rows + i */
    RNG_NOISE_ROWS = 13,    /* index: (layer * places + place) << 40 + token: noise_rows.c */
    RNG_WEIGHT_ROWS = 10,   /* index: step, matrix, sample: pipeline/learn/weight_rows.c */
} rng_purpose;

/* Local. The 128-bit block of Philox4x32-10 at a counter under a key. */
void rng_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

uint64_t rng_u64(uint64_t seed, rng_purpose purpose, uint64_t index); /* local */
/* Local. out[i] = rng_u64(seed, purpose, first + i), several at a time. */
void rng_u64_array(uint64_t seed, rng_purpose purpose, uint64_t first, int64_t count,
                   uint64_t *out);
double rng_uniform(uint64_t seed, rng_purpose purpose, uint64_t index); /* in [0, 1), 53 bits */
double rng_normal(uint64_t seed, rng_purpose purpose, uint64_t index);  /* Box-Muller */
int rng_sign(uint64_t seed, rng_purpose purpose, uint64_t index);       /* -1 or 1 */

#endif
