/* attention - causal attention of one window, grouped queries, in blocks with an online softmax, so
 * that scores exist only for one block of queries and one of keys (Milakov, Gimelshein: Online
 * normalizer calculation for softmax, 2018; Dao and others: FlashAttention, 2022).
 * Not projections, RoPE or the cache's quantizers: block.c does these. */
#ifndef SPINSHARD_MODEL_ATTENTION_H
#define SPINSHARD_MODEL_ATTENTION_H

#include "model/wmat.h"

#include <stdint.h>

typedef struct attention_shape {
    int64_t tokens, heads, kv_heads, head_dim;
    int64_t sliding_window; /* keys a query sees, itself included; 0: all before it */
    compute_type compute;
} attention_shape;

/* Local. Bytes of scratch that one thread needs. */
uint64_t attention_thread_bytes(const attention_shape *s);

/* Local, threaded. out [tokens, heads * head_dim] = softmax(q k^T / sqrt(head_dim)) v.
 * Factors, bf16 or REAL by compute: q [kv_heads, tokens, heads / kv_heads, head_dim],
 * k and v [kv_heads, tokens, head_dim]. threads: a part of thread_bytes for each thread. */
void attention_f32(const attention_shape *s, const void *q, const void *k, const void *v,
                   float *out, void *threads, uint64_t thread_bytes);
void attention_f64(const attention_shape *s, const void *q, const void *k, const void *v,
                   double *out, void *threads, uint64_t thread_bytes);

#endif
