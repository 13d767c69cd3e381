/* hessian_factor - the factor U of a Hessian (quant/gptq.h) with all ranks: up to an order the
 * first rank has H whole and factors it (LAPACK), from there on no rank has (ScaLAPACK); and the
 * panels of U on their way to every rank. Which of the two depends on the order alone. Not the sums
 * (gptq_moments.h) and not the rows (gptq_rows). Stands between the Hessian and the codes.
 *
 * Over a grid H is laid out in reversed places, M = J Hd J. With M = L L^T, L lower, V = J L J is
 * upper and Hd = V V^T: so U = V^-1 = J L^-1 J, and row p of U is row n-1-p of L^-1 read backwards.
 */
#ifndef SPINSHARD_PIPELINE_GPTQ_HESSIAN_FACTOR_H
#define SPINSHARD_PIPELINE_GPTQ_HESSIAN_FACTOR_H

#include "mpi/grid_shape.h"
#include "pipeline/gptq/gptq_moments.h"
#include "quant/gptq.h"

typedef struct hessian_factor_options {
    double damp;       /* lambda over the mean diagonal (quant/gptq.h): the recipe's weights.damp */
    int64_t block;     /* rows of a panel at most: gptq_options.block */
    int64_t dist_from; /* orders from here on go over the grid, if it has several cells */
    grid_shape grid;
    int blas_threads; /* in ScaLAPACK */
} hessian_factor_options;

typedef struct hessian_factor hessian_factor;

/* Collective on m's ranks. Compute U for the Hessian of the inputs at hand, after
 * gptq_moments_diagonal, in the order of o (borrowed; must outlive *out). Caller owns *out. Fails,
 * agreed, as gptq_factor; `what` names the tensor. */
err hessian_factor_create(gptq_moments *m, const gptq_order *o, const hessian_factor_options *opts,
                          const char *what, hessian_factor **out);
void hessian_factor_destroy(hessian_factor **s); /* collective; NULL is fine; sets NULL */

gptq_panels hessian_factor_panels(hessian_factor *s);                /* local; get is collective */
const gptq_damping *hessian_factor_damping(const hessian_factor *s); /* local; same on every rank */

/* Local. Bytes of a rank: of U and its panels; and beside them while it is made. */
uint64_t hessian_factor_bytes(const hessian_factor_options *opts, int64_t n, int rank);
uint64_t hessian_factor_scratch_bytes(const hessian_factor_options *opts, int64_t n, int rank);

#endif
