/* Tiles of a weight are widened (bf16, fp16 or packed words to float) into a thread's buffer just
 * before they are multiplied, unless the product takes the type as it is. */
#include "model/wmat.h"

#include "base/gemm.h"
#include "base/half.h"
#include "base/mem.h"
#include "base/size.h"

#include <inttypes.h>
#include <string.h>

static size_t kind_bytes(wmat_kind kind) {
    return kind == WMAT_F32 ? sizeof(float) : sizeof(bf16);
}

err wmat_init(wmat *w, wmat_kind kind, int64_t rows, int64_t cols, const char *what) {
    *w = (wmat){.kind = WMAT_NONE};
    uint64_t count;
    if (rows < 0 || cols < 0 || !size_mul((uint64_t)rows, (uint64_t)cols, &count) ||
        count > INT64_MAX) {
        return err_make(ERR_BUG, what, NULL, "matrix of %" PRId64 " x %" PRId64, rows, cols);
    }
    void *data;
    err e = mem_alloc((int64_t)count, kind_bytes(kind), what, &data);
    if (e.code) return e;
    *w = (wmat){.kind = kind, .rows = rows, .cols = cols, .data = data};
    return err_none();
}

err wmat_init_packed(wmat *w, int64_t rows, int64_t cols, int bits, int64_t group, bool symmetric,
                     const char *what) {
    *w = (wmat){.kind = WMAT_NONE};
    if (bits < 2 || bits > 8 || group < 1 || cols < 1 || cols % group != 0) {
        return err_make(ERR_INPUT, what, NULL,
                        "packed weights of %d bits in groups of %" PRId64 " with %" PRId64
                        " inputs",
                        bits, group, cols);
    }
    wmat m = {.kind = WMAT_PACKED,
              .rows = rows,
              .cols = cols,
              .bits = bits,
              .group = group,
              .words = size_ceil_div(cols * bits, 32),
              .n_groups = cols / group};
    err e = mem_alloc(rows * m.words, sizeof(int32_t), what, &m.data);
    if (!e.code) e = MEM_NEW(&m.scales, rows * m.n_groups, what);
    if (!e.code && !symmetric) e = MEM_NEW(&m.zeros, rows * m.n_groups, what);
    if (e.code)
        wmat_clear(&m);
    else
        *w = m;
    return e;
}

void wmat_clear(wmat *w) {
    mem_free(w->data);
    mem_free(w->scales);
    mem_free(w->zeros);
    *w = (wmat){.kind = WMAT_NONE};
}

/* Widening. */

static uint32_t code_at(const uint32_t *words, int64_t i, int bits) {
    int64_t bit = i * bits;
    uint64_t two = words[bit / 32];
    if (bit % 32 + bits > 32) two |= (uint64_t)words[bit / 32 + 1] << 32;
    return (uint32_t)(two >> (bit % 32)) & ((1u << bits) - 1);
}

/* Codes of columns [col0, col0 + n) of a row as floats. */
static void codes_of_row(const wmat *w, const uint32_t *words, int64_t col0, int64_t n, float *to) {
    int64_t i = 0;
    if (w->bits == 4 && col0 % 8 == 0) {
        for (; i + 8 <= n; i += 8) {
            uint32_t word = words[(col0 + i) / 8];
#pragma omp simd
            for (int j = 0; j < 8; j++) to[i + j] = (float)(int32_t)(word >> (4 * j) & 15u);
        }
    }
    for (; i < n; i++) to[i] = (float)code_at(words, col0 + i, w->bits);
}

static void expand_packed_row(const wmat *w, int64_t row, int64_t col0, int64_t n, float *to) {
    const uint32_t *words = (const uint32_t *)w->data + row * w->words;
    codes_of_row(w, words, col0, n, to);
    for (int64_t i = 0; i < n;) {
        int64_t g = (col0 + i) / w->group, end = size_min(n, (g + 1) * w->group - col0);
        float scale = w->scales[row * w->n_groups + g];
        float zero = w->zeros ? w->zeros[row * w->n_groups + g] : (float)(1 << (w->bits - 1));
#pragma omp simd
        for (int64_t j = i; j < end; j++) to[j] = (to[j] - zero) * scale;
        i = end;
    }
}

