/* Words are filled row by row from codes; the check unpacks them again and compares code by code,
 * scale by scale. */
#include "shard/packed_tensor.h"

#include "base/half.h"
#include "base/mem.h"
#include "base/size.h"
#include "quant/grid.h"
#include "quant/pack.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { PARALLEL_FROM = 1 << 15 };

st_dtype packed_scale_dtype(scale_type t) {
    return t == SCALE_BF16 ? ST_BF16 : t == SCALE_FP16 ? ST_F16 : ST_F32;
}

static bool scale_type_of(st_dtype t, scale_type *out) {
    if (t != ST_BF16 && t != ST_F16 && t != ST_F32) return false;
    *out = t == ST_BF16 ? SCALE_BF16 : t == ST_F16 ? SCALE_FP16 : SCALE_F32;
    return true;
}

uint64_t packed_tensor_bytes(const qmatrix *q, layout_kind kind) {
    int64_t words = 0;
    switch (kind) {
    case LAYOUT_PACKED:
        return (uint64_t)(q->rows * pack_words(q->cols, q->bits)) * 4;
    case LAYOUT_SCALE:
        return (uint64_t)(q->rows * q->n_groups) *
               (uint64_t)st_dtype_bytes(packed_scale_dtype(q->scale_type));
    case LAYOUT_ZEROS:
        words = q->zeros ? pack_words(q->rows, q->bits) * q->n_groups : 0;
        return (uint64_t)words * 4;
    case LAYOUT_SHAPE:
        return 2 * sizeof(int64_t);
    case LAYOUT_CODES:
        return (uint64_t)(q->rows * q->cols);
    case LAYOUT_PLAIN:
        break;
    }
    return 0;
}

/* Scales are numbers of their stored type already, so this conversion is exact. */
static void fill_floats(const float *from, int64_t n, st_dtype dtype, void *to) {
    if (dtype == ST_BF16)
        half_array_to_bf16(from, n, to);
    else if (dtype == ST_F16)
        half_array_to_fp16(from, n, to);
    else
        memcpy(to, from, (size_t)n * sizeof *from);
}

/* Offset form to signed and back. */
static void fill_codes(const qmatrix *q, int8_t *to) {
    const int middle = grid_middle(q->bits);
    const int64_t n = q->rows * q->cols;
#pragma omp parallel for simd schedule(static) if (n > PARALLEL_FROM)
    for (int64_t i = 0; i < n; i++) to[i] = (int8_t)(q->codes[i] - middle);
}

static err take_codes(const int8_t *from, const char *linear, qmatrix *q) {
    const int middle = grid_middle(q->bits), top = grid_top(q->bits);
    const int64_t n = q->rows * q->cols;
    int64_t bad = 0;
#pragma omp parallel for simd schedule(static) reduction(+ : bad) if (n > PARALLEL_FROM)
    for (int64_t i = 0; i < n; i++) {
        int code = from[i] + middle;
        bad += code < 0 || code > top;
        q->codes[i] = (uint8_t)code;
    }
    if (!bad) return err_none();
    return err_make(ERR_VERIFY, linear, NULL, "%" PRId64 " codes are out of the range of %d bits",
                    bad, q->bits);
}

