/* gemm - the matrix product: the one door to BLAS and oneDNN.
 * Not a BLAS: no factorizations, no vectors, row-major only. Every product of the program, from
 * fusion to the forward pass, ends here.
 *
 * Same bits for any number of threads: a product is cut into tiles by a rule that knows the shape
 * alone; each tile is one library call on one thread. Within a parallel region of the caller the
 * calls run on the calling thread, with the same tiles. Sizes that do not fit the libraries' int,
 * and a library that refuses a supported shape, are bugs: the program aborts with the shape. */
#ifndef SPINSHARD_BASE_GEMM_H
#define SPINSHARD_BASE_GEMM_H

#include "base/half.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Local. Once, before the first product, from one thread. Sets the number of OpenMP threads:
 * OMP_NUM_THREADS where set, else the cores of this process shared among the ranks_on_node that
 * have them in common; at least 1. BLAS itself is kept on one thread. Returns the threads.
 * Products before the call work, on OpenMP's own number of threads. */
int gemm_init(int ranks_on_node);
int gemm_threads(void); /* local; threads that a parallel region gets now */

/* Local. Threads inside BLAS, for ScaLAPACK alone (mpi/dmat.c), which sets them back to 1: bits of
 * a product then depend on them. */
void gemm_blas_threads(int threads);

/* Local. Number of the calling thread in its parallel region, 0 .. gemm_threads() - 1; to find its
 * part of a scratch buffer. */
int gemm_thread(void);

/* Local. True where bf16 products run in bf16 kernels: oneDNN, and a CPU that multiplies bf16
 * faster than fp32 (AMX, or AVX512_BF16 on AMD). */
bool gemm_has_bf16(void);

/* Local. True, with one line for the user, where the CPU multiplies bf16 faster than fp32 and bf16
 * products do not use it. */
bool gemm_slow_bf16(char *buf, size_t size);

/* Local. One line that names what runs: BLAS, its version and kernels, oneDNN, its version and
 * instruction set. Equal lines give equal bits; run state records it. */
void gemm_kernels(char *buf, size_t size);

/* Local. True, with one line for the user, where BLAS runs kernels slower than the CPU offers
 * and restart_tuned (base/restart.h) could not or was not to mend it. */
bool gemm_slow_kernels(char *buf, size_t size);

/* How a factor of a product is read, with BLAS' letters: as it is, or transposed. */
typedef enum gemm_op { GEMM_N, GEMM_T } gemm_op;
/* What becomes of the result's old content: it is overwritten, or the product is added to it. */
typedef enum gemm_into { GEMM_SET, GEMM_ADD } gemm_into;

/* Local. Either from a condition, for callers where it is not a constant. */
static inline gemm_op gemm_op_of(bool transposed) {
    return transposed ? GEMM_T : GEMM_N;
}
static inline gemm_into gemm_into_of(bool add) {
    return add ? GEMM_ADD : GEMM_SET;
}

/* Local. c[m,n] = op(a) op(b), with GEMM_ADD plus c. op(a) is [m,k]: a itself (row stride lda), or,
 * with GEMM_T, the transpose of a [k,m]; likewise op(b) [k,n]. y = x W^T has GEMM_T for W
 * [n,k]. c may not overlap a or b. k = 0 gives zeros (or leaves c). Strides in elements. */
void gemm_f32(gemm_op op_a, gemm_op op_b, int64_t m, int64_t n, int64_t k, const float *a,
              int64_t lda, const float *b, int64_t ldb, gemm_into into, float *c, int64_t ldc);
void gemm_f64(gemm_op op_a, gemm_op op_b, int64_t m, int64_t n, int64_t k, const double *a,
              int64_t lda, const double *b, int64_t ldb, gemm_into into, double *c, int64_t ldc);

/* Local. As gemm_f32, with bf16 factors and fp32 sums. Where gemm_has_bf16 is false the factors are
 * widened and multiplied in fp32: close, but other bits. */
void gemm_bf16(gemm_op op_b, int64_t m, int64_t n, int64_t k, const bf16 *a, int64_t lda,
               const bf16 *b, int64_t ldb, gemm_into into, float *c, int64_t ldc);

/* Local. One tile: one library call on the calling thread. For callers that cut their own work
 * into fixed tiles, to do something with a tile while it is in cache. Arguments as above. */
void gemm_tile_f32(gemm_op op_a, gemm_op op_b, int64_t m, int64_t n, int64_t k, const float *a,
                   int64_t lda, const float *b, int64_t ldb, gemm_into into, float *c, int64_t ldc);
void gemm_tile_f64(gemm_op op_a, gemm_op op_b, int64_t m, int64_t n, int64_t k, const double *a,
                   int64_t lda, const double *b, int64_t ldb, gemm_into into, double *c,
                   int64_t ldc);
void gemm_tile_bf16(gemm_op op_b, int64_t m, int64_t n, int64_t k, const bf16 *a, int64_t lda,
                    const bf16 *b, int64_t ldb, gemm_into into, float *c, int64_t ldc);

/* Local. A factor b that many tiles of m rows have in common, put once into the order that the
 * kernel asks for (it does so in each call otherwise): bytes it takes; b [k,n], or with GEMM_T
 * [n,k], into `packed`, aligned to 64; and a tile c[m,n] = a[m,k] b of it, all rows contiguous. m,
 * n, k >= 1, and the same in all three calls. */
uint64_t gemm_packed_bytes(int64_t m, int64_t n, int64_t k);
void gemm_pack_bf16(gemm_op op_b, int64_t m, int64_t n, int64_t k, const bf16 *b, int64_t ldb,
                    void *packed);
void gemm_tile_packed_bf16(int64_t m, int64_t n, int64_t k, const bf16 *a, const void *packed,
                           float *c);

/* Local. As the three above, with b [k,n], of a product in which a row of c has the same bits
 * wherever it stands in the tile and whatever the other rows are: for callers whose rows lie in
 * another order on other ranks. Tiles of fewer rows have other bits: fill them up to m. Slower than
 * the product above where a library does not give this by itself (base/gemm_alike.c). */
uint64_t gemm_alike_bytes(int64_t m, int64_t n, int64_t k);
void gemm_alike_pack(int64_t m, int64_t n, int64_t k, const bf16 *b, int64_t ldb, void *packed);
void gemm_alike_tile(int64_t m, int64_t n, int64_t k, const bf16 *a, const void *packed, float *c);

/* Local. The cut of a product into tiles: rows and columns of a tile, by shape and bytes per factor
 * element alone. */
void gemm_tile_shape(int64_t m, int64_t n, int64_t k, size_t element, int64_t *tile_m,
                     int64_t *tile_n);

#endif
