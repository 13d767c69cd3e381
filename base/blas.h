/* blas - what differs between BLAS libraries beside the products themselves: which one is there,
 * which of its kernels run, and how many threads it takes. The only file that knows a library by
 * name; the product is the same call in all of them (base/gemm.c). OpenBLAS, BLIS and AOCL, and MKL
 * are known; of any other it is supposed that it keeps to the thread that calls it, or to OpenMP's.
 */
#ifndef SPINSHARD_BASE_BLAS_H
#define SPINSHARD_BASE_BLAS_H

#include <stdbool.h>
#include <stddef.h>

/* Local. Threads inside the library from the next call on, at least 1. */
void blas_set_threads(int threads);

/* Local. False where so many threads must not call the library, this one among them, since there is
 * no address space for its buffers: OpenBLAS takes one of 128 MiB the first time that a thread
 * multiplies, and where the system has none (ulimit -v) it asks again for ever. Looks once, and
 * only where address space is limited at all. */
bool blas_has_room(int threads);

/* Local. Library, version and the kernels it chose: "OpenBLAS 0.3.21 SkylakeX". Writes into buf. */
void blas_name(char *buf, size_t size);

/* Local. The name OpenBLAS gives the set of kernels that it runs; NULL where another library is
 * linked, whose choice is its own affair. Static text. */
const char *blas_openblas_core(void);

#endif
