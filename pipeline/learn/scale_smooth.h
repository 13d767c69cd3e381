/* scale_smooth - scales that share the largest entries of activations and weights out between the
 * two (SmoothQuant, arXiv 2211.10438, eq. 4): s_j = max|x_j|^alpha / max|w_j|^(1 - alpha), the
 * activation is divided, the columns of the weights that read it are multiplied. For channels that
 * no rotation mixes; where one does, pipeline/learn/scale_closed.h and scale_norm.h. Stands between
 * the capture pass and the scale_set. */
#ifndef SPINSHARD_PIPELINE_LEARN_SCALE_SMOOTH_H
#define SPINSHARD_PIPELINE_LEARN_SCALE_SMOOTH_H

#include "base/byte_piece.h"
#include "model/backward.h"
#include "rotations/scale_set.h"

/* Largest |x| of each channel, over all tokens of a capture pass. */
typedef struct scale_peaks scale_peaks;

/* Local. For layers [first, first + n) of cfg and the kinds whose bit 1 << kind is set; not
 * SCALE_QK, which has no weights. Caller owns *out. Fails with ERR_NOFIT. */
err scale_peaks_create(const llama_config *cfg, int64_t first, int64_t n, uint32_t kinds,
                       scale_peaks **out);
void scale_peaks_destroy(scale_peaks **p); /* local; NULL is fine; sets NULL */
uint64_t scale_peaks_bytes(const llama_config *cfg, int64_t n, uint32_t kinds);

/* Local. The hook that takes a pass into *p. It takes maxima, so windows may come in any order. */
llama_hook scale_peaks_hook(scale_peaks *p);

/* Local. The maxima of one layer, to be kept for a restart and to be read into. */
byte_piece scale_peaks_piece(const scale_peaks *p, int64_t layer);

/* Local. The scales of one layer, [scale_set_length], from its weights as in the checkpoint,
 * divided by their geometric mean and clamped to 1/64..64 (scale_settle). Gains of norms count as
 * part of the weights: the site is before them. Channels that carry nothing, and columns of zeros,
 * count as 1e-5. ERR_NOFIT. */
err scale_smooth(const scale_peaks *p, scale_kind kind, int64_t layer, const llama_layer *weights,
                 double alpha, double *s);

#endif
