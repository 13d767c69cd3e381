/* wmat - a resident weight matrix [rows = out, cols = in] and the product y = x W^T with it.
 * Weights stay in the type they came in (16 bit, or packed INT words of an archive) and are
 * widened a tile at a time; for bf16 products they are made bf16 once (wmat_prepare).
 * Not a file reader: who loads fills `data`. Stands between io/ and model/forward.h. */
#ifndef SPINSHARD_MODEL_WMAT_H
#define SPINSHARD_MODEL_WMAT_H

#include "base/err.h"
#include "base/gemm.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The type of the factors of a product; sums are fp32, fp32, fp64. */
typedef enum compute_type { COMPUTE_BF16, COMPUTE_F32, COMPUTE_F64 } compute_type;

typedef enum wmat_kind {
    WMAT_NONE, /* not here */
    WMAT_BF16,
    WMAT_F16,
    WMAT_F32,
    WMAT_PACKED, /* INT words as in an archive, see wmat_init_packed */
} wmat_kind;

typedef struct wmat {
    wmat_kind kind;
    int64_t rows, cols;
    void *data; /* owned; [rows, cols], or int32 words [rows, words] when packed */
    /* packed only: */
    int bits;
    int64_t words;    /* int32 words in a row: ceil(cols * bits / 32) */
    int64_t group;    /* inputs per scale; cols for one scale a row */
    int64_t n_groups; /* cols / group */
    float *scales;    /* owned; [rows, n_groups] */
    uint8_t *zeros;   /* owned; [rows, n_groups], 0 .. 2^bits - 1; NULL: symmetric, 2^(bits-1) */
} wmat;

/* Local. A matrix of zeros in a plain type, for the loader to fill `data` with the checkpoint's
 * bytes. wmat_clear frees. Fails with ERR_NOFIT. */
err wmat_init(wmat *w, wmat_kind kind, int64_t rows, int64_t cols, const char *what);

/* Local. Room for packed words, scales and (asymmetric) zeros, for the loader to fill: data as on
 * disk (element i of a row in bits [i b, i b + b) of the row's little-endian words, code +
 * 2^(b-1)), scales widened to float, zeros unpacked in the same offset form. group must divide
 * cols. Fails with ERR_NOFIT, ERR_INPUT. */
err wmat_init_packed(wmat *w, int64_t rows, int64_t cols, int bits, int64_t group, bool symmetric,
                     const char *what);
void wmat_clear(wmat *w); /* local; frees, sets WMAT_NONE */

/* Local. Make ready for products in `compute`: for bf16 anything else is rounded to bf16 and the
 * old form freed, else nothing. Fails with ERR_NOFIT. */
err wmat_prepare(wmat *w, compute_type compute);

/* Local. W[row0 .. row0+rows, col0 .. col0+cols] into to [rows, ld]. A packed value is
 * (code - zero) * scale in fp32, as loaders of such archives compute it. */
void wmat_expand_f32(const wmat *w, int64_t row0, int64_t rows, int64_t col0, int64_t cols,
                     float *to, int64_t ld);
void wmat_expand_f64(const wmat *w, int64_t row0, int64_t rows, int64_t col0, int64_t cols,
                     double *to, int64_t ld);

/* Local. Bytes of an element of x, and of y, in products of this type. */
size_t compute_factor_bytes(compute_type compute);
size_t compute_sum_bytes(compute_type compute);

/* Local. How y [m, n] is cut into tiles: by its shape alone. Tile i is a rectangle from row i,
 * column j. */
enum { WMAT_TILE_ROWS = 256, WMAT_TILE_COLUMNS = 256, WMAT_TILE_DEPTH = 2048 };
typedef struct wmat_tiles {
    int64_t m, n, tile_m, tile_n, count;
} wmat_tiles;
typedef struct wmat_rect {
    int64_t i, j, m, n;
} wmat_rect;
wmat_tiles wmat_tiles_of(int64_t m, int64_t n);
wmat_rect wmat_tiles_at(const wmat_tiles *t, int64_t i);

/* Local. Bytes of scratch that one thread needs for wmat_tile. */
uint64_t wmat_tile_scratch_bytes(compute_type compute);

/* Local. One tile on the calling thread: y[0..m, 0..n] (row stride ldy) = x[0..m, :]
 * W[n0 .. n0+n, :]^T, plus y with GEMM_ADD. x [m, cols] with stride ldx is bf16, float or double by
 * `compute`; y float, float or double. w must be prepared. scratch: wmat_tile_scratch_bytes,
 * aligned to 64. n is at most WMAT_TILE_COLUMNS. */
void wmat_tile(const wmat *w, compute_type compute, const void *x, int64_t ldx, int64_t m,
               int64_t n0, int64_t n, gemm_into into, void *y, int64_t ldy, void *scratch);

/* Local, threaded. y [m, rows] = x [m, cols] W^T, plus y with GEMM_ADD, by fixed tiles. scratch:
 * gemm_threads() parts of thread_bytes >= wmat_tile_scratch_bytes. */
void wmat_product(const wmat *w, compute_type compute, const void *x, int64_t m, gemm_into into,
                  void *y, void *scratch, uint64_t thread_bytes);

/* Local, threaded. n products with one x, their tiles dealt to the threads together. */
typedef struct wmat_term {
    const wmat *w;
    void *y;
} wmat_term;
void wmat_products(const wmat_term *terms, int n, compute_type compute, const void *x, int64_t m,
                   gemm_into into, void *scratch, uint64_t thread_bytes);

#endif
