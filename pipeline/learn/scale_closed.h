/* scale_closed - scales in closed form for pairs whose site is mixed by a rotation after them: vo,
 * qk, ud (DESIGN.md 2.6). From sums over the tokens of one full-precision pass; not the scales of
 * norms (pipeline/learn/scale_norm.h), which stand after R1. Stands between the capture pass and
 * the scale_set.
 *
 * Site x -> x + e' with e' = S (Q(x S^-1 R) - x S^-1 R) R^T. R spreads every channel over all, so
 * the quantizer's step grows with sqrt(sum_j x_j^2 / s_j^2), and its error comes back evenly: e'_j
 * has variance ~ s_j^2 sum_i E[x_i^2] / s_i^2. The loss feels sum_j E[g_j^2] E[e'_j^2], g = dL/dx^
 * (Fisher), which is proportional to
 *     (sum_i E[x_i^2] / s_i^2) (sum_j s_j^2 E[g_j^2])
 * and by Cauchy and Schwarz least at s_j = (E[x_j^2] / E[g_j^2])^(1/4). Channels that share a scale
 * add both sums first. */
#ifndef SPINSHARD_PIPELINE_LEARN_SCALE_CLOSED_H
#define SPINSHARD_PIPELINE_LEARN_SCALE_CLOSED_H

#include "base/byte_piece.h"
#include "model/backward.h"
#include "rotations/scale_set.h"

typedef struct scale_moments scale_moments;

/* At which place of a block the moments of each kind of scales are taken; HOOK_PLACES: not at all.
 * SCALE_UD: HOOK_DOWN_IN; SCALE_VO: HOOK_O_IN, or HOOK_VALUE where the cache alone is quantized;
 * SCALE_QK: HOOK_KEY. */
typedef struct scale_places {
    hook_place of[SCALE_KINDS];
} scale_places;

/* Local. For layers [first, first + n) of cfg. Caller owns *out. Fails with ERR_NOFIT. */
err scale_moments_create(const llama_config *cfg, int64_t first, int64_t n,
                         const scale_places *places, scale_moments **out);
void scale_moments_destroy(scale_moments **m); /* local; NULL is fine; sets NULL */
uint64_t scale_moments_bytes(const llama_config *cfg, int64_t n, const scale_places *places);

/* Local. The hook that adds a backward pass to *m. Sums are integers, so windows may come in any
 * order. */
llama_hook scale_moments_hook(scale_moments *m);

/* Local. The sums of one layer, to be kept for a restart and to be read into. */
byte_piece scale_moments_piece(const scale_moments *m, int64_t layer);

/* Local. The scales of one layer, [scale_set_length]: the formula above, divided by the geometric
 * mean and clamped to 1/64..64 (scale_settle). A moment of a channel that is below 1e-12 of the
 * mean is raised to that. */
void scale_closed(const scale_moments *m, scale_kind kind, int64_t layer, double *s);

/* Local. Divide s [n] by its geometric mean and clamp it to 1/64..64; an entry that is not a
 * positive number counts as 1. */
void scale_settle(double *s, int64_t n);

#endif