void packed_tensor_fill(const qmatrix *q, layout_kind kind, void *to) {
    int64_t shape[2] = {q->rows, q->cols};
    switch (kind) {
    case LAYOUT_PACKED:
        pack_rows(q->codes, q->rows, q->cols, q->bits, to);
        break;
    case LAYOUT_SCALE:
        fill_floats(q->scales, q->rows * q->n_groups, packed_scale_dtype(q->scale_type), to);
        break;
    case LAYOUT_ZEROS:
        if (q->zeros) pack_zeros(q->zeros, q->rows, q->n_groups, q->bits, to);
        break;
    case LAYOUT_SHAPE:
        memcpy(to, shape, sizeof shape);
        break;
    case LAYOUT_CODES:
        fill_codes(q, to);
        break;
    case LAYOUT_PLAIN:
        break;
    }
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

/* The first row of codes that does not come back, or -1. */
static int64_t first_wrong_row(const qmatrix *q, const int32_t *words) {
    const int64_t n_words = pack_words(q->cols, q->bits);
    int64_t first = q->rows;
#pragma omp parallel for schedule(static) reduction(min : first) if (q->rows > 1)
    for (int64_t r = 0; r < q->rows; r++)
        if (!same_row(q->codes + r * q->cols, words + r * n_words, q->cols, q->bits))
            first = size_min(first, r);
    return first < q->rows ? first : -1;
}

static err check_zeros(const qmatrix *q, const void *from, bool *same) {
    const int64_t n = q->rows * q->n_groups;
    void *back;
    err e = mem_alloc(n, 1, "zero points", &back);
    if (e.code) return e;
    unpack_zeros(from, q->rows, q->n_groups, q->bits, back);
    *same = !memcmp(back, q->zeros, (size_t)n);
    mem_free(back);
    return e;
}

/* Scales are numbers of their stored type, so they come back bit for bit. */
static bool same_scales(const qmatrix *q, const char *from) {
    enum { PIECE = 1024 };
    const size_t size = (size_t)st_dtype_bytes(packed_scale_dtype(q->scale_type));
    const int64_t n = q->rows * q->n_groups;
    float back[PIECE];
    for (int64_t i = 0; i < n; i += PIECE) {
        const int64_t m = size_min(PIECE, n - i);
        const char *at = from + (size_t)i * size;
        if (q->scale_type == SCALE_BF16)
            half_array_from_bf16((const uint16_t *)at, m, back);
        else if (q->scale_type == SCALE_FP16)
            half_array_from_fp16((const uint16_t *)at, m, back);
        else
            memcpy(back, at, (size_t)m * sizeof *back);
        if (memcmp(back, q->scales + i, (size_t)m * sizeof *back)) return false;
    }
    return true;
}

err packed_tensor_check(const qmatrix *q, layout_kind kind, const void *from, const char *what) {
    static const char *const hint = "the memory of the node may be faulty: leave it out";
    bool same = true;
    err e = err_none();
    const int64_t row = kind == LAYOUT_PACKED ? first_wrong_row(q, from) : -1;
    if (row >= 0)
        return err_make(ERR_NUMERICS, what, hint,
                        "the packed words of row %" PRId64 " do not unpack to its codes", row);
    if (kind == LAYOUT_SCALE) same = same_scales(q, from);
    if (kind == LAYOUT_ZEROS && q->zeros) e = check_zeros(q, from, &same);
    if (e.code || same) return e;
    return err_make(ERR_NUMERICS, what, hint, "what was packed is not what is stored");
}

void packed_tensor_fill_unit(const layout *l, llama_role role, int64_t layer, const qmatrix *q,
                             void *unit) {
    for (layout_kind k = LAYOUT_PACKED; k <= LAYOUT_CODES; k++) {
        const layout_slot *s = layout_find_role(l, role, layer, k);
        if (s) packed_tensor_fill(q, k, (char *)unit + s->unit_offset);
    }
}

err packed_plain_fill(const float *from, int64_t n, st_dtype dtype, const char *what, void *to) {
    if (dtype == ST_F16) {
        int64_t lost = 0;
#pragma omp parallel for schedule(static) reduction(+ : lost) if (n > PARALLEL_FROM)
        for (int64_t i = 0; i < n; i++) /* 65520 is the first to round to infinity */
            lost += isfinite(from[i]) && fabsf(from[i]) >= 65520.0f;
        if (lost)
            return err_make(ERR_NUMERICS, what, "store with archive.dtype=bf16",
                            "%" PRId64 " values are too large for fp16", lost);
    }
    const int64_t parts = size_ceil_div(n, PARALLEL_FROM), size = st_dtype_bytes(dtype);
#pragma omp parallel for schedule(dynamic) if (parts > 1)
    for (int64_t p = 0; p < parts; p++) {
        const int64_t i = p * PARALLEL_FROM;
        fill_floats(from + i, size_min(PARALLEL_FROM, n - i), dtype, (char *)to + i * size);
    }
    return err_none();
}

/* Reading back. */

typedef struct linear_parts {
    const hf_tensor *packed, *scale, *zeros, *shape;
} linear_parts;

static err bad_linear(const char *linear, const char *what) {
    return err_make(ERR_VERIFY, linear, NULL, "%s", what);
}

static const hf_tensor *find_part(const hf_checkpoint *ck, const char *linear, const char *suffix) {
    char name[256];
    snprintf(name, sizeof name, "%s.weight_%s", linear, suffix);
    return hf_checkpoint_find(ck, name);
}

/* X.weight, where it holds codes. */
static const hf_tensor *find_codes(const hf_checkpoint *ck, const char *linear) {
    char name[256];
    snprintf(name, sizeof name, "%s.weight", linear);
    const hf_tensor *t = hf_checkpoint_find(ck, name);
    return t && t->info.dtype == ST_I8 ? t : NULL;
}

static bool has_shape(const hf_tensor *t, int64_t rows, int64_t cols) {
    return t->info.n_dims == 2 && t->info.shape[0] == rows && t->info.shape[1] == cols;
}

static err find_parts(const hf_checkpoint *ck, const char *linear, bool symmetric,
                      linear_parts *p) {
    p->packed = find_part(ck, linear, "packed");
    p->scale = find_part(ck, linear, "scale");
    p->shape = find_part(ck, linear, "shape");
    p->zeros = symmetric ? NULL : find_part(ck, linear, "zero_point");
    if (!p->packed || !p->scale || !p->shape || (!symmetric && !p->zeros))
        return bad_linear(linear, "one of weight_packed, weight_scale, weight_shape, "
                                  "weight_zero_point is missing");
    if (p->shape->info.dtype != ST_I64 || p->shape->info.n_dims != 1 ||
        p->shape->info.shape[0] != 2)
        return bad_linear(linear, "weight_shape is not I64 [2]");
    return err_none();
}

static err check_parts(const char *linear, const linear_parts *p, int64_t rows, int64_t cols,
                       const wquant *how) {
    int64_t groups = how->group ? cols / how->group : 1;
    if (p->packed->info.dtype != ST_I32 || !has_shape(p->packed, rows, pack_words(cols, how->bits)))
        return bad_linear(linear,
                          "weight_packed has a shape or type that does not fit weight_shape");
    if (!has_shape(p->scale, rows, groups))
        return bad_linear(linear, "weight_scale has a shape that does not fit weight_shape");
    if (p->zeros && (p->zeros->info.dtype != ST_I32 ||
                     !has_shape(p->zeros, pack_words(rows, how->bits), groups)))
        return bad_linear(linear, "weight_zero_point does not fit weight_shape");
    return err_none();
}

static void take_scales(const void *bytes, st_dtype dtype, qmatrix *q) {
    int64_t n = q->rows * q->n_groups;
    if (dtype == ST_BF16)
        half_array_from_bf16(bytes, n, q->scales);
    else if (dtype == ST_F16)
        half_array_from_fp16(bytes, n, q->scales);
    else
        memcpy(q->scales, bytes, (size_t)n * sizeof *q->scales);
}

static err read_part(const hf_checkpoint *ck, const hf_tensor *t, void **bytes) {
    err e = mem_alloc((int64_t)hf_tensor_bytes(t), 1, "a packed tensor", bytes);
    return e.code ? e : hf_checkpoint_read(ck, t, *bytes, NULL);
}

static err read_matrix(const hf_checkpoint *ck, const linear_parts *p, qmatrix *q) {
    void *bytes = NULL;
    err e = read_part(ck, p->packed, &bytes);
    if (!e.code) unpack_rows(bytes, q->rows, q->cols, q->bits, q->codes);
    mem_free(bytes);
    bytes = NULL;
    if (!e.code) e = read_part(ck, p->scale, &bytes);
    if (!e.code) take_scales(bytes, p->scale->info.dtype, q);
    mem_free(bytes);
    bytes = NULL;
    if (!e.code && p->zeros) e = read_part(ck, p->zeros, &bytes);
    if (!e.code && p->zeros) unpack_zeros(bytes, q->rows, q->n_groups, q->bits, q->zeros);
    mem_free(bytes);
    return e;
}

static err read_codes(const hf_checkpoint *ck, const hf_tensor *codes, const hf_tensor *scale,
                      const char *linear, qmatrix *q) {
    void *bytes = NULL;
    err e = read_part(ck, codes, &bytes);
    if (!e.code) e = take_codes(bytes, linear, q);
    mem_free(bytes);
    bytes = NULL;
    if (!e.code) e = read_part(ck, scale, &bytes);
    if (!e.code) take_scales(bytes, scale->info.dtype, q);
    mem_free(bytes);
    return e;
}

/* The form int-quantized: X.weight I8 and its scales. */
static err read_int8(const hf_checkpoint *ck, const char *linear, const hf_tensor *codes,
                     wquant how, qmatrix **out) {
    const hf_tensor *scale = find_part(ck, linear, "scale");
    const int64_t rows = codes->info.shape[0], cols = codes->info.shape[1];
    if (codes->info.n_dims != 2 || rows < 1 || cols < 1 || how.bits < 2 || how.bits > 8 ||
        how.group < 0 || (how.group && cols % how.group) || !how.symmetric)
        return bad_linear(linear, "its codes do not fit the scheme of config.json");
    if (!scale || !scale_type_of(scale->info.dtype, &how.scale_type) ||
        !has_shape(scale, rows, how.group ? cols / how.group : 1))
        return bad_linear(linear, "weight_scale is missing, or does not fit the weight");
    err e = qmatrix_create(rows, cols, &how, out);
    if (!e.code) e = read_codes(ck, codes, scale, linear, *out);
    if (e.code) qmatrix_destroy(out);
    return e;
}

err packed_tensor_read(const hf_checkpoint *ck, const char *linear, int bits, int64_t group,
                       bool symmetric, qmatrix **out) {
    linear_parts p;
    int64_t shape[2];
    wquant how = {.bits = bits, .group = group, .symmetric = symmetric};
    *out = NULL;
    const hf_tensor *codes = find_codes(ck, linear);
    if (codes) return read_int8(ck, linear, codes, how, out);
    err e = find_parts(ck, linear, symmetric, &p);
    if (!e.code && !scale_type_of(p.scale->info.dtype, &how.scale_type))
        e = bad_linear(linear, "weight_scale is not BF16, F16 or F32");
    if (!e.code) e = hf_checkpoint_read(ck, p.shape, shape, NULL);
    if (e.code) return e;
    /* Held against packed before anything is sized by it: rows are real, cols within the words. */
    if (shape[0] < 1 || shape[1] < 1 || shape[1] > INT64_MAX / 16 || bits < 2 || bits > 8 ||
        (group && (group < 0 || shape[1] % group)))
        return bad_linear(linear, "weight_shape is out of range, or the group does not divide it");
    e = check_parts(linear, &p, shape[0], shape[1], &how);
    if (!e.code) e = qmatrix_create(shape[0], shape[1], &how, out);
    if (!e.code) e = read_matrix(ck, &p, *out);
    if (e.code) qmatrix_destroy(out);
    return e;
}
