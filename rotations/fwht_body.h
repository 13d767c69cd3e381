/* fwht_body - the transform of one row, for one floating type. fwht.c includes it once with float
 * and once with double: REAL, VEC (64 bytes of them), LANES, MADD(a, b, c) = a b + c and NAME(x)
 * are defined there. Not a header of its own. */

/* Length of a row of the core in whole panels. */
static int64_t NAME(padded)(int64_t c) {
    return size_ceil_div(c, 2 * LANES) * 2 * LANES;
}

/* y = x C times scale for BATCH vectors x[v] of length c; y [BATCH, ld]. C holds 1 and -1 in panels
 * of PANEL columns, [ld / PANEL][c][PANEL], and zeros right of column c. Sums run over b in order,
 * whatever the batch: products with 1 and -1 are exact, so a fused multiply-add gives the bits of
 * an addition. */
static void NAME(core_batch)(const REAL *C, int64_t c, int64_t ld, REAL scale, REAL *const *x,
                             REAL *y) {
    const REAL *x0[BATCH];
    for (int v = 0; v < BATCH; v++) x0[v] = x[v];
    for (int64_t j = 0; j < ld; j += 2 * LANES, C += c * 2 * LANES) {
        VEC sum[BATCH][2] = {0};
        for (int64_t b = 0; b < c; b++) {
            VEC left, right;
            memcpy(&left, C + b * 2 * LANES, sizeof left);
            memcpy(&right, C + (2 * b + 1) * LANES, sizeof right);
#pragma GCC unroll 8
            for (int v = 0; v < BATCH; v++) {
                const VEC xb = x0[v][b] - (VEC){0};
                sum[v][0] = MADD(xb, left, sum[v][0]);
                sum[v][1] = MADD(xb, right, sum[v][1]);
            }
        }
#pragma GCC unroll 8
        for (int v = 0; v < BATCH; v++) {
            sum[v][0] *= scale;
            sum[v][1] *= scale;
            memcpy(y + v * ld + j, sum[v], sizeof sum[v]);
        }
    }
}

/* The core on all n / c vectors of `rows` rows, in place. What is left over by the last batch goes
 * through it again, filled up with its first vector. */
static void NAME(core_rows)(const fwht *f, const REAL *C, REAL scale, REAL *x, int64_t rows,
                            int64_t ld) {
    _Alignas(64) REAL y[BATCH * MAX_LD];
    REAL *at[BATCH];
    const int64_t c = f->c, y_ld = NAME(padded)(c), a_row = f->n / c, count = rows * a_row;
    for (int64_t v = 0; v < count; v += BATCH) {
        int64_t full = size_min(BATCH, count - v);
        for (int64_t k = 0; k < BATCH; k++) {
            int64_t vector = k < full ? v + k : v;
            at[k] = x + vector / a_row * ld + vector % a_row * c;
        }
        NAME(core_batch)(C, c, y_ld, scale, at, y);
        for (int64_t k = 0; k < full; k++) memcpy(at[k], y + k * y_ld, (size_t)c * sizeof(REAL));
    }
}

/* Two levels of butterflies in one pass: runs of length h at a, a + h, a + 2h, a + 3h. */
static void NAME(butterfly4)(REAL *restrict x, int64_t h) {
    REAL *restrict a = x, *restrict b = x + h, *restrict c = x + 2 * h, *restrict d = x + 3 * h;
#pragma omp simd
    for (int64_t i = 0; i < h; i++) {
        REAL ab = a[i] + b[i], amb = a[i] - b[i], cd = c[i] + d[i], cmd = c[i] - d[i];
        a[i] = ab + cd;
        b[i] = amb + cmd;
        c[i] = ab - cd;
        d[i] = amb - cmd;
    }
}

static void NAME(butterfly2)(REAL *restrict x, int64_t h) {
    REAL *restrict a = x, *restrict b = x + h;
#pragma omp simd
    for (int64_t i = 0; i < h; i++) {
        REAL sum = a[i] + b[i], difference = a[i] - b[i];
        a[i] = sum;
        b[i] = difference;
    }
}

/* The Sylvester part over runs of length c; it is symmetric, so the same for the transpose. */
static void NAME(sylvester_row)(REAL *x, int64_t n, int64_t c) {
    int64_t h = c;
    for (; 4 * h <= n; h *= 4)
        for (int64_t i = 0; i < n; i += 4 * h) NAME(butterfly4)(x + i, h);
    if (h < n) NAME(butterfly2)(x, h);
}

/* Blocks of rows that fill a few batches and stay in cache; a row's bits do not depend on the cut.
 */
static void NAME(rows)(const fwht *f, const REAL *C, REAL *x, int64_t rows, int64_t ld) {
    const REAL scale = (REAL)(1.0 / sqrt((double)f->n));
    const int64_t block = size_max(1, BLOCK / f->n), blocks = size_ceil_div(rows, block);
#pragma omp parallel for schedule(dynamic) if (blocks > 1 && rows * f->n >= PARALLEL_FROM)
    for (int64_t k = 0; k < blocks; k++) {
        int64_t row0 = k * block, n_rows = size_min(block, rows - row0);
        NAME(core_rows)(f, C, scale, x + row0 * ld, n_rows, ld);
        for (int64_t r = row0; r < row0 + n_rows; r++) NAME(sylvester_row)(x + r * ld, f->n, f->c);
    }
}

/* The core, or its transpose, in panels (core_batch). */
static void NAME(fill_core)(const int8_t *core, int64_t c, bool transpose, REAL *out) {
    for (int64_t i = 0; i < c; i++)
        for (int64_t j = 0; j < c; j++) {
            REAL *panel = out + j / (2 * LANES) * (2 * LANES) * c;
            panel[i * 2 * LANES + j % (2 * LANES)] =
                (REAL)(transpose ? core[j * c + i] : core[i * c + j]);
        }
}
