/* flat_mix - an orthogonal T of any order whose first row is constant and whose entries are of like
 * size: y = x T spreads what stands in one channel over all. Hadamard where there is one of that
 * order (fwht.h), else the discrete Hartley matrix, T_ij = cas(2 pi i j / n) / sqrt(n) with cas =
 * cos + sin, whose entries are at most sqrt(2) times as large (R. N. Bracewell, Discrete Hartley
 * transform, J. Opt. Soc. Am. 73, 1983). For start points; not for what runs online. */
#ifndef SPINSHARD_ROTATIONS_FLAT_MIX_H
#define SPINSHARD_ROTATIONS_FLAT_MIX_H

#include "base/err.h"

#include <stdint.h>

typedef struct flat_mix flat_mix;

/* Local. Caller owns *out (flat_mix_destroy). A Hartley matrix is held whole, n^2 doubles. Fails
 * with ERR_NOFIT. */
err flat_mix_create(int64_t n, flat_mix **out);
void flat_mix_destroy(flat_mix **m); /* local; NULL is fine; sets NULL */

/* Local. x = x T in place, rows [rows, n] without gaps. Bits of a row depend neither on threads nor
 * on the other rows of its block of FLAT_MIX_ROWS. */
enum { FLAT_MIX_ROWS = 128 };
void flat_mix_rows(const flat_mix *m, double *x, int64_t rows);

#endif
