/* Bytes of the parts of a linear in each form, held against words worked out by hand or against the
 * definition of the form; and every bit of them that changes is found. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "io/safetensors.h"
#include "shard/stored_floats.h"
#include "tests/unit/small_archive.h"

#include <stdlib.h>
#include <string.h>

/* Packed, in groups of 8, asymmetric. */
static form_scheme linears_of(int bits) {
    return layout_plain(bits, 8, false, 1 << 20).linears;
}

/* Bytes of a part as its shape says. */
static uint64_t part_bytes(const form_scheme *s, form_part which, const qmatrix *q) {
    const form_shape shape = form_part_slot(s->form, which)->shape(s, q->rows, q->cols);
    return (uint64_t)(shape.shape[0] * shape.shape[1] * st_dtype_bytes(shape.dtype));
}

/* The golden words of the format, with the scale and the shape. */
static void test_packed_bytes(void **state) {
    (void)state;
    wquant how = {.bits = 4, .group = 8, .symmetric = false, .scale_type = SCALE_BF16};
    qmatrix *q;
    int32_t words[6];
    uint16_t scales[6];
    int64_t shape[2];
    assert_int_equal(qmatrix_create(3, 16, &how, &q).code, 0);
    for (int i = 0; i < 48; i++) q->codes[i] = (uint8_t)(i % 16);
    for (int i = 0; i < 6; i++) {
        q->scales[i] = i % 2 ? -0.5f : 1.0f;
        q->zeros[i] = (uint8_t)(i + 1); /* [3, 2]: rows 1 2, 3 4, 5 6 */
    }
    form_scheme how_stored = linears_of(4);
    assert_int_equal(part_bytes(&how_stored, FORM_CODES, q), sizeof words);
    part_of("pack-quantized", FORM_CODES)->pack(q, words);
    for (int i = 0; i < 6; i++) assert_int_equal(words[i], i % 2 ? -19088744 : 1985229328);
    assert_int_equal(part_bytes(&how_stored, FORM_SCALES, q), sizeof scales);
    part_of("pack-quantized", FORM_SCALES)->pack(q, scales);
    for (int i = 0; i < 6; i++) assert_int_equal(scales[i], i % 2 ? 0xbf00 : 0x3f80);
    assert_int_equal(part_bytes(&how_stored, FORM_ZEROS, q), 8);
    part_of("pack-quantized", FORM_ZEROS)->pack(q, words);
    assert_int_equal(words[0], 0x531);
    assert_int_equal(words[1], 0x642);
    assert_int_equal(part_bytes(&how_stored, FORM_SIZES, q), sizeof shape);
    part_of("pack-quantized", FORM_SIZES)->pack(q, shape);
    assert_true(shape[0] == 3 && shape[1] == 16);
    qmatrix_destroy(&q);
}

/* No bit of codes, scales and zero points that a matrix has in its packed form changes unseen. */
static void test_packed_check(void **state) {
    (void)state;
    static const int bits_of[] = {2, 3, 4, 5, 8};
    static const form_part parts[] = {FORM_CODES, FORM_SCALES, FORM_ZEROS};
    for (int b = 0; b < 5; b++) {
        const int64_t rows = 3, cols = 32, bits = bits_of[b];
        wquant how = {.bits = (int)bits, .group = 8, .scale_type = SCALE_FP16};
        qmatrix *q;
        assert_int_equal(qmatrix_create(rows, cols, &how, &q).code, 0);
        for (int i = 0; i < rows * cols; i++) q->codes[i] = (uint8_t)(i * 7 % (1 << bits));
        for (int i = 0; i < rows * 4; i++) {
            q->scales[i] = 0.25f * (float)(i + 1);
            q->zeros[i] = (uint8_t)(i % (1 << bits));
        }
        for (int k = 0; k < 3; k++) {
            form_scheme how_stored = linears_of((int)bits);
            how_stored.scale_dtype = ST_F16;
            const form_slot *slot = part_of("pack-quantized", parts[k]);
            const uint64_t n = part_bytes(&how_stored, parts[k], q);
            unsigned char *words = malloc(n);
            int found = 0, want = (int)(rows * cols * bits);
            if (parts[k] == FORM_SCALES) want = (int)n * 8;
            if (parts[k] == FORM_ZEROS) want = (int)(rows * 4 * bits); /* the rest is filling */
            slot->pack(q, words);
            assert_int_equal(form_check(slot, q, words, "x").code, 0);
            for (uint64_t bit = 0; bit < 8 * n; bit++) {
                words[bit / 8] ^= (unsigned char)(1 << bit % 8);
                err e = form_check(slot, q, words, "x");
                words[bit / 8] ^= (unsigned char)(1 << bit % 8);
                assert_true(!e.code || (e.code == ERR_NUMERICS && !strcmp(e.where, "x")));
                found += e.code != 0;
            }
            assert_int_equal(found, want);
            free(words);
        }
        qmatrix_destroy(&q);
    }
}

