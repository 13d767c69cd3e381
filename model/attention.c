#include "model/attention.h"

#include "base/gemm.h"
#include "base/size.h"
#include "model/norm.h"

#include <string.h>

enum { KEY_BLOCK = 256, QUERY_ROWS = 256 };

/* Tokens of a query block: about QUERY_ROWS rows of a group of heads that share keys. */
static int64_t query_block_tokens(const attention_shape *s) {
    return size_max(1, size_ceil_div(QUERY_ROWS / 32, s->heads / s->kv_heads)) * 32;
}

uint64_t attention_thread_bytes(const attention_shape *s) {
    const uint64_t real = compute_sum_bytes(s->compute);
    const uint64_t rows = (uint64_t)(query_block_tokens(s) * (s->heads / s->kv_heads));
    const uint64_t half = s->compute == COMPUTE_BF16 ? rows * KEY_BLOCK * sizeof(bf16) : 0;
    return rows * (KEY_BLOCK + (uint64_t)s->head_dim + 2) * real + half;
}

#define REAL_BITS 32
#include "model/attention_body.h"
#undef REAL_BITS
#define REAL_BITS 64
#include "model/attention_body.h"
