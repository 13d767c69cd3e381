/* hadamard - Hadamard matrices (entries 1 and -1, H H^T = n I) of the orders that models have.
 * One canonical form: Sylvester of order 2^k (left Kronecker factor) times a core: the least order
 * among the odd part of n times 1, 2, 4, ... that Paley I, then Paley II, gives over GF(p) or
 * GF(7^3), and where there is none (52, 100) over GF(p^2); the columns signed so that the first row
 * is constant (1). Sources: R. E. A. C. Paley, On orthogonal matrices, J. Math. Phys. 12 (1933); J.
 * J. Sylvester (1867). Not fast products (fwht.h) and not scaled to orthogonal (rotation.h). */
#ifndef SPINSHARD_ROTATIONS_HADAMARD_H
#define SPINSHARD_ROTATIONS_HADAMARD_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

typedef enum hadamard_kind { HADAMARD_SYLVESTER, HADAMARD_PALEY1, HADAMARD_PALEY2 } hadamard_kind;

/* Cores above this are refused: their dense product would cost more than the rotation is worth. */
enum { HADAMARD_MAX_CORE = 2048 };

/* Local. How H of order n is built: n = power * core, power = 2^k, kind is the core's (Sylvester:
 * core 1). Any out may be NULL. Fails with ERR_INPUT naming n where the construction lacks it
 * (172). */
err hadamard_orders(int64_t n, int64_t *core, int64_t *power, hadamard_kind *kind);

bool hadamard_exists(int64_t n);                    /* local */
const char *hadamard_kind_name(hadamard_kind kind); /* "sylvester", "paley-1", "paley-2" */

/* Local. The core of order m as out [m, m], columns signed. Fails with ERR_INPUT where Paley lacks
 * m itself, and ERR_NOFIT. */
err hadamard_core(int64_t m, int8_t *out);

/* Local. H of order n as out [n, n]; for tests and small n. Fails as hadamard_orders. */
err hadamard_matrix(int64_t n, int8_t *out);

#endif