static void expand_row(const wmat *w, int64_t row, int64_t col0, int64_t n, float *to) {
    int64_t at = row * w->cols + col0;
    switch (w->kind) {
    case WMAT_BF16:
        half_array_from_bf16((const bf16 *)w->data + at, n, to);
        break;
    case WMAT_F16:
        half_array_from_fp16((const fp16 *)w->data + at, n, to);
        break;
    case WMAT_F32:
        memcpy(to, (const float *)w->data + at, (size_t)n * sizeof *to);
        break;
    case WMAT_PACKED:
        expand_packed_row(w, row, col0, n, to);
        break;
    case WMAT_NONE:
        break;
    }
}

void wmat_expand_f32(const wmat *w, int64_t row0, int64_t rows, int64_t col0, int64_t cols,
                     float *to, int64_t ld) {
    for (int64_t i = 0; i < rows; i++) expand_row(w, row0 + i, col0, cols, to + i * ld);
}

void wmat_expand_f64(const wmat *w, int64_t row0, int64_t rows, int64_t col0, int64_t cols,
                     double *to, int64_t ld) {
    float part[512];
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < cols; j += 512) {
            int64_t n = size_min(512, cols - j);
            expand_row(w, row0 + i, col0 + j, n, part);
            for (int64_t l = 0; l < n; l++) to[i * ld + j + l] = part[l];
        }
    }
}

err wmat_prepare(wmat *w, compute_type compute) {
    if (compute != COMPUTE_BF16 || w->kind == WMAT_NONE || w->kind == WMAT_BF16) return err_none();
    wmat to;
    err e = wmat_init(&to, WMAT_BF16, w->rows, w->cols, "weights in bf16");
    if (e.code) return e;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < w->rows; i++) {
        float part[512];
        for (int64_t j = 0; j < w->cols; j += 512) {
            int64_t n = size_min(512, w->cols - j);
            expand_row(w, i, j, n, part);
            half_array_to_bf16(part, n, (bf16 *)to.data + i * w->cols + j);
        }
    }
    wmat_clear(w);
    *w = to;
    return err_none();
}

/* Products. */

size_t compute_factor_bytes(compute_type compute) {
    return compute == COMPUTE_BF16 ? sizeof(bf16) : compute_sum_bytes(compute);
}

size_t compute_sum_bytes(compute_type compute) {
    return compute == COMPUTE_F64 ? sizeof(double) : sizeof(float);
}

static bool used_as_is(const wmat *w, compute_type compute) {
    return compute == COMPUTE_BF16 || (compute == COMPUTE_F32 && w->kind == WMAT_F32);
}

uint64_t wmat_tile_scratch_bytes(compute_type compute) {
    if (compute == COMPUTE_BF16) return 0;
    return (uint64_t)WMAT_TILE_COLUMNS * WMAT_TILE_DEPTH * compute_sum_bytes(compute);
}

static void tile_expanded_f32(const wmat *w, const float *x, int64_t ldx, int64_t m, int64_t n0,
                              int64_t n, gemm_into into, float *y, int64_t ldy, float *scratch) {
    for (int64_t k0 = 0; k0 < w->cols; k0 += WMAT_TILE_DEPTH) {
        int64_t k = size_min(WMAT_TILE_DEPTH, w->cols - k0);
        wmat_expand_f32(w, n0, n, k0, k, scratch, k);
        gemm_tile_f32(GEMM_N, GEMM_T, m, n, k, x + k0, ldx, scratch, k, k0 > 0 ? GEMM_ADD : into, y,
                      ldy);
    }
}

static void tile_expanded_f64(const wmat *w, const double *x, int64_t ldx, int64_t m, int64_t n0,
                              int64_t n, gemm_into into, double *y, int64_t ldy, double *scratch) {
    for (int64_t k0 = 0; k0 < w->cols; k0 += WMAT_TILE_DEPTH) {
        int64_t k = size_min(WMAT_TILE_DEPTH, w->cols - k0);
        wmat_expand_f64(w, n0, n, k0, k, scratch, k);
        gemm_tile_f64(GEMM_N, GEMM_T, m, n, k, x + k0, ldx, scratch, k, k0 > 0 ? GEMM_ADD : into, y,
                      ldy);
    }
}

