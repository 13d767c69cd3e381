/* A product of bf16 rows with a factor in common in which a row's bits do not depend on its place.
 * Not every library gives that by itself. OpenBLAS's fp32 kernel for Haswell and Zen takes rows
 * twelve at a time, in two halves, and where k is 8 or more and a column lies in a short piece of
 * its cut, the halves add their terms in another order: of 128 equal rows 68 come out otherwise
 * than the first (0.3.21, 0.3.26, 0.3.29). Which rows stand where is a matter of ranks wherever
 * ranks share out rows, so those bits would be a matter of ranks too.
 *
 * Where a library fails the trial below, rows are the columns of the product instead: with 16 of
 * them, as many as those kernels hold in vectors side by side, each is a lane of the same
 * instructions. This costs a quarter to a third of the speed, so it is done only there. A library
 * that fails the trial with 16 as well gets one row a call: the same call for each row. */
#include "base/gemm.h"

#include "base/gemm_internal.h"
#include "base/size.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* Side by side in a call; columns of the factor in a call, which lie in one piece, so that the
 * factor is read from cache for all rows of a tile; the part of the packed factor before its
 * numbers. */
enum { LANES = 16, COLUMNS = 128, HEAD = 64 };

/* The packed factor where there are no bf16 kernels. Rows `together` in a call: all m of a tile,
 * and the factor is as gemm_pack_bf16 packs it; or LANES or 1, and it is in pieces [k, COLUMNS]
 * (the last one narrower), one behind the other. */
typedef struct wide_factor {
    int64_t together;
} wide_factor;

static float *numbers_of(void *packed) {
    return (float *)(void *)((char *)packed + HEAD);
}

static const float *const_numbers_of(const void *packed) {
    return (const float *)(const void *)((const char *)packed + HEAD);
}

/* c = a b with `together` rows of a in a call, for the columns of one piece of b after the other,
 * so that a piece stays in cache for all rows. The last call has zeros for rows that are missing.
 * Calls write one buffer, since a library may look at how its result is aligned. */
static void multiply_pieces(int64_t together, int64_t m, int64_t n, int64_t k, const bf16 *a,
                            const float *b, float *c) {
    const int64_t rows = size_ceil_div(m, together) * together;
    float *out = gemm_widen_buffer(COLUMNS * LANES + rows * k, m, n, k),
          *wide = out + COLUMNS * LANES;
    half_array_from_bf16(a, m * k, wide);
    memset(wide + m * k, 0, (size_t)((rows - m) * k) * sizeof *wide);
    for (int64_t j = 0; j < n; j += COLUMNS) {
        const int64_t cols = size_min(COLUMNS, n - j);
        for (int64_t i = 0; i < rows; i += together) {
            gemm_tile_f32(GEMM_T, GEMM_T, cols, together, k, b + j * k, cols, wide + i * k, k,
                          GEMM_SET, out, together);
            for (int64_t r = 0; r < together && i + r < m; r++)
                for (int64_t x = 0; x < cols; x++) c[(i + r) * n + j + x] = out[x * together + r];
        }
    }
}

static void multiply(int64_t m, int64_t n, int64_t k, const bf16 *a, const void *packed, float *c) {
    const int64_t together = ((const wide_factor *)packed)->together;
    const float *b = const_numbers_of(packed);
    if (together == m)
        gemm_tile_packed_bf16(m, n, k, a, b, c);
    else
        multiply_pieces(together, m, n, k, a, b, c);
}

/* The trial: the product of m equal rows with a factor of random numbers has equal rows, to the
 * bit. */

static float any_number(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return (float)((int32_t)*state >> 8) * 0x1p-23f;
}

static bool rows_alike(int64_t m, int64_t n, int64_t k, const bf16 *a, const void *packed,
                       float *c) {
    multiply(m, n, k, a, packed, c);
    for (int64_t i = 1; i < m; i++)
        if (memcmp(c, c + i * n, (size_t)n * sizeof *c) != 0) return false;
    return true;
}

/* Tried on the packed factor's own memory, whatever order its numbers are in. */
static int64_t try_library(int64_t m, int64_t n, int64_t k, void *packed) {
    uint32_t state = 1;
    float *b = numbers_of(packed), *c = malloc((size_t)(m * n) * sizeof *c);
    bf16 *a = malloc((size_t)(m * k) * sizeof *a);
    if (!a || !c) gemm_abort("out of memory for the trial of its rows", m, n, k);
    for (int64_t i = 0; i < n * k; i++) b[i] = any_number(&state);
    for (int64_t j = 0; j < k; j++) a[j] = half_to_bf16(any_number(&state));
    for (int64_t i = 1; i < m; i++) memcpy(a + i * k, a, (size_t)k * sizeof *a);
    const int64_t ways[] = {m, LANES, 1};
    int64_t *together = &((wide_factor *)packed)->together;
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        *together = ways[i];
        if (rows_alike(m, n, k, a, packed, c)) break;
    }
    free(a);
    free(c);
    return *together;
}

/* Tried once for a shape; the last shape is remembered, since a caller packs the same again and
 * again. */
static int64_t rows_together(int64_t m, int64_t n, int64_t k, void *packed) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static int64_t of[3], together;
    pthread_mutex_lock(&lock);
    if (of[0] != m || of[1] != n || of[2] != k) {
        together = try_library(m, n, k, packed);
        of[0] = m, of[1] = n, of[2] = k;
    }
    const int64_t found = together;
    pthread_mutex_unlock(&lock);
    return found;
}

uint64_t gemm_alike_bytes(int64_t m, int64_t n, int64_t k) {
    if (gemm_has_bf16()) return gemm_packed_bytes(m, n, k);
    return HEAD + (uint64_t)(n * k) * sizeof(float);
}

void gemm_alike_pack(int64_t m, int64_t n, int64_t k, const bf16 *b, int64_t ldb, void *packed) {
    if (gemm_has_bf16()) {
        gemm_pack_bf16(GEMM_N, m, n, k, b, ldb, packed);
        return;
    }
    const int64_t together = rows_together(m, n, k, packed);
    float *to = numbers_of(packed);
    ((wide_factor *)packed)->together = together;
    if (together == m) {
        gemm_pack_bf16(GEMM_N, m, n, k, b, ldb, to);
        return;
    }
    for (int64_t j = 0; j < n; j += COLUMNS) {
        const int64_t cols = size_min(COLUMNS, n - j);
        for (int64_t i = 0; i < k; i++)
            half_array_from_bf16(b + i * ldb + j, cols, to + j * k + i * cols);
    }
}

void gemm_alike_tile(int64_t m, int64_t n, int64_t k, const bf16 *a, const void *packed, float *c) {
    if (gemm_has_bf16())
        gemm_tile_packed_bf16(m, n, k, a, packed, c);
    else
        multiply(m, n, k, a, packed, c);
}
