/* wmat_backward - the product of a gradient with a resident weight matrix: dx = dy W for y = x W^T.
 * W is taken as it lies; the gradient of W is never formed. Beside wmat.h, for the backward. */
#ifndef SPINSHARD_MODEL_WMAT_BACKWARD_H
#define SPINSHARD_MODEL_WMAT_BACKWARD_H

#include "model/wmat.h"

/* Local. One tile on the calling thread: dx[0..m, 0..n] (row stride ldx) = dy[0..m, :]
 * W[:, j0 .. j0+n], plus dx with GEMM_ADD. dy [m, rows] with stride ldy is bf16, float or double by
 * `compute`; dx float, float or double. w must be prepared. scratch: wmat_tile_scratch_bytes,
 * aligned to 64. n is at most WMAT_TILE_COLUMNS. */
void wmat_backward_tile(const wmat *w, compute_type compute, const void *dy, int64_t ldy, int64_t m,
                        int64_t j0, int64_t n, gemm_into into, void *dx, int64_t ldx,
                        void *scratch);

/* Local. As wmat_backward_tile, with rows row0 .. row0 + rows of W alone; dy [m, rows] holds the
 * columns that belong to them. */
void wmat_backward_tile_rows(const wmat *w, compute_type compute, int64_t row0, int64_t rows,
                             const void *dy, int64_t ldy, int64_t m, int64_t j0, int64_t n,
                             gemm_into into, void *dx, int64_t ldx, void *scratch);

/* One of several products with one sum. */
typedef struct wmat_backward_term {
    const wmat *w;
    const void *dy; /* [m, w->rows] */
} wmat_backward_term;

/* Local, threaded. dx [m, cols] = sum over the terms of dy W, by fixed tiles, terms in their order;
 * all of the same cols. scratch: gemm_threads() parts of thread_bytes >= wmat_tile_scratch_bytes.
 */
void wmat_backward_products(const wmat_backward_term *terms, int n, compute_type compute, int64_t m,
                            void *dx, void *scratch, uint64_t thread_bytes);

#endif
