/* The best of a few square products that are large enough not to be bound by memory. */
#include "pipeline/plan/product_peak.h"

#include "base/clock.h"
#include "base/gemm.h"
#include "base/mem.h"

enum { ROWS = 512, SIDE = 2048, TIMES = 3 };

static void multiply(compute_type compute, const void *a, const void *b, void *c) {
    if (compute == COMPUTE_BF16)
        gemm_bf16(GEMM_T, ROWS, SIDE, SIDE, a, SIDE, b, SIDE, GEMM_SET, c, SIDE);
    else if (compute == COMPUTE_F32)
        gemm_f32(GEMM_N, GEMM_T, ROWS, SIDE, SIDE, a, SIDE, b, SIDE, GEMM_SET, c, SIDE);
    else
        gemm_f64(GEMM_N, GEMM_T, ROWS, SIDE, SIDE, a, SIDE, b, SIDE, GEMM_SET, c, SIDE);
}

/* The factors are zeros that nobody writes, in a block that is large enough to be mapped: they have
 * no pages of their own. */
uint64_t product_peak_bytes(compute_type compute) {
    return (uint64_t)(ROWS * SIDE) * compute_sum_bytes(compute);
}

double product_peak_flop(void) {
    return (TIMES + 1) * 2.0 * ROWS * SIDE * SIDE;
}

double product_peak(compute_type compute) {
    const size_t factor = compute_factor_bytes(compute);
    void *a = NULL, *c = NULL;
    double best = 0;
    err e = mem_alloc((ROWS + SIDE) * SIDE, factor, "measuring products", &a);
    const void *b = (char *)a + ROWS * SIDE * factor;
    if (!e.code) e = mem_alloc(ROWS * SIDE, compute_sum_bytes(compute), "measuring products", &c);
    for (int i = 0; i <= TIMES && !e.code; i++) { /* the first warms up */
        const double start = clock_now_s();
        multiply(compute, a, b, c);
        const double rate = 2.0 * ROWS * SIDE * SIDE / (clock_now_s() - start);
        if (i > 0 && rate > best) best = rate;
    }
    mem_free(a);
    mem_free(c);
    return best;
}
