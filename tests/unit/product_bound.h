/* product_bound - how far a sum of products may be from its value, whichever kernels a library
 * picks: an error bound from length and precision, not a figure that one machine gave. For tests
 * alone. */
#ifndef SPINSHARD_TESTS_UNIT_PRODUCT_BOUND_H
#define SPINSHARD_TESTS_UNIT_PRODUCT_BOUND_H

#include <float.h>
#include <stdbool.h>
#include <stdint.h>

/* Local. Relative to the sum of the absolute terms: n products added in any order, fused or not,
 * are off by at most n u, u = eps / 2 (Higham, Accuracy and Stability of Numerical
 * Algorithms, 3.1). Twice that, so that the value compared with may come from a plain loop in the
 * same precision. */
static inline double product_bound(int64_t n, double eps) {
    return (double)n * eps;
}

#endif
