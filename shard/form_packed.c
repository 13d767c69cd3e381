/* The form pack-quantized of compressed-tensors: codes in offset form as the bit strings of
 * quant/pack.h, zero points packed the same way down the columns, and the size of the matrix. */
#include "shard/form_internal.h"

#include "base/mem.h"
#include "base/size.h"
#include "quant/pack.h"

#include <string.h>

static form_shape codes_shape(const form_scheme *s, int64_t rows, int64_t cols) {
    return (form_shape){ST_I32, 2, {rows, pack_words(cols, s->bits)}};
}

static void codes_pack(const qmatrix *q, void *to) {
    pack_rows(q->codes, q->rows, q->cols, q->bits, to);
}

static err codes_unpack(const void *from, st_dtype dtype, const char *where, qmatrix *q) {
    (void)dtype;
    (void)where;
    unpack_rows(from, q->rows, q->cols, q->bits, q->codes);
    return err_none();
}

/* Does a row of words unpack to its codes? In pieces of whole words. */
static bool same_row(const uint8_t *codes, const int32_t *words, int64_t n, int bits) {
    enum { PIECE = 1024 };
    uint8_t back[PIECE];
    for (int64_t i = 0; i < n; i += PIECE) {
        const int64_t m = size_min(PIECE, n - i);
        unpack_row(words + i * bits / 32, m, bits, back);
        if (memcmp(back, codes + i, (size_t)m)) return false;
    }
    return true;
}

static err codes_same(const void *from, const qmatrix *q, bool *same, int64_t *row) {
    const int64_t n_words = pack_words(q->cols, q->bits);
    const int32_t *words = from;
    int64_t first = q->rows;
#pragma omp parallel for schedule(static) reduction(min : first) if (q->rows > 1)
    for (int64_t r = 0; r < q->rows; r++)
        if (!same_row(q->codes + r * q->cols, words + r * n_words, q->cols, q->bits))
            first = size_min(first, r);
    *same = first == q->rows;
    *row = *same ? -1 : first;
    return err_none();
}

static err codes_words(const hf_checkpoint *ck, const hf_tensor *t, int bits, int64_t rows,
                       int64_t cols, int32_t *to) {
    (void)bits;
    (void)rows;
    (void)cols;
    return hf_checkpoint_read(ck, t, to, NULL);
}

static bool zeros_stored(const form_scheme *s) {
    return !s->symmetric;
}

static form_shape zeros_shape(const form_scheme *s, int64_t rows, int64_t cols) {
    return (form_shape){ST_I32, 2, {pack_words(rows, s->bits), form_groups(s, cols)}};
}

static void zeros_pack(const qmatrix *q, void *to) {
    pack_zeros(q->zeros, q->rows, q->n_groups, q->bits, to);
}

static err zeros_unpack(const void *from, st_dtype dtype, const char *where, qmatrix *q) {
    (void)dtype;
    (void)where;
    unpack_zeros(from, q->rows, q->n_groups, q->bits, q->zeros);
    return err_none();
}

static err zeros_same(const void *from, const qmatrix *q, bool *same, int64_t *row) {
    const int64_t n = q->rows * q->n_groups;
    uint8_t *back;
    *row = -1;
    err e = MEM_NEW(&back, n, "zero points");
    if (e.code) return e;
    unpack_zeros(from, q->rows, q->n_groups, q->bits, back);
    *same = !memcmp(back, q->zeros, (size_t)n);
    mem_free(back);
    return e;
}

static form_shape sizes_shape(const form_scheme *s, int64_t rows, int64_t cols) {
    (void)s;
    (void)rows;
    (void)cols;
    return (form_shape){ST_I64, 1, {2, 1}};
}

static void sizes_pack(const qmatrix *q, void *to) {
    memcpy(to, (int64_t[2]){q->rows, q->cols}, 2 * sizeof(int64_t));
}

static err sizes_unpack(const void *from, st_dtype dtype, const char *where, qmatrix *q) {
    int64_t size[2];
    (void)dtype;
    memcpy(size, from, sizeof size);
    if (size[0] == q->rows && size[1] == q->cols) return err_none();
    return err_make(ERR_VERIFY, where, NULL, "holds another size than the config gives");
}

static err sizes_same(const void *from, const qmatrix *q, bool *same, int64_t *row) {
    *row = -1;
    *same = !sizes_unpack(from, ST_I64, "", (qmatrix *)(uintptr_t)q).code;
    return err_none();
}

static const form_slot slots[] = {
    {.part = FORM_CODES,
     .suffix = ".weight_packed",
     .shape = codes_shape,
     .pack = codes_pack,
     .unpack = codes_unpack,
     .same = codes_same,
     .words = codes_words},
    {FORM_SCALE_SLOT},
    {.part = FORM_ZEROS,
     .suffix = ".weight_zero_point",
     .stored = zeros_stored,
     .shape = zeros_shape,
     .pack = zeros_pack,
     .unpack = zeros_unpack,
     .same = zeros_same},
    {.part = FORM_SIZES,
     .suffix = ".weight_shape",
     .shape = sizes_shape,
     .pack = sizes_pack,
     .unpack = sizes_unpack,
     .same = sizes_same},
};

static err refuse(const form_scheme *s) {
    (void)s;
    return err_none();
}

const form form_packed = {
    .name = "pack-quantized",
    .slots = slots,
    .n_slots = sizeof slots / sizeof *slots,
    .refuse = refuse,
};
