/* cache_peaks - the largest |k| and |v| of each channel over the tokens of a full-precision pass,
 * keys after RoPE, and the fixed scales of an FP8 cache that they give. Not the rounding
 * (quant/fake_quant.h). Stands between the capture and the archive, beside key_moments.
 *
 * What is cached is k S^-1 and v S^-1 R2. Of the keys the largest entry is max_c a_c / S_c, a_c the
 * peaks. R2 is learned after the capture: an entry of u R2, R2 orthogonal, is at most |u|, and so
 * at most the root of sum_c (a_c / S_c)^2 over a head. The bound is loose, by up to the root of the
 * head size, and costs nothing: E4M3 has the same relative error from 448 down to 2^-6, and below
 * that steps of 2^-9, a 2^-18th of its largest number. The scale is a power of two, so that none of
 * the bits between depends on it. */
#ifndef SPINSHARD_PIPELINE_LEARN_CACHE_PEAKS_H
#define SPINSHARD_PIPELINE_LEARN_CACHE_PEAKS_H

#include "base/byte_piece.h"
#include "model/backward.h"

#include <stdbool.h>

typedef struct cache_peaks cache_peaks;

/* Local. For layers [first, first + n) of cfg. Caller owns *out. Fails with ERR_NOFIT. */
err cache_peaks_create(const llama_config *cfg, int64_t first, int64_t n, cache_peaks **out);
void cache_peaks_destroy(cache_peaks **p);                      /* local; NULL is fine; sets NULL */
uint64_t cache_peaks_bytes(const llama_config *cfg, int64_t n); /* local */

/* Local. The hook that takes a pass into *p. It takes maxima, so windows may come in any order. */
llama_hook cache_peaks_hook(cache_peaks *p);

/* Local. The peaks of one layer, to be kept for a restart and to be read into. */
byte_piece cache_peaks_piece(const cache_peaks *p, int64_t layer);

/* Local. Peaks of a layer, [2, kv_heads, head_dim], keys first; how many these are. Borrowed. */
const double *cache_peaks_get(const cache_peaks *p, int64_t layer);
int64_t cache_peaks_entries(const llama_config *cfg);

/* Local. The scale for peaks [heads, d], a power of two, 1 where they are 0. S: scales before the
 * cache, [heads, d]; NULL: ones. rotated: a rotation of the heads, whichever, stands between. */
double cache_scale_of(const double *peaks, const double *S, int64_t heads, int64_t d, bool rotated);

#endif
