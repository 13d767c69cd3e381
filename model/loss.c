/* Instances of loss_body.h, and the one place where the log-sum-exp of a row is put together from
 * slices of the vocabulary. */
#include "model/block_internal.h"

#include "base/gemm.h"
#include "base/size.h"
#include "model/norm.h"

#include <math.h>

/* -log of the softmax at the target, from the chunks' sums in their order. */
static double nll_of_chunks(const llama_scratch *s, int64_t t, int64_t chunks) {
    const double *max = s->nll_max + t * chunks, *sum = s->nll_sum + t * chunks;
    double most = max[0], total = 0;
    for (int64_t c = 1; c < chunks; c++) most = max[c] > most ? max[c] : most;
    for (int64_t c = 0; c < chunks; c++) total += sum[c] * exp(max[c] - most);
    return most + log(total) - s->target[t];
}

#define REAL_BITS 32
#include "model/loss_body.h"
#undef REAL_BITS
#define REAL_BITS 64
#include "model/loss_body.h"
