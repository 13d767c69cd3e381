/* The numbers are those of MT19937 (Matsumoto and Nishimura, 1998): its state of 624 words is
 * filled from the seed, moved on once, and each word is tempered. */
#include "rotations/cache_rotation.h"

#include <inttypes.h>
#include <stddef.h>

enum { WORDS = CACHE_ROTATION_MOST, AHEAD = 397 };
static const uint32_t SEED = 0x9E3779B9u;

static void fill(uint32_t seed, uint32_t state[WORDS]) {
    state[0] = seed;
    for (uint32_t i = 1; i < WORDS; i++)
        state[i] = 1812433253u * (state[i - 1] ^ (state[i - 1] >> 30)) + i;
}

static void move_on(uint32_t state[WORDS]) {
    for (int i = 0; i < WORDS; i++) {
        const uint32_t y = (state[i] & 0x80000000u) | (state[(i + 1) % WORDS] & 0x7fffffffu);
        state[i] = state[(i + AHEAD) % WORDS] ^ (y >> 1) ^ (y & 1 ? 0x9908b0dfu : 0);
    }
}

static uint32_t temper(uint32_t y) {
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

void cache_rotation_signs(int64_t n, int8_t *signs) {
    uint32_t state[WORDS];
    fill(SEED, state);
    move_on(state);
    for (int64_t i = 0; i < n && i < WORDS; i++) signs[i] = temper(state[i]) >> 23 & 1 ? -1 : 1;
}

err cache_rotation_create(int64_t head_dim, rotation **out) {
    int8_t signs[4 * WORDS];
    const int64_t block = head_dim & -head_dim;
    *out = NULL;
    if (head_dim < 2 || head_dim % 2 || block > WORDS || head_dim > 4 * WORDS)
        return err_make(ERR_USAGE, "kv.rotate", "leave out kv.rotate",
                        "vLLM's 4-bit cache takes even head sizes, and the model has %" PRId64,
                        head_dim);
    cache_rotation_signs(block, signs);
    for (int64_t i = block; i < head_dim; i++) signs[i] = signs[i - block];
    return rotation_create_blocks(head_dim, block, signs, out);
}