/* Up to some thousand inputs oneDNN is at its best with 512 at a time; beyond, more sums cost more
 * than they save (bench_gemm). */
static void tile_bf16(const wmat *w, const bf16 *x, int64_t ldx, int64_t m, int64_t n0, int64_t n,
                      gemm_into into, float *y, int64_t ldy) {
    const int64_t depth = w->cols > 1024 && w->cols <= 4096 ? 512 : w->cols;
    const bf16 *rows = (const bf16 *)w->data + n0 * w->cols;
    for (int64_t k0 = 0; k0 < w->cols; k0 += depth) {
        const int64_t k = size_min(depth, w->cols - k0);
        gemm_tile_bf16(GEMM_T, m, n, k, x + k0, ldx, rows + k0, w->cols, k0 > 0 ? GEMM_ADD : into,
                       y, ldy);
    }
}

void wmat_tile(const wmat *w, compute_type compute, const void *x, int64_t ldx, int64_t m,
               int64_t n0, int64_t n, gemm_into into, void *y, int64_t ldy, void *scratch) {
    if (compute == COMPUTE_BF16) {
        tile_bf16(w, x, ldx, m, n0, n, into, y, ldy);
    } else if (used_as_is(w, compute)) {
        gemm_tile_f32(GEMM_N, GEMM_T, m, n, w->cols, x, ldx, (const float *)w->data + n0 * w->cols,
                      w->cols, into, y, ldy);
    } else if (compute == COMPUTE_F32) {
        tile_expanded_f32(w, x, ldx, m, n0, n, into, y, ldy, scratch);
    } else {
        tile_expanded_f64(w, x, ldx, m, n0, n, into, y, ldy, scratch);
    }
}

wmat_tiles wmat_tiles_of(int64_t m, int64_t n) {
    wmat_tiles t = {.m = m, .n = n, .tile_m = WMAT_TILE_ROWS};
    int64_t across = size_max(1, size_ceil_div(n, WMAT_TILE_COLUMNS));
    /* equal widths, whole vectors */
    t.tile_n = size_max(32, size_ceil_div(size_ceil_div(n, across), 32) * 32);
    t.count = size_ceil_div(m, t.tile_m) * size_ceil_div(n, t.tile_n);
    return t;
}

wmat_rect wmat_tiles_at(const wmat_tiles *t, int64_t i) {
    int64_t down = size_ceil_div(t->m, t->tile_m);
    wmat_rect r = {.i = i % down * t->tile_m, .j = i / down * t->tile_n};
    r.m = size_min(t->tile_m, t->m - r.i);
    r.n = size_min(t->tile_n, t->n - r.j);
    return r;
}

void wmat_products(const wmat_term *terms, int n, compute_type compute, const void *x, int64_t m,
                   gemm_into into, void *scratch, uint64_t thread_bytes) {
    const size_t factor = compute_factor_bytes(compute), sum = compute_sum_bytes(compute);
    int64_t units = 0;
    for (int i = 0; i < n; i++) units += wmat_tiles_of(m, terms[i].w->rows).count;
#pragma omp parallel for schedule(dynamic)
    for (int64_t u = 0; u < units; u++) {
        int64_t tile = u;
        const wmat_term *term = terms;
        wmat_tiles tiles = wmat_tiles_of(m, term->w->rows);
        while (tile >= tiles.count) {
            tile -= tiles.count;
            term++;
            tiles = wmat_tiles_of(m, term->w->rows);
        }
        const wmat *w = term->w;
        const wmat_rect r = wmat_tiles_at(&tiles, tile);
        wmat_tile(w, compute, (const char *)x + (size_t)(r.i * w->cols) * factor, w->cols, r.m, r.j,
                  r.n, into, (char *)term->y + (size_t)(r.i * w->rows + r.j) * sum, w->rows,
                  (char *)scratch + thread_bytes * (uint64_t)gemm_thread());
    }
}

void wmat_product(const wmat *w, compute_type compute, const void *x, int64_t m, gemm_into into,
                  void *y, void *scratch, uint64_t thread_bytes) {
    const wmat_term one = {w, y};
    wmat_products(&one, 1, compute, x, m, into, scratch, thread_bytes);
}
