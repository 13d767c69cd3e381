/* product_peak - how fast this rank multiplies matrices now, to say what share of it a step
 * reaches. A measurement of some milliseconds, not a benchmark (bench/bench_gemm.c). */
#ifndef SPINSHARD_PIPELINE_PLAN_PRODUCT_PEAK_H
#define SPINSHARD_PIPELINE_PLAN_PRODUCT_PEAK_H

#include "model/wmat.h"

/* Local, threaded. Flop/s of one large product of this type, the best of a few; 0 where there is no
 * memory for it. */
double product_peak(compute_type compute);
uint64_t product_peak_bytes(compute_type compute); /* local; that it takes while it measures */

/* Local. Operations that measuring takes. */
double product_peak_flop(void);

#endif
