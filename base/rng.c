/* Ten rounds of Philox on the counter (index) under the key (seed, purpose). Blocks of counters
 * are drawn in vector lanes; normal numbers come from Box and Muller's transform of two uniform
 * ones. */
#include "base/rng.h"

#include <math.h>

/* Multipliers and Weyl constants of the paper, table 2 and section 4.2. */
static const uint32_t m0 = 0xD2511F53u, m1 = 0xCD9E8D57u, w0 = 0x9E3779B9u, w1 = 0xBB67AE85u;

void rng_philox(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)m0 * c0, p1 = (uint64_t)m1 * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += w0;
        k1 += w1;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

static void draw(uint64_t seed, rng_purpose purpose, uint64_t index, uint32_t out[4]) {
    uint32_t counter[4] = {(uint32_t)index, (uint32_t)(index >> 32), (uint32_t)purpose, 0};
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    rng_philox(counter, key, out);
}

uint64_t rng_u64(uint64_t seed, rng_purpose purpose, uint64_t index) {
    uint32_t r[4];
    draw(seed, purpose, index, r);
    return (uint64_t)r[1] << 32 | r[0];
}

/* Counters side by side, one a lane of 64 bits, of which the lower half counts. */
enum { LANES = 8 };
typedef uint64_t lanes __attribute__((vector_size(8 * LANES)));

static void draw_lanes(uint64_t seed, rng_purpose purpose, uint64_t first, uint64_t *out) {
    const lanes none = {0}, low = none + UINT32_MAX;
    lanes index, c2 = none + (uint32_t)purpose, c3 = none;
    for (int i = 0; i < LANES; i++) index[i] = first + (uint64_t)i;
    lanes c0 = index & low, c1 = index >> 32;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        const lanes p0 = m0 * c0, p1 = m1 * c2;
        c0 = (p1 >> 32) ^ c1 ^ k0;
        c2 = (p0 >> 32) ^ c3 ^ k1;
        c1 = p1 & low;
        c3 = p0 & low;
        k0 += w0;
        k1 += w1;
    }
    const lanes both = c1 << 32 | c0;
    for (int i = 0; i < LANES; i++) out[i] = both[i];
}

void rng_u64_array(uint64_t seed, rng_purpose purpose, uint64_t first, int64_t count,
                   uint64_t *out) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) draw_lanes(seed, purpose, first + (uint64_t)i, out + i);
    for (; i < count; i++) out[i] = rng_u64(seed, purpose, first + (uint64_t)i);
}

double rng_uniform(uint64_t seed, rng_purpose purpose, uint64_t index) {
    return (double)(rng_u64(seed, purpose, index) >> 11) * 0x1p-53;
}

double rng_normal(uint64_t seed, rng_purpose purpose, uint64_t index) {
    uint32_t r[4];
    draw(seed, purpose, index, r);
    double u = ((double)(((uint64_t)r[1] << 32 | r[0]) >> 11) + 0.5) * 0x1p-53;
    double v = (double)(((uint64_t)r[3] << 32 | r[2]) >> 11) * 0x1p-53;
    return sqrt(-2 * log(u)) * cos(6.283185307179586476925286766559 * v);
}

int rng_sign(uint64_t seed, rng_purpose purpose, uint64_t index) {
    return rng_u64(seed, purpose, index) >> 63 ? -1 : 1;
}