static void test_plain_bytes(void **state) {
    (void)state;
    const float x[3] = {1.0f, -65504.0f, 3.140625f};
    const float large[1] = {65520.0f};
    uint16_t got[3];
    float same[3];
    assert_int_equal(stored_floats_fill(x, 3, ST_F16, "t", got).code, 0);
    assert_int_equal(got[0], 0x3c00);
    assert_int_equal(got[1], 0xfbff);
    assert_int_equal(got[2], 0x4248);
    assert_int_equal(stored_floats_fill(x, 3, ST_BF16, "t", got).code, 0);
    assert_int_equal(got[0], 0x3f80);
    assert_int_equal(got[2], 0x4049);
    assert_int_equal(stored_floats_fill(x, 3, ST_F32, "t", same).code, 0);
    assert_memory_equal(same, x, sizeof x);
    assert_int_equal(stored_floats_fill(large, 1, ST_F16, "t", got).code, ERR_NUMERICS);
}

/* Words of gptq by their definition, of a matrix of several pieces; a changed code is found. */
static void test_gptq_bytes(void **state) {
    (void)state;
    enum { OUT = 24, IN = 4 * 1088 };
    for (int bits = 4; bits <= 8; bits += 4) {
        const wquant how = {.bits = bits, .group = 64, .symmetric = true, .scale_type = SCALE_FP16};
        const int64_t per = 32 / bits, words = IN / per * OUT;
        uint32_t *got = calloc((size_t)words, sizeof *got), mask = (1u << bits) - 1;
        qmatrix *q;
        assert_true(got != NULL);
        assert_int_equal(qmatrix_create(OUT, IN, &how, &q).code, 0);
        for (int64_t i = 0; i < OUT * IN; i++) q->codes[i] = (uint8_t)((i * 7919 >> 3) & mask);
        const form_slot *codes = part_of("gptq", FORM_CODES);
        codes->pack(q, got);
        for (int64_t o = 0; o < OUT; o++)
            for (int64_t j = 0; j < IN; j++)
                assert_int_equal(got[j / per * OUT + o] >> (bits * (j % per)) & mask,
                                 q->codes[o * IN + j]);
        assert_int_equal(form_check(codes, q, got, "x").code, 0);
        uint8_t *codes_before = malloc(OUT * IN);
        assert_true(codes_before != NULL);
        memcpy(codes_before, q->codes, OUT * IN);
        memset(q->codes, 0, OUT * IN);
        assert_int_equal(codes->unpack(got, ST_I32, "x", q).code, 0);
        assert_memory_equal(codes_before, q->codes, OUT * IN);
        got[words - 1] ^= 1;
        assert_int_equal(form_check(codes, q, got, "x").code, ERR_NUMERICS);
        free(codes_before);
        free(got);
        qmatrix_destroy(&q);
    }
}

static void test_int8_bytes(void **state) {
    (void)state;
    wquant how = {.bits = 4, .symmetric = true, .scale_type = SCALE_BF16};
    const int8_t want[6] = {-8, -1, 0, 1, 7, 3};
    int8_t got[6];
    qmatrix *q;
    assert_int_equal(qmatrix_create(2, 3, &how, &q).code, 0);
    for (int i = 0; i < 6; i++) q->codes[i] = (uint8_t)(want[i] + 8);
    const form_slot *codes = part_of("int-quantized", FORM_CODES);
    codes->pack(q, got);
    assert_memory_equal(got, want, sizeof got);
    assert_int_equal(form_check(codes, q, got, "x").code, 0);
    for (int bit = 0; bit < 48; bit++) {
        got[bit / 8] ^= (int8_t)(1 << bit % 8);
        assert_int_equal(form_check(codes, q, got, "x").code, ERR_NUMERICS);
        got[bit / 8] ^= (int8_t)(1 << bit % 8);
    }
    got[5] = 8; /* no code of 4 bits */
    assert_int_equal(codes->unpack(got, ST_I8, "x", q).code, ERR_VERIFY);
    qmatrix_destroy(&q);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_packed_bytes), cmocka_unit_test(test_packed_check),
        cmocka_unit_test(test_plain_bytes),  cmocka_unit_test(test_gptq_bytes),
        cmocka_unit_test(test_int8_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
