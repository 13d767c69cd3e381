/* Butterflies over the Sylvester part, in an order that the size alone fixes, and a small dense
 * product for the core. */
#include "rotations/fwht.h"

#include "base/size.h"
#include "rotations/fwht_internal.h"
#include "rotations/hadamard.h"

#include <math.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "base/real.h"

enum {
    LANES = 64 / sizeof(real),
    BATCH = 8,
    MAX_LD = HADAMARD_MAX_CORE + 64, /* longest padded row of a core */
    BLOCK = 1 << 12,                 /* numbers in a block of rows */
    PARALLEL_FROM = 1 << 14,         /* numbers that are worth waking threads for */
};

typedef real vec __attribute__((vector_size(64)));

/* a b + c. Vectors are never passed to functions: below AVX-512 that would change the ABI. */
#if defined(__AVX512F__)
#define MADD(a, b, c) ((vec)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#else
#define MADD(a, b, c) ((a) * (b) + (c))
#endif

/* Length of a row of the core in whole panels. */
static int64_t padded(int64_t c) {
    return size_ceil_div(c, 2 * LANES) * 2 * LANES;
}

int64_t fwht_core_f32(int64_t c) {
    return c * padded(c);
}

/* y = x C times scale for BATCH vectors x[v] of length c; y [BATCH, ld]. C holds 1 and -1 in panels
 * of PANEL columns, [ld / PANEL][c][PANEL], and zeros right of column c. Sums run over b in order,
 * whatever the batch: products with 1 and -1 are exact, so a fused multiply-add gives the bits of
 * an addition. */
static void core_batch(const real *C, int64_t c, int64_t ld, real scale, real *const *x, real *y) {
    const real *x0[BATCH];
    for (int v = 0; v < BATCH; v++) x0[v] = x[v];
    for (int64_t j = 0; j < ld; j += 2 * LANES, C += c * 2 * LANES) {
        vec sum[BATCH][2] = {0};
        for (int64_t b = 0; b < c; b++) {
            vec left, right;
            memcpy(&left, C + b * 2 * LANES, sizeof left);
            memcpy(&right, C + (2 * b + 1) * LANES, sizeof right);
#pragma GCC unroll 8
            for (int v = 0; v < BATCH; v++) {
                const vec xb = x0[v][b] - (vec){0};
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
static void core_rows(const fwht *f, const real *C, real scale, real *x, int64_t rows, int64_t ld) {
    _Alignas(64) real y[BATCH * MAX_LD];
    real *at[BATCH];
    const int64_t c = f->c, y_ld = padded(c), a_row = f->n / c, count = rows * a_row;
    for (int64_t v = 0; v < count; v += BATCH) {
        int64_t full = size_min(BATCH, count - v);
        for (int64_t k = 0; k < BATCH; k++) {
            int64_t vector = k < full ? v + k : v;
            at[k] = x + vector / a_row * ld + vector % a_row * c;
        }
        core_batch(C, c, y_ld, scale, at, y);
        for (int64_t k = 0; k < full; k++) memcpy(at[k], y + k * y_ld, (size_t)c * sizeof(real));
    }
}

/* Two levels of butterflies in one pass: runs of length h at a, a + h, a + 2h, a + 3h. */
static void butterfly4(real *restrict x, int64_t h) {
    real *restrict a = x, *restrict b = x + h, *restrict c = x + 2 * h, *restrict d = x + 3 * h;
#pragma omp simd
    for (int64_t i = 0; i < h; i++) {
        real ab = a[i] + b[i], amb = a[i] - b[i], cd = c[i] + d[i], cmd = c[i] - d[i];
        a[i] = ab + cd;
        b[i] = amb + cmd;
        c[i] = ab - cd;
        d[i] = amb - cmd;
    }
}

static void butterfly2(real *restrict x, int64_t h) {
    real *restrict a = x, *restrict b = x + h;
#pragma omp simd
    for (int64_t i = 0; i < h; i++) {
        real sum = a[i] + b[i], difference = a[i] - b[i];
        a[i] = sum;
        b[i] = difference;
    }
}

/* The Sylvester part over runs of length c; it is symmetric, so the same for the transpose. */
static void sylvester_row(real *x, int64_t n, int64_t c) {
    int64_t h = c;
    for (; 4 * h <= n; h *= 4)
        for (int64_t i = 0; i < n; i += 4 * h) butterfly4(x + i, h);
    if (h < n) butterfly2(x, h);
}

/* Blocks of rows that fill a few batches and stay in cache; a row's bits do not depend on the cut.
 */
void fwht_rows_f32(const fwht *f, real *x, int64_t rows, int64_t ld, bool transpose) {
    const real *C = f->core_f32[transpose];
    const real scale = (real)(1.0 / sqrt((double)f->n));
    const int64_t block = size_max(1, BLOCK / f->n), blocks = size_ceil_div(rows, block);
#pragma omp parallel for schedule(dynamic) if (blocks > 1 && rows * f->n >= PARALLEL_FROM)
    for (int64_t k = 0; k < blocks; k++) {
        int64_t row0 = k * block, n_rows = size_min(block, rows - row0);
        core_rows(f, C, scale, x + row0 * ld, n_rows, ld);
        for (int64_t r = row0; r < row0 + n_rows; r++) sylvester_row(x + r * ld, f->n, f->c);
    }
}

void fwht_fill_core_f32(const int8_t *core, int64_t c, bool transpose, real *out) {
    for (int64_t i = 0; i < c; i++)
        for (int64_t j = 0; j < c; j++) {
            real *panel = out + j / (2 * LANES) * (2 * LANES) * c;
            panel[i * 2 * LANES + j % (2 * LANES)] =
                (real)(transpose ? core[j * c + i] : core[i * c + j]);
        }
}
