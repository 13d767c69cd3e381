/* Codes are appended to a bit string and leave it as 32-bit words, lowest bits first. Four bits
 * have a loop of their own without a carried dependency. */
#include "quant/pack.h"

#include <assert.h>
#include <string.h>

int64_t pack_words(int64_t n, int bits) {
    return (n * bits + 31) / 32;
}

/* A bit string grows at the top of `pending`; whole words leave at the bottom. `step` is the
 * distance of two words, `jump` that of two codes: rows of codes and columns of zero points share
 * this loop. */
static void pack_string(const uint8_t *codes, int64_t n, int64_t jump, int bits, int32_t *words,
                        int64_t step) {
    uint64_t pending = 0;
    int held = 0;
    for (int64_t i = 0; i < n; i++) {
        pending |= (uint64_t)codes[i * jump] << held;
        held += bits;
        if (held < 32) continue;
        uint32_t word = (uint32_t)pending;
        memcpy(words, &word, 4);
        words += step;
        pending >>= 32;
        held -= 32;
    }
    if (held) {
        uint32_t word = (uint32_t)pending;
        memcpy(words, &word, 4);
    }
}

static void unpack_string(const int32_t *words, int64_t step, int64_t n, int bits, uint8_t *codes,
                          int64_t jump) {
    const uint64_t mask = (1u << bits) - 1;
    uint64_t pending = 0;
    int held = 0;
    for (int64_t i = 0; i < n; i++) {
        if (held < bits) {
            pending |= (uint64_t)(uint32_t)*words << held;
            words += step;
            held += 32;
        }
        codes[i * jump] = (uint8_t)(pending & mask);
        pending >>= bits;
        held -= bits;
    }
}

/* 4 bits, whole words: no chain from code to code, so that the compiler can vectorise. */
static void pack_nibbles(const uint8_t *codes, int64_t n_words, int32_t *words) {
    for (int64_t w = 0; w < n_words; w++) {
        uint32_t word = 0;
        for (int j = 0; j < 8; j++) word |= (uint32_t)codes[w * 8 + j] << (4 * j);
        memcpy(words + w, &word, 4);
    }
}

static void unpack_nibbles(const int32_t *words, int64_t n_words, uint8_t *codes) {
    for (int64_t w = 0; w < n_words; w++)
        for (int j = 0; j < 8; j++) codes[w * 8 + j] = ((uint32_t)words[w] >> (4 * j)) & 15u;
}

void pack_row(const uint8_t *codes, int64_t n, int bits, int32_t *words) {
    assert(bits >= 2 && bits <= 8);
    int64_t whole = bits == 4 ? n / 8 : 0;
    pack_nibbles(codes, whole, words);
    pack_string(codes + whole * 8, n - whole * 8, 1, bits, words + whole, 1);
}

void unpack_row(const int32_t *words, int64_t n, int bits, uint8_t *codes) {
    assert(bits >= 2 && bits <= 8);
    int64_t whole = bits == 4 ? n / 8 : 0;
    unpack_nibbles(words, whole, codes);
    unpack_string(words + whole, 1, n - whole * 8, bits, codes + whole * 8, 1);
}

void pack_rows(const uint8_t *codes, int64_t rows, int64_t cols, int bits, int32_t *words) {
    int64_t n_words = pack_words(cols, bits);
#pragma omp parallel for schedule(static) if (rows > 1)
    for (int64_t r = 0; r < rows; r++) pack_row(codes + r * cols, cols, bits, words + r * n_words);
}

void unpack_rows(const int32_t *words, int64_t rows, int64_t cols, int bits, uint8_t *codes) {
    int64_t n_words = pack_words(cols, bits);
#pragma omp parallel for schedule(static) if (rows > 1)
    for (int64_t r = 0; r < rows; r++)
        unpack_row(words + r * n_words, cols, bits, codes + r * cols);
}

void pack_zeros(const uint8_t *zeros, int64_t rows, int64_t groups, int bits, int32_t *words) {
#pragma omp parallel for schedule(static) if (groups > 1)
    for (int64_t g = 0; g < groups; g++)
        pack_string(zeros + g, rows, groups, bits, words + g, groups);
}

void unpack_zeros(const int32_t *words, int64_t rows, int64_t groups, int bits, uint8_t *zeros) {
#pragma omp parallel for schedule(static) if (groups > 1)
    for (int64_t g = 0; g < groups; g++)
        unpack_string(words + g, groups, rows, bits, zeros + g, groups);
}
