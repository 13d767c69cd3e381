/* site_scale - the gradient of the scales of a quantization site: dL / d log s of each channel. Not
 * the gradient of its rotation or of its input (model/site_backward.h). Always through the range of
 * the quantizer, whatever the gradients of rotations do: one number times all scales changes
 * nothing, so its gradient must be zero, and with the range held it is not (docs/DESIGN.md, 2.2).
 *
 * Straight-through is q = u + e with e constant in units of the range: dq = du + e dD / D, whence
 * du is g R with one more term at the two ends of each range, called r below (site_backward.h).
 *
 * Before R:  v = x S^-1, u = v R, x^ = (Q(u) R^T) S.      With w = Q(u) R^T and p = dL/dv:
 *     s_j dL/ds_j = g_j s_j w_j - p_j v_j,   p = g S + r R^T,   s_j w_j = x^_j
 *                 = g_j (x^_j - x_j) - (r R^T S^-1)_j x_j
 * the error of the channel as the loss feels it, less what dL/dx has beyond g, times x.
 *
 * After R:   v = x R S^-1, x^ = Q(v) S R^T.               With h = g R and dL/dv = h S + r:
 *     s_j dL/ds_j = h_j s_j Q(v)_j - (h_j s_j + r_j) v_j = h_j (s_j e_j) - r_j v_j
 * the error in the rotated basis as it is kept (e S), less the terms of the ends times u there,
 * since the slopes that are kept are r S^-1.
 *
 * Summed over channels both give <g, x^ - x> less itself, which is the zero that is asked for. */
#ifndef SPINSHARD_MODEL_SITE_SCALE_H
#define SPINSHARD_MODEL_SITE_SCALE_H

#include "model/site_backward.h"

/* Local, threaded. g [rows, n] = dL/dx^, not changed; x: factors of the rows before the site [rows,
 * n], not used where scales stand after R. saved: moved and ends, and with scales after R the
 * error. dS, of the entries of the site's scale_vector, real, is added to: each channel by itself,
 * also where channels share a scale. Bits do not depend on threads. */
void site_scale_backward_f32(const site *s, const float *g, int64_t rows, const void *x,
                             const site_saved *saved, float *dS, const site_work *work);
void site_scale_backward_f64(const site *s, const double *g, int64_t rows, const void *x,
                             const site_saved *saved, double *dS, const site_work *work);

#endif
