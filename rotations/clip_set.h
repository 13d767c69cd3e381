/* clip_set - how far the quantizers of a model shrink the two ends of their ranges, by place and
 * layer: lo' = a min(lo, 0), hi' = b max(hi, 0) (quant/fake_quant.h has the rule where a range does
 * not hold 0). Static numbers beside R1..R4 and the scales, since they were found for these. Not
 * how they are found (pipeline/learn/noise_cost.h), no files. */
#ifndef SPINSHARD_ROTATIONS_CLIP_SET_H
#define SPINSHARD_ROTATIONS_CLIP_SET_H

#include "base/err.h"

#include <stdint.h>

/* Inputs of q k v, of gate and up, of o, of down; keys and values. */
typedef enum clip_place {
    CLIP_ATTN,
    CLIP_MLP,
    CLIP_O,
    CLIP_DOWN,
    CLIP_KEY,
    CLIP_VALUE,
    CLIP_PLACES
} clip_place;

/* Bounds of an end. Above 1 the range is wider than what it covers, which a search may find. */
#define CLIP_LEAST 0.01
#define CLIP_MOST  1.25

typedef struct clip_set clip_set;

/* Local. All ends 1. Caller owns *out. Fails with ERR_NOFIT. */
err clip_set_create(int64_t layers, clip_set **out);
void clip_set_destroy(clip_set **s); /* local; NULL is fine; sets NULL */

/* Local. The ends (a, b) of a place in a layer. Fails with ERR_INPUT, and changes nothing, where
 * one is not in CLIP_LEAST .. CLIP_MOST. */
err clip_set_put(clip_set *s, clip_place place, int64_t layer, const double ends[2]);

/* Local. [2], borrowed; NULL of a NULL set: no clipping. */
const double *clip_set_get(const clip_set *s, clip_place place, int64_t layer);

/* Local. The word of recipes and reports for a place: attn, mlp, o, down, k, v. */
const char *clip_place_name(clip_place place);

#endif
