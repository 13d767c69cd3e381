/* scale_set - the positive vectors S of one model that pairs of layers exchange (DESIGN.md 2.2,
 * Scales): what leaves the first layer is divided by S, what enters the second is multiplied. Not
 * orthogonal, so not a rotation; not how they are found (pipeline/learn/scale_closed.h,
 * scale_norm.h), no files. On the way: beside R1, R2, in the sites and in the fused weights.
 *
 *   SCALE_ATTN, SCALE_MLP  after R1: the norm's gain becomes 1/S, the linears that follow take S
 *   SCALE_VO               before R2, by KV head: v rows / S, o columns S
 *   SCALE_QK               by KV head: k rows / S, q rows S; equal within a RoPE pair
 *   SCALE_UD               before R4: up rows / S, down columns S
 *
 * Where each head of queries and keys goes through a norm (Qwen3), y = gain x / rms(x), a scale of
 * rows of k or q would not come through: rms takes the whole head together. It passes behind the
 * norm: (gain S) x / rms(x) = S y, and RoPE turns pairs, whose scales are equal, so scores
 * <S q, k / S> = <q, k> stay. So SCALE_QK is folded into the gains of both norms. All heads of a
 * layer share these gains, hence the scales are the same for every KV head, and they are powers of
 * two, so that both products are exact in whatever type the archive keeps gains.
 *
 * A kind is there for all layers or for none. Scales of norms are kept so that the gain 1/S is a
 * bf16 number: an archive then holds it as it is in any of its types, and no rounding of the gain
 * stands against the weights. */
#ifndef SPINSHARD_ROTATIONS_SCALE_SET_H
#define SPINSHARD_ROTATIONS_SCALE_SET_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

typedef enum scale_kind {
    SCALE_ATTN,
    SCALE_MLP,
    SCALE_VO,
    SCALE_QK,
    SCALE_UD,
    SCALE_KINDS
} scale_kind;

/* Bounds of a scale: 1/S is a normal number of fp16, where an archive may keep it. */
#define SCALE_LEAST 0x1p-14
#define SCALE_MOST  0x1p14

/* One vector, as sites take it. */
typedef struct scale_vector {
    int64_t n;
    double *s, *inverse; /* [n]; owned by the set */
    float *s32, *inverse32;
} scale_vector;

typedef struct scale_sizes {
    int64_t hidden, layers, kv_heads, head_dim, intermediate;
    bool qk_norm; /* SCALE_QK goes into the gains of norms that all heads share */
} scale_sizes;

/* Local. Entries of a vector of that kind: hidden, kv_heads head_dim, or intermediate. */
int64_t scale_sizes_length(const scale_sizes *z, scale_kind kind);
/* Local. The vectors of a layer one after the other, of the kinds in `kinds` (bits 1 << kind)
 * alone: where that of `kind` begins; SCALE_KINDS: how many entries they are. */
int64_t scale_sizes_at(const scale_sizes *z, uint32_t kinds, int kind);

typedef struct scale_set scale_set;

/* Local. Of no kind yet. Caller owns *out. Fails with ERR_NOFIT. */
err scale_set_create(const scale_sizes *sizes, scale_set **out);
void scale_set_destroy(scale_set **s); /* local; NULL is fine; sets NULL */

int64_t scale_set_length(const scale_set *s, scale_kind kind); /* local; scale_sizes_length */

/* Local. Give all layers scales of this kind, ones, if they have none. Fails with ERR_NOFIT. */
err scale_set_add(scale_set *s, scale_kind kind);
bool scale_set_has(const scale_set *s, scale_kind kind); /* local; NULL set: false */

/* Local. Scales of one layer, [scale_set_length], copied (norms: with 1/S rounded to bf16;
 * SCALE_QK with qk_norm: rounded to powers of two); the kind must have been added. Fails with
 * ERR_INPUT, and changes nothing, on a scale that is not finite or outside SCALE_LEAST ..
 * SCALE_MOST, and on a SCALE_QK that differs within a pair (i, i + head_dim/2), or with qk_norm
 * between heads. */
err scale_set_put(scale_set *s, scale_kind kind, int64_t layer, const double *v);

/* Local. Borrowed; NULL: ones (also of a NULL set). */
const scale_vector *scale_set_get(const scale_set *s, scale_kind kind, int64_t layer);

/* Multiplied by scales, or divided by them. */
typedef enum scale_way { SCALE_TIMES, SCALE_OVER } scale_way;
/* Local. First one way, then the other. */
static inline scale_way scale_way_of(scale_way first, scale_way then) {
    return first == then ? SCALE_TIMES : SCALE_OVER;
}

/* Local. x [n] times v [n]. */
static inline void scale_times_f32(const float *v, int64_t n, float *x) {
#pragma omp simd
    for (int64_t j = 0; j < n; j++) x[j] *= v[j];
}
static inline void scale_times_f64(const double *v, int64_t n, double *x) {
#pragma omp simd
    for (int64_t j = 0; j < n; j++) x[j] *= v[j];
}

#endif
