/* A scale for each row and group from the range (or by search), rounded to its stored type; then
 * code = clamp(rint(x / s) + z). Rows are independent and dealt to threads. */
#include "quant/rtn.h"

#include "base/half.h"
#include "base/mem.h"
#include "base/size.h"
#include "quant/grid.h"
#include "quant/scale_search.h"

#include <float.h>
#include <inttypes.h>
#include <stddef.h>
#include <string.h>

int64_t wquant_group(const wquant *how, int64_t cols) {
    return how->group ? how->group : cols;
}

err wquant_check(const wquant *how, int64_t rows, int64_t cols) {
    if (how->bits < 2 || how->bits > 8)
        return err_make(ERR_USAGE, "weights.bits", "choose 2 to 8 bits",
                        "weights of %d bits are not supported", how->bits);
    if (rows < 1 || cols < 1)
        return err_make(ERR_BUG, "quantized matrix", NULL,
                        "impossible shape %" PRId64 " x %" PRId64, rows, cols);
    if (how->group < 0 || cols % wquant_group(how, cols))
        return err_make(ERR_USAGE, "weights.group",
                        "choose a group that divides every input size, `auto` or `channel`",
                        "groups of %" PRId64 " do not divide the %" PRId64
                        " inputs of a matrix [%" PRId64 ", %" PRId64 "]",
                        how->group, cols, rows, cols);
    return err_none();
}

uint64_t qmatrix_bytes(int64_t rows, int64_t cols, const wquant *how) {
    uint64_t codes, scales, bytes;
    uint64_t per_scale = sizeof(float) + (how->symmetric ? 0 : 1);
    uint64_t n_groups = (uint64_t)(cols / wquant_group(how, cols));
    if (!size_mul((uint64_t)rows, (uint64_t)cols, &codes) ||
        !size_mul((uint64_t)rows * per_scale, n_groups, &scales) ||
        !size_add(codes, scales, &bytes))
        return 0;
    return bytes;
}

err qmatrix_create(int64_t rows, int64_t cols, const wquant *how, qmatrix **out) {
    *out = NULL;
    err e = wquant_check(how, rows, cols);
    if (e.code) return e;
    if (!qmatrix_bytes(rows, cols, how))
        return err_make(ERR_INPUT, "quantized matrix", NULL,
                        "%" PRId64 " x %" PRId64 " elements overflow", rows, cols);
    qmatrix *q;
    e = MEM_NEW(&q, 1, "quantized matrix");
    if (e.code) return e;
    *q = (qmatrix){.rows = rows,
                   .cols = cols,
                   .group = wquant_group(how, cols),
                   .bits = how->bits,
                   .symmetric = how->symmetric,
                   .scale_type = how->scale_type};
    q->n_groups = cols / q->group;
    e = MEM_NEW(&q->codes, rows * cols, "codes");
    if (!e.code) e = MEM_NEW(&q->scales, rows * q->n_groups, "scales");
    if (!e.code && !how->symmetric) e = MEM_NEW(&q->zeros, rows * q->n_groups, "zero points");
    if (e.code) {
        qmatrix_destroy(&q);
        return e;
    }
    *out = q;
    return e;
}

void qmatrix_destroy(qmatrix **q) {
    if (!*q) return;
    mem_free((*q)->codes);
    mem_free((*q)->scales);
    mem_free((*q)->zeros);
    mem_free(*q);
    *q = NULL;
}

float scale_most(scale_type type) {
    return type == SCALE_FP16 ? 65504.0f : type == SCALE_BF16 ? half_from_bf16(0x7f7f) : FLT_MAX;
}

float scale_round(float s, scale_type type) {
    const float most = scale_most(type);
    if (type == SCALE_BF16)
        return quant_clamp(half_from_bf16(half_to_bf16(s)), half_from_bf16(0x0001), most);
    if (type == SCALE_FP16) return quant_clamp(half_from_fp16(half_to_fp16(s)), 0x1p-24f, most);
    return quant_clamp(s, FLT_TRUE_MIN, most);
}

static void take_codes(const float *x, int64_t n, float scale, int zero, int bits, uint8_t *codes) {
    const float z = (float)zero, top = (float)grid_top(bits);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) codes[i] = (uint8_t)(int)quant_offset_code(x[i], scale, z, top);
}

