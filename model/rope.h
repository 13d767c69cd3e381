/* rope - rotary position embedding in the pairing of Hugging Face checkpoints: channel i of a head
 * turns with channel i + head_dim/2. Not the interleaved pairing of the paper (Su and others:
 * RoFormer, 2021). Applied to queries and keys after their projections. */
#ifndef SPINSHARD_MODEL_ROPE_H
#define SPINSHARD_MODEL_ROPE_H

#include "model/config.h"
#include "model/wmat.h"

#include <stdint.h>

/* Local, threaded. Tables [n_tokens, head_dim / 2] of cos and sin of t llama_inv_freq[i], times
 * llama_rope_gain, as reals of `compute`; angles in double. Fails with ERR_NOFIT. */
err rope_tables(const llama_config *cfg, compute_type compute, int64_t n_tokens, void *cos_t,
                void *sin_t);

/* Local, threaded. As rope_tables, of frequencies inv_freq [half] and times `gain`. */
void rope_fill_tables_f32(const double *inv_freq, double gain, int64_t half, int64_t n_tokens,
                          float *cos_t, float *sin_t);
void rope_fill_tables_f64(const double *inv_freq, double gain, int64_t half, int64_t n_tokens,
                          double *cos_t, double *sin_t);

/* Local. One head in place: x [2 half], with the table rows of its position. */
void rope_head_f32(float *x, int64_t half, const float *cos_t, const float *sin_t);
void rope_head_f64(double *x, int64_t half, const double *cos_t, const double *sin_t);

/* Local. Its backward, in place on dL/d output: the turn by the opposite angle, times the same
 * gain. */
void rope_head_backward_f32(float *g, int64_t half, const float *cos_t, const float *sin_t);
void rope_head_backward_f64(double *g, int64_t half, const double *cos_t, const double *sin_t);

#endif
