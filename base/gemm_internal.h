/* gemm_internal - what gemm.c, gemm_bf16.c, gemm_alike.c and lapack.c share. Nobody else includes
 * it. */
#ifndef SPINSHARD_BASE_GEMM_INTERNAL_H
#define SPINSHARD_BASE_GEMM_INTERNAL_H

#include <stddef.h>
#include <stdint.h>

/* Local. A shape that cannot happen, or a library that refused it: says so and aborts. */
_Noreturn void gemm_abort(const char *what, int64_t m, int64_t n, int64_t k);

/* Local. BLAS is on one thread from here on. */
void gemm_ensure_blas(void);

/* Local. Before each call of BLAS or LAPACK from here: gemm_ensure_blas, and where the library has
 * no room (base/blas.h) the message and the end of the process, with ERR_NOFIT. */
void gemm_enter_blas(void);

/* Local. The bf16 half of gemm_kernels. */
void gemm_bf16_kernels(char *buf, size_t size);

/* Local. Room for `count` numbers, of the calling thread: for widened copies of a tile's factors.
 * It stands until the thread's next call, which may move it; m, n, k: the product, for the message
 * where there is no memory. Aligned to 64. */
float *gemm_widen_buffer(int64_t count, int64_t m, int64_t n, int64_t k);

/* Local. Side of the largest tile of a bf16 product that still gains by its size. */
int64_t gemm_bf16_side(void);

#endif
