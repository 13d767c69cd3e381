/* Rows times a rotation: signs and the fast transform on blocks of rows, small dense orders as one
 * product for each fixed panel of rows. */
#include "rotations/rotation_internal.h"

#include "base/gemm.h"
#include "base/size.h"

#include <string.h>

#include "base/real.h"

enum {
    SMALL_PANEL = 1 << 12, /* numbers in a panel of rows of a small dense rotation */
    BLOCK = 1 << 13,       /* numbers in a block of rows of a Hadamard rotation */
    PARALLEL_FROM = 1 << 14,
};

static void sign_rows(const rotation *r, real *x, int64_t rows, int64_t ld) {
    for (int64_t i = 0; i < rows; i++)
#pragma omp simd
        for (int64_t j = 0; j < r->n; j++) x[i * ld + j] *= (real)r->signs[j];
}

/* Rows that lie one after the other are one matrix of shorter rows for the blocks' transform. */
static void transform_rows(const rotation *r, real *x, int64_t rows, int64_t ld, bool transpose) {
    const int64_t blocks = r->n / r->block;
    if (blocks == 1) {
        fwht_rows_f32(r->hadamard, x, rows, ld, transpose);
        return;
    }
    for (int64_t i = 0; i < rows; i++)
        fwht_rows_f32(r->hadamard, x + i * ld, blocks, r->block, transpose);
}

void rotation_hadamard_rows_f32(const rotation *r, real *x, int64_t rows, int64_t ld,
                                bool transpose) {
    const int64_t per = size_max(1, BLOCK / r->n), blocks = size_ceil_div(rows, per);
#pragma omp parallel for schedule(dynamic) if (blocks > 1)
    for (int64_t k = 0; k < blocks; k++) {
        real *part = x + k * per * ld;
        int64_t n = size_min(per, rows - k * per);
        if (r->signs && !transpose) sign_rows(r, part, n, ld);
        transform_rows(r, part, n, ld, transpose);
        if (r->signs && transpose) sign_rows(r, part, n, ld);
    }
}

void rotation_copy_rows_f32(const real *x, int64_t rows, int64_t ld, int64_t n, real *to) {
#pragma omp parallel for schedule(static) if (rows * n >= PARALLEL_FROM)
    for (int64_t i = 0; i < rows; i++) memcpy(to + i * n, x + i * ld, (size_t)n * sizeof(real));
}

/* Small orders: one library call on one thread for each fixed panel of rows. */
void rotation_small_dense_rows_f32(const rotation *r, const real *R, real *x, int64_t rows,
                                   int64_t ld, bool transpose) {
    const int64_t n = r->n, per = SMALL_PANEL / n, panels = size_ceil_div(rows, per);
#pragma omp parallel for schedule(dynamic) if (panels > 1)
    for (int64_t k = 0; k < panels; k++) {
        _Alignas(64) real panel[SMALL_PANEL];
        real *part = x + k * per * ld;
        int64_t m = size_min(per, rows - k * per);
        for (int64_t i = 0; i < m; i++)
            memcpy(panel + i * n, part + i * ld, (size_t)n * sizeof(real));
        gemm_tile_f32(GEMM_N, gemm_op_of(transpose), m, n, n, panel, n, R, n, GEMM_SET, part, ld);
    }
}
