/* attention - causal attention of one window, grouped queries, in blocks with an online softmax, so
 * that scores exist only for one block of queries and one of keys (Milakov, Gimelshein: Online
 * normalizer calculation for softmax, 2018; Dao and others: FlashAttention, 2022); and its
 * backward, which makes the scores again. Not projections, RoPE or the cache's quantizers:
 * block_real.c does these. */
#ifndef SPINSHARD_MODEL_ATTENTION_H
#define SPINSHARD_MODEL_ATTENTION_H

#include "model/wmat.h"

#include <stdint.h>

typedef struct attention_shape {
    int64_t tokens, heads, kv_heads, head_dim;
    int64_t first; /* queries are those of tokens first .. tokens - 1; keys begin at token 0 */
    int64_t room;  /* tokens from one head's factors to the next's; 0: tokens */
    int64_t sliding_window; /* keys a query sees, itself included; 0: all before it */
    double scale;           /* what scores are times; 0: 1 / sqrt(head_dim) */
    compute_type compute;
} attention_shape;

/* Local. Bytes of scratch that one thread needs. */
uint64_t attention_thread_bytes(const attention_shape *s);

/* Local, threaded. out [tokens - first, heads * head_dim] = softmax(scale q k^T) v.
 * Factors, bf16 or real by compute: q [kv_heads, room, heads / kv_heads, head_dim], k and v
 * [kv_heads, room, head_dim]. lse [kv_heads, room, heads / kv_heads]: log of the softmax's sum, for
 * the backward; NULL: not wanted. threads: a part of thread_bytes for each thread. */
void attention_f32(const attention_shape *s, const void *q, const void *k, const void *v,
                   float *out, float *lse, void *threads, uint64_t thread_bytes);
void attention_f64(const attention_shape *s, const void *q, const void *k, const void *v,
                   double *out, double *lse, void *threads, uint64_t thread_bytes);

/* Local. The backward cuts the keys into so many parts, each with a dq of its own. */
int64_t attention_backward_parts(const attention_shape *s);
uint64_t
attention_backward_thread_bytes(const attention_shape *s); /* local; as attention_thread_bytes */

/* Local, threaded. Backward of `attention` for the same queries. d_out: factors of dL/dout in the
 * layout of q; dot [kv_heads, room, heads / kv_heads] = sum over a head of dL/dout times out. dk,
 * dv [kv_heads, room, head_dim] real, added to for keys 0 .. tokens - 1. dq:
 * attention_backward_parts buffers of [heads * head_dim * (tokens - first)], for
 * attention_backward_queries. */
void attention_backward_f32(const attention_shape *s, const void *q, const void *k, const void *v,
                            const float *lse, const void *d_out, const float *dot, float *dq,
                            float *dk, float *dv, void *threads, uint64_t thread_bytes);
void attention_backward_f64(const attention_shape *s, const void *q, const void *k, const void *v,
                            const double *lse, const void *d_out, const double *dot, double *dq,
                            double *dk, double *dv, void *threads, uint64_t thread_bytes);

/* Local. Sum of the parts for token t = first .. tokens - 1, in their order: to [heads * head_dim].
 */
void attention_backward_query_f32(const attention_shape *s, const float *dq, int64_t t, float *to);
void attention_backward_query_f64(const attention_shape *s, const double *dq, int64_t t,
                                  double *to);

#endif
