/* rotation_body - the application of a rotation to rows, for one floating type. rotation.c includes
 * it once with float and once with double: REAL, NAME(x), FWHT and GEMM_TILE are defined there. Not
 * a header of its own. */

static void NAME(sign_rows)(const rotation *r, REAL *x, int64_t rows, int64_t ld) {
    for (int64_t i = 0; i < rows; i++)
#pragma omp simd
        for (int64_t j = 0; j < r->n; j++) x[i * ld + j] *= (REAL)r->signs[j];
}

/* Rows that lie one after the other are one matrix of shorter rows for the blocks' transform. */
static void NAME(transform_rows)(const rotation *r, REAL *x, int64_t rows, int64_t ld,
                                 bool transpose) {
    const int64_t blocks = r->n / r->block;
    if (blocks == 1) {
        FWHT(r->hadamard, x, rows, ld, transpose);
        return;
    }
    for (int64_t i = 0; i < rows; i++) FWHT(r->hadamard, x + i * ld, blocks, r->block, transpose);
}

static void NAME(hadamard_rows)(const rotation *r, REAL *x, int64_t rows, int64_t ld,
                                bool transpose) {
    const int64_t per = size_max(1, BLOCK / r->n), blocks = size_ceil_div(rows, per);
#pragma omp parallel for schedule(dynamic) if (blocks > 1)
    for (int64_t k = 0; k < blocks; k++) {
        REAL *part = x + k * per * ld;
        int64_t n = size_min(per, rows - k * per);
        if (r->signs && !transpose) NAME(sign_rows)(r, part, n, ld);
        NAME(transform_rows)(r, part, n, ld, transpose);
        if (r->signs && transpose) NAME(sign_rows)(r, part, n, ld);
    }
}

static void NAME(copy_rows)(const REAL *x, int64_t rows, int64_t ld, int64_t n, REAL *to) {
#pragma omp parallel for schedule(static) if (rows * n >= PARALLEL_FROM)
    for (int64_t i = 0; i < rows; i++) memcpy(to + i * n, x + i * ld, (size_t)n * sizeof(REAL));
}

/* Small orders: one library call on one thread for each fixed panel of rows. */
static void NAME(small_dense_rows)(const rotation *r, const REAL *R, REAL *x, int64_t rows,
                                   int64_t ld, bool transpose) {
    const int64_t n = r->n, per = SMALL_PANEL / n, panels = size_ceil_div(rows, per);
#pragma omp parallel for schedule(dynamic) if (panels > 1)
    for (int64_t k = 0; k < panels; k++) {
        _Alignas(64) REAL panel[SMALL_PANEL];
        REAL *part = x + k * per * ld;
        int64_t m = size_min(per, rows - k * per);
        for (int64_t i = 0; i < m; i++)
            memcpy(panel + i * n, part + i * ld, (size_t)n * sizeof(REAL));
        GEMM_TILE(false, transpose, m, n, n, panel, n, R, n, false, part, ld);
    }
}
