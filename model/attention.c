/* How attention is cut: blocks of queries and keys, and the room that a thread needs. The
 * arithmetic is in attention_body.h: an online softmax forward (a running maximum and sum), and
 * backward probabilities computed again from the saved row sums. */
#include "model/attention.h"

#include "base/gemm.h"
#include "base/size.h"
#include "model/norm.h"

#include <math.h>
#include <string.h>

enum { KEY_BLOCK = 256, QUERY_ROWS = 256, LANES = 16 }; /* LANES divides KEY_BLOCK */

/* Tokens of a query block: about QUERY_ROWS rows of a group of heads that share keys. */
static int64_t query_block_tokens(const attention_shape *s) {
    return size_max(1, size_ceil_div(QUERY_ROWS / 32, s->heads / s->kv_heads)) * 32;
}

static double scale_of(const attention_shape *s) {
    return s->scale > 0 ? s->scale : 1 / sqrt((double)s->head_dim);
}

static int64_t room_of(const attention_shape *s) {
    return s->room > 0 ? s->room : s->tokens;
}

uint64_t attention_thread_bytes(const attention_shape *s) {
    const uint64_t real = compute_sum_bytes(s->compute);
    const uint64_t rows = (uint64_t)(query_block_tokens(s) * (s->heads / s->kv_heads));
    const uint64_t half = s->compute == COMPUTE_BF16 ? rows * KEY_BLOCK * sizeof(bf16) : 0;
    return rows * (KEY_BLOCK + (uint64_t)s->head_dim + 2) * real + half;
}

/* The backward: parts of whole key blocks, at most BACK_PARTS, by the room of a window alone. */
enum { BACK_PARTS = 8, BACK_PART_KEYS = 512 };

static int64_t keys_of_part(const attention_shape *s) {
    int64_t keys = size_ceil_div(size_ceil_div(room_of(s), BACK_PARTS), KEY_BLOCK) * KEY_BLOCK;
    return size_max(BACK_PART_KEYS, keys);
}

int64_t attention_back_parts(const attention_shape *s) {
    return size_ceil_div(s->tokens, keys_of_part(s));
}

/* A flag for each block of queries, in front of a thread's buffers. */
static uint64_t touched_bytes(const attention_shape *s) {
    uint64_t blocks = (uint64_t)size_ceil_div(s->tokens, query_block_tokens(s));
    return (blocks * sizeof(bool) + 63) / 64 * 64;
}

uint64_t attention_back_thread_bytes(const attention_shape *s) {
    const uint64_t real = compute_sum_bytes(s->compute), d = (uint64_t)s->head_dim;
    const uint64_t factor = compute_factor_bytes(s->compute);
    const uint64_t rows = (uint64_t)(query_block_tokens(s) * (s->heads / s->kv_heads));
    const uint64_t half = s->compute == COMPUTE_BF16 ? 2 * rows * KEY_BLOCK * sizeof(bf16) : 0;
    return touched_bytes(s) + 2 * KEY_BLOCK * (rows + d) * real + KEY_BLOCK * d * factor + half;
}

#define REAL_BITS 32
#include "model/attention_backward_body.h"
#include "model/attention_body.h"
#undef REAL_BITS
#define REAL_BITS 64
#include "model/attention_backward_body.h"
#include "model/attention_body.h"
