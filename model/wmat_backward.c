/* dx = dy W tile by tile, with the rows of W in pieces whose partial sums are added in order. */
#include "model/wmat_backward.h"

#include "base/gemm.h"
#include "base/size.h"

static void tile_f32(const wmat *w, int64_t row0, int64_t rows, const float *dy, int64_t ldy,
                     int64_t m, int64_t j0, int64_t n, gemm_into into, float *dx, int64_t ldx,
                     float *scratch) {
    for (int64_t k0 = 0; k0 < rows; k0 += WMAT_TILE_DEPTH) {
        int64_t k = size_min(WMAT_TILE_DEPTH, rows - k0);
        wmat_expand_f32(w, row0 + k0, k, j0, n, scratch, n);
        gemm_tile_f32(GEMM_N, GEMM_N, m, n, k, dy + k0, ldy, scratch, n, k0 > 0 ? GEMM_ADD : into,
                      dx, ldx);
    }
}

static void tile_f64(const wmat *w, int64_t row0, int64_t rows, const double *dy, int64_t ldy,
                     int64_t m, int64_t j0, int64_t n, gemm_into into, double *dx, int64_t ldx,
                     double *scratch) {
    for (int64_t k0 = 0; k0 < rows; k0 += WMAT_TILE_DEPTH) {
        int64_t k = size_min(WMAT_TILE_DEPTH, rows - k0);
        wmat_expand_f64(w, row0 + k0, k, j0, n, scratch, n);
        gemm_tile_f64(GEMM_N, GEMM_N, m, n, k, dy + k0, ldy, scratch, n, k0 > 0 ? GEMM_ADD : into,
                      dx, ldx);
    }
}

/* As in wmat_tile: some thousand rows go 512 at a time. */
static void tile_bf16(const wmat *w, int64_t row0, int64_t rows, const bf16 *dy, int64_t ldy,
                      int64_t m, int64_t j0, int64_t n, gemm_into into, float *dx, int64_t ldx) {
    const int64_t depth = rows > 1024 && rows <= 4096 ? 512 : rows;
    const bf16 *from = (const bf16 *)w->data + row0 * w->cols + j0;
    for (int64_t k0 = 0; k0 < rows; k0 += depth) {
        const int64_t k = size_min(depth, rows - k0);
        gemm_tile_bf16(GEMM_N, m, n, k, dy + k0, ldy, from + k0 * w->cols, w->cols,
                       k0 > 0 ? GEMM_ADD : into, dx, ldx);
    }
}

void wmat_backward_tile_rows(const wmat *w, compute_type compute, int64_t row0, int64_t rows,
                             const void *dy, int64_t ldy, int64_t m, int64_t j0, int64_t n,
                             gemm_into into, void *dx, int64_t ldx, void *scratch) {
    const int64_t at = row0 * w->cols + j0;
    if (compute == COMPUTE_BF16) {
        tile_bf16(w, row0, rows, dy, ldy, m, j0, n, into, dx, ldx);
    } else if (compute == COMPUTE_F32 && w->kind == WMAT_F32) {
        gemm_tile_f32(GEMM_N, GEMM_N, m, n, rows, dy, ldy, (const float *)w->data + at, w->cols,
                      into, dx, ldx);
    } else if (compute == COMPUTE_F32) {
        tile_f32(w, row0, rows, dy, ldy, m, j0, n, into, dx, ldx, scratch);
    } else {
        tile_f64(w, row0, rows, dy, ldy, m, j0, n, into, dx, ldx, scratch);
    }
}

void wmat_backward_tile(const wmat *w, compute_type compute, const void *dy, int64_t ldy, int64_t m,
                        int64_t j0, int64_t n, gemm_into into, void *dx, int64_t ldx,
                        void *scratch) {
    wmat_backward_tile_rows(w, compute, 0, w->rows, dy, ldy, m, j0, n, into, dx, ldx, scratch);
}

void wmat_backward_products(const wmat_backward_term *terms, int n, compute_type compute, int64_t m,
                            void *dx, void *scratch, uint64_t thread_bytes) {
    const int64_t cols = terms[0].w->cols;
    const wmat_tiles tiles = wmat_tiles_of(m, cols);
    const size_t factor = compute_factor_bytes(compute), sum = compute_sum_bytes(compute);
#pragma omp parallel for schedule(dynamic)
    for (int64_t t = 0; t < tiles.count; t++) {
        const wmat_rect r = wmat_tiles_at(&tiles, t);
        void *part = (char *)scratch + thread_bytes * (uint64_t)gemm_thread();
        char *to = (char *)dx + (size_t)(r.i * cols + r.j) * sum;
        for (int i = 0; i < n; i++) {
            const wmat *w = terms[i].w;
            const char *dy = (const char *)terms[i].dy + (size_t)(r.i * w->rows) * factor;
            wmat_backward_tile(w, compute, dy, w->rows, r.m, r.j, r.n, gemm_into_of(i > 0), to,
                               cols, part);
        }
    }
}