static void quantize_row(const wquant *how, const float *x, int64_t row, qmatrix *q) {
    for (int64_t g = 0; g < q->n_groups; g++) {
        const float *xg = x + g * q->group;
        float lo, hi, scale;
        int zero;
        if (how->search) {
            scale_search(how, xg, q->group, &scale, &zero);
        } else {
            scale_range(xg, q->group, &lo, &hi);
            scale_of_range(how, lo, hi, 1.0f, &scale, &zero);
        }
        take_codes(xg, q->group, scale, zero, q->bits, q->codes + row * q->cols + g * q->group);
        q->scales[row * q->n_groups + g] = scale;
        if (q->zeros) q->zeros[row * q->n_groups + g] = (uint8_t)zero;
    }
}

void rtn_quantize_rows(const wquant *how, const float *w, int64_t rows, int64_t cols, int64_t row0,
                       qmatrix *q) {
#pragma omp parallel for schedule(dynamic, 16) if (rows > 1)
    for (int64_t r = 0; r < rows; r++) quantize_row(how, w + r * cols, row0 + r, q);
}

static int zero_of(const qmatrix *q, int64_t row, int64_t g) {
    return q->zeros ? q->zeros[row * q->n_groups + g] : grid_middle(q->bits);
}

static void dequantize_row(const qmatrix *q, int64_t row, float *out) {
    for (int64_t g = 0; g < q->n_groups; g++) {
        const uint8_t *codes = q->codes + row * q->cols + g * q->group;
        float s = q->scales[row * q->n_groups + g];
        int z = zero_of(q, row, g);
        float *to = out + g * q->group;
#pragma omp simd
        for (int64_t i = 0; i < q->group; i++) to[i] = (float)(codes[i] - z) * s;
    }
}

void qmatrix_copy_rows(const qmatrix *q, int64_t row, int64_t rows, int64_t to, qmatrix *other) {
    const int64_t groups = q->n_groups;
    memcpy(other->codes + to * q->cols, q->codes + row * q->cols, (size_t)(rows * q->cols));
    memcpy(other->scales + to * groups, q->scales + row * groups,
           (size_t)(rows * groups) * sizeof *q->scales);
    if (q->zeros)
        memcpy(other->zeros + to * groups, q->zeros + row * groups, (size_t)(rows * groups));
}

void qmatrix_dequantize_rows(const qmatrix *q, int64_t row0, int64_t rows, float *out) {
#pragma omp parallel for schedule(static) if (rows > 1)
    for (int64_t r = 0; r < rows; r++) dequantize_row(q, row0 + r, out + r * q->cols);
}

/* Errors of up to CHUNK values in fp32, chunks in fp64: 1e-6 of a figure that is read, no more. */
static void add_chunk_error(const uint8_t *codes, const float *w, int64_t n, int zero, float scale,
                            qerror *sum) {
    float errors = 0, weights = 0, most = 0;
#pragma omp simd simdlen(16) reduction(+ : errors, weights) reduction(max : most)
    for (int64_t i = 0; i < n; i++) {
        float e = (float)(codes[i] - zero) * scale - w[i];
        errors += e * e;
        weights += w[i] * w[i];
        most = fabsf(e) > most ? fabsf(e) : most;
    }
    sum->sum_sq_error += (double)errors;
    sum->sum_sq_weight += (double)weights;
    if ((double)most > sum->max_error) sum->max_error = (double)most;
}

static void add_group_error(const uint8_t *codes, const float *w, int64_t n, int zero, float scale,
                            qerror *sum) {
    enum { CHUNK = 256 };
    for (int64_t i = 0; i < n; i += CHUNK)
        add_chunk_error(codes + i, w + i, size_min(CHUNK, n - i), zero, scale, sum);
}

qerror qmatrix_row_error(const qmatrix *q, const float *w, int64_t row) {
    qerror sum = {0};
    for (int64_t g = 0; g < q->n_groups; g++)
        add_group_error(q->codes + row * q->cols + g * q->group, w + g * q->group, q->group,
                        zero_of(q, row, g), q->scales[row * q->n_groups + g], &sum);
    return sum;
}

void qerror_add(const qerror *rows, int64_t n, qerror *sum) {
    for (int64_t r = 0; r < n; r++) {
        sum->sum_sq_error += rows[r].sum_sq_error;
        sum->sum_sq_weight += rows[r].sum_sq_weight;
        sum->max_error = fmax(sum->max_error, rows[r].max_error);
    }
}
