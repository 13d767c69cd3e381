/* fwht - fast Walsh-Hadamard transform of rows: y = x H / sqrt(n), H as in hadamard.h, in
 * O(n log n) butterflies for the Sylvester part and a small dense product for the core.
 * Not random signs (rotation.h). Online (R3, R4), in the sites of eval, and in fusion.
 * The order of additions in a row is fixed by n alone: bits do not depend on threads or on rows. */
#ifndef SPINSHARD_ROTATIONS_FWHT_H
#define SPINSHARD_ROTATIONS_FWHT_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct fwht fwht;

/* Local. A plan for order n; caller owns *out (fwht_destroy). Fails as hadamard_orders, and
 * ERR_NOFIT. */
err fwht_create(int64_t n, fwht **out);
void fwht_destroy(fwht **f);      /* local; NULL is fine; sets NULL */
int64_t fwht_size(const fwht *f); /* local; for tests */

/* Local. Rows of length n at distance ld (>= n) in place; transpose: y = x H^T / sqrt(n), the
 * inverse. Blocks of rows are shared out to threads; inside a parallel region it runs on the
 * caller's. */
void fwht_rows_f32(const fwht *f, float *x, int64_t rows, int64_t ld, bool transpose);
void fwht_rows_f64(const fwht *f, double *x, int64_t rows, int64_t ld, bool transpose);

#endif
