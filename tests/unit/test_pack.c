/* INT words: golden words of the format, bit positions by definition, and the way back. */
#include "base/rng.h"
#include "quant/pack.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Codes q = -8 .. 7 in offset form u = q + 8. */
static void golden_words(void **state) {
    (void)state;
    uint8_t codes[24];
    int32_t words[3];
    for (int i = 0; i < 16; i++) codes[i] = (uint8_t)i;
    memset(codes + 16, 8, 8);
    pack_row(codes, 24, 4, words);
    assert_int_equal((uint32_t)words[0], 0x76543210u);
    assert_int_equal((uint32_t)words[1], 0xFEDCBA98u);
    assert_int_equal((uint32_t)words[2], 0x88888888u);
}

/* 3 bits: 1 2 3 4 5 6 7 0 1 2 3 -> 32 bits and one bit of the eleventh code in the second word. */
static void three_bits_by_hand(void **state) {
    (void)state;
    const uint8_t codes[11] = {1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 7};
    int32_t words[2];
    assert_int_equal(pack_words(11, 3), 2);
    pack_row(codes, 11, 3, words);
    assert_int_equal((uint32_t)words[0], 01u | 02u << 3 | 03u << 6 | 04u << 9 | 05u << 12 |
                                             06u << 15 | 07u << 18 | 0u | 01u << 24 | 02u << 27 |
                                             03u << 30);
    assert_int_equal((uint32_t)words[1], 1u);
}

static void word_counts(void **state) {
    (void)state;
    assert_int_equal(pack_words(1, 4), 1);
    assert_int_equal(pack_words(8, 4), 1);
    assert_int_equal(pack_words(9, 4), 2);
    assert_int_equal(pack_words(32, 3), 3);
    assert_int_equal(pack_words(33, 3), 4);
    assert_int_equal(pack_words(28672, 4), 3584);
    assert_int_equal(pack_words(0, 4), 0);
    assert_int_equal(pack_words(1ll << 40, 8), 1ll << 38);
}

static uint8_t random_code(int bits, int64_t i) {
    return (uint8_t)(rng_u64(3, RNG_TEST, (uint64_t)i) >> 40 & ((1u << bits) - 1));
}

/* Bit i*b + k of the string is bit k of code i; bits after the last code are 0. */
static void bit_positions(void **state) {
    (void)state;
    enum { MOST = 77 };
    uint8_t codes[MOST], back[MOST];
    int32_t words[MOST];
    for (int bits = 2; bits <= 8; bits++)
        for (int n = 1; n <= MOST; n++) {
            for (int i = 0; i < n; i++) codes[i] = random_code(bits, i);
            memset(words, 0xff, sizeof words);
            pack_row(codes, n, bits, words);
            int64_t n_words = pack_words(n, bits);
            for (int64_t bit = 0; bit < n_words * 32; bit++) {
                unsigned got = (uint32_t)words[bit / 32] >> bit % 32 & 1;
                unsigned want = bit < (int64_t)n * bits ? codes[bit / bits] >> bit % bits & 1u : 0;
                assert_int_equal(got, want);
            }
            assert_int_equal((uint32_t)words[n_words], 0xffffffffu);
            unpack_row(words, n, bits, back);
            assert_memory_equal(codes, back, (size_t)n);
        }
}

static void rows_are_independent(void **state) {
    (void)state;
    enum { ROWS = 5, COLS = 13 };
    uint8_t codes[ROWS * COLS], back[ROWS * COLS];
    int32_t words[ROWS * 4], row[4];
    for (int i = 0; i < ROWS * COLS; i++) codes[i] = random_code(5, i);
    int64_t n = pack_words(COLS, 5);
    pack_rows(codes, ROWS, COLS, 5, words);
    for (int r = 0; r < ROWS; r++) {
        pack_row(codes + r * COLS, COLS, 5, row);
        assert_memory_equal(row, words + r * n, (size_t)n * 4);
    }
    unpack_rows(words, ROWS, COLS, 5, back);
    assert_memory_equal(codes, back, sizeof codes);
}

/* Zero points run down the columns: word [k, g] holds the codes of rows 8k .. 8k + 7 of group g. */
static void zeros_run_down_the_columns(void **state) {
    (void)state;
    enum { ROWS = 11, GROUPS = 3 };
    uint8_t zeros[ROWS * GROUPS], back[ROWS * GROUPS];
    int32_t words[2 * GROUPS];
    for (int i = 0; i < ROWS * GROUPS; i++) zeros[i] = random_code(4, i);
    pack_zeros(zeros, ROWS, GROUPS, 4, words);
    for (int j = 0; j < 16; j++)
        for (int g = 0; g < GROUPS; g++) {
            unsigned got = (uint32_t)words[j / 8 * GROUPS + g] >> j % 8 * 4 & 15u;
            assert_int_equal(got, j < ROWS ? zeros[j * GROUPS + g] : 0);
        }
    unpack_zeros(words, ROWS, GROUPS, 4, back);
    assert_memory_equal(zeros, back, sizeof zeros);
    for (int bits = 2; bits <= 8; bits++) {
        int32_t many[3 * GROUPS];
        for (int i = 0; i < ROWS * GROUPS; i++) zeros[i] = random_code(bits, i);
        pack_zeros(zeros, ROWS, GROUPS, bits, many);
        unpack_zeros(many, ROWS, GROUPS, bits, back);
        assert_memory_equal(zeros, back, sizeof zeros);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_words),         cmocka_unit_test(three_bits_by_hand),
        cmocka_unit_test(word_counts),          cmocka_unit_test(bit_positions),
        cmocka_unit_test(rows_are_independent), cmocka_unit_test(zeros_run_down_the_columns),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
