/* How attention is cut: blocks of queries and keys, and the room that a thread needs. The
 * arithmetic is in attention_real.c and attention_backward_real.c. */
#include "model/attention_internal.h"

#include "base/half.h"
#include "base/size.h"

#include <math.h>

enum { QUERY_ROWS = 256 };

int64_t attention_block_tokens(const attention_shape *s) {
    return size_max(1, size_ceil_div(QUERY_ROWS / 32, s->heads / s->kv_heads)) * 32;
}

double attention_scale(const attention_shape *s) {
    return s->scale > 0 ? s->scale : 1 / sqrt((double)s->head_dim);
}

int64_t attention_room(const attention_shape *s) {
    return s->room > 0 ? s->room : s->tokens;
}

uint64_t attention_thread_bytes(const attention_shape *s) {
    const uint64_t real = compute_sum_bytes(s->compute);
    const uint64_t rows = (uint64_t)(attention_block_tokens(s) * (s->heads / s->kv_heads));
    const uint64_t half = s->compute == COMPUTE_BF16 ? rows * ATTENTION_KEYS * sizeof(bf16) : 0;
    return rows * (ATTENTION_KEYS + (uint64_t)s->head_dim + 2) * real + half;
}

/* The backward: parts of whole key blocks, at most BACKWARD_PARTS, by the room of a window alone.
 */
enum { BACKWARD_PARTS = 8, BACKWARD_PART_KEYS = 512 };

int64_t attention_part_keys(const attention_shape *s) {
    int64_t keys = size_ceil_div(size_ceil_div(attention_room(s), BACKWARD_PARTS), ATTENTION_KEYS) *
                   ATTENTION_KEYS;
    return size_max(BACKWARD_PART_KEYS, keys);
}

int64_t attention_backward_parts(const attention_shape *s) {
    return size_ceil_div(s->tokens, attention_part_keys(s));
}

uint64_t attention_touched_bytes(const attention_shape *s) {
    uint64_t blocks = (uint64_t)size_ceil_div(s->tokens, attention_block_tokens(s));
    return (blocks * sizeof(bool) + 63) / 64 * 64;
}

uint64_t attention_backward_thread_bytes(const attention_shape *s) {
    const uint64_t real = compute_sum_bytes(s->compute), d = (uint64_t)s->head_dim;
    const uint64_t factor = compute_factor_bytes(s->compute);
    const uint64_t rows = (uint64_t)(attention_block_tokens(s) * (s->heads / s->kv_heads));
    const uint64_t half = s->compute == COMPUTE_BF16 ? 2 * rows * ATTENTION_KEYS * sizeof(bf16) : 0;
    return attention_touched_bytes(s) + 2 * ATTENTION_KEYS * (rows + d) * real +
           ATTENTION_KEYS * d * factor + half;
}
