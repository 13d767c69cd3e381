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

/* Local, any thread. Where address space is limited (base/space.h): takes the buffers of OpenBLAS
 * for all threads of the program, the first time; false where they do not fit, and then products
 * must not be asked for. OpenBLAS takes 128 MiB for a thread when that first multiplies, and where
 * the system has none it asks again and again, for ever. Where nothing is limited this does
 * nothing. */
bool blas_take_buffers(void);

/* Local, any thread. True where products take no more address space, or it is not limited: for work
 * that is to be left out rather than cost what others need. */
bool blas_at_hand(void);

/* Local. Library, version and the kernels it chose: "OpenBLAS 0.3.21 SkylakeX". Writes into buf. */
void blas_name(char *buf, size_t size);

/* Local. The name OpenBLAS gives the set of kernels that it runs; NULL where another library is
 * linked, whose choice is its own affair. Static text. */
const char *blas_openblas_core(void);

#endif
