/* attention_internal - how attention is cut, shared by attention.c, attention_real.c and
 * attention_backward_real.c. Nobody else includes it. */
#ifndef SPINSHARD_MODEL_ATTENTION_INTERNAL_H
#define SPINSHARD_MODEL_ATTENTION_INTERNAL_H

#include "base/gemm.h"
#include "model/attention.h"

#include <stdbool.h>

enum { ATTENTION_KEYS = 256 }; /* keys of a block */

/* Local. Tokens of a block of queries: about 256 rows of the heads that share keys. */
int64_t attention_block_tokens(const attention_shape *s);

/* Local. What scores are times, and tokens from one head's factors to the next's: the shape's, or
 * where it says 0 what that stands for. */
double attention_scale(const attention_shape *s);
int64_t attention_room(const attention_shape *s);

/* Local. Keys of one part of the backward: whole blocks, by the room of a window alone. */
int64_t attention_part_keys(const attention_shape *s);

/* Local. Bytes of the flags, one for each block of queries, in front of a thread's buffers in the
 * backward. */
uint64_t attention_touched_bytes(const attention_shape *s);

/* Local. c [m, n] = a b, or a b^T with GEMM_T, plus c with GEMM_ADD: one tile of factors of the
 * shape's type. */
void attention_product_f32(const attention_shape *s, gemm_op op_b, int64_t m, int64_t n, int64_t k,
                           const void *a, int64_t lda, const void *b, int64_t ldb, gemm_into into,
                           float *c, int64_t ldc);
void attention_product_f64(const attention_shape *s, gemm_op op_b, int64_t m, int64_t n, int64_t k,
                           const void *a, int64_t lda, const void *b, int64_t ldb, gemm_into into,
                           double *c, int64_t ldc);

#endif
