/* The form int-quantized of compressed-tensors: signed codes of 2 to 8 bits, a byte each, under the
 * name of the plain weight. */
#include "shard/form_internal.h"

#include "base/mem.h"
#include "base/size.h"
#include "quant/grid.h"
#include "quant/pack.h"

#include <inttypes.h>

enum { PARALLEL_FROM = 1 << 15 };

static form_shape codes_shape(const form_scheme *s, int64_t rows, int64_t cols) {
    (void)s;
    return (form_shape){ST_I8, 2, {rows, cols}};
}

/* Codes in memory are in offset form. */
static void codes_pack(const qmatrix *q, void *to) {
    const int middle = grid_middle(q->bits);
    const int64_t n = q->rows * q->cols;
    int8_t *bytes = to;
#pragma omp parallel for simd schedule(static) if (n > PARALLEL_FROM)
    for (int64_t i = 0; i < n; i++) bytes[i] = (int8_t)(q->codes[i] - middle);
}

/* n codes into offset form; `to` may be `from`. */
static err to_offset(const int8_t *from, int64_t n, int bits, const char *where, uint8_t *to) {
    const int middle = grid_middle(bits), top = grid_top(bits);
    int64_t bad = 0;
#pragma omp parallel for simd schedule(static) reduction(+ : bad) if (n > PARALLEL_FROM)
    for (int64_t i = 0; i < n; i++) {
        const int code = from[i] + middle;
        bad += code < 0 || code > top;
        to[i] = (uint8_t)code;
    }
    if (!bad) return err_none();
    return err_make(ERR_VERIFY, where, NULL,
                    "holds %" PRId64 " codes that are out of the range of %d bits", bad, bits);
}

static err codes_unpack(const void *from, st_dtype dtype, const char *where, qmatrix *q) {
    (void)dtype;
    return to_offset(from, q->rows * q->cols, q->bits, where, q->codes);
}

static err codes_same(const void *from, const qmatrix *q, bool *same, int64_t *row) {
    const int middle = grid_middle(q->bits);
    const int8_t *bytes = from;
    *row = -1;
    for (int64_t i = 0; i < q->rows * q->cols && *row < 0; i++)
        if (bytes[i] + middle != q->codes[i]) *row = i / q->cols;
    *same = *row < 0;
    return err_none();
}

/* Packed here, some rows at a time. */
static err codes_words(const hf_checkpoint *ck, const hf_tensor *t, int bits, int64_t rows,
                       int64_t cols, int32_t *to) {
    enum { ROWS = 64 };
    void *codes = NULL;
    err e = mem_alloc(ROWS * cols, 1, t->info.name, &codes);
    for (int64_t r = 0; r < rows && !e.code; r += ROWS) {
        const int64_t n = size_min(ROWS, rows - r);
        e = hf_checkpoint_read_range(ck, t, (uint64_t)(r * cols), (uint64_t)(n * cols), codes);
        if (!e.code) e = to_offset(codes, n * cols, bits, t->info.name, codes);
        if (!e.code) pack_rows(codes, n, cols, bits, to + r * pack_words(cols, bits));
    }
    mem_free(codes);
    return e;
}

static const form_slot slots[] = {
    {FORM_SCALE_SLOT},
    {.part = FORM_CODES,
     .suffix = ".weight",
     .shape = codes_shape,
     .pack = codes_pack,
     .unpack = codes_unpack,
     .same = codes_same,
     .words = codes_words},
};

static err refuse(const form_scheme *s) {
    if (s->symmetric) return err_none();
    return err_make(ERR_USAGE, "archive.form", NULL, "int-quantized takes symmetric weights only");
}

const form form_int8 = {
    .name = "int-quantized",
    .slots = slots,
    .n_slots = sizeof slots / sizeof *slots,
    .byte_codes = true,
    .refuse = refuse,
};
