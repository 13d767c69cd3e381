/* norm - RMSNorm of rows, and what else is done to a row between two products: gain, bias, rounding
 * to the factors of the next. Not LayerNorm: no mean is
 * taken away. The first and third step of a block (model/block_internal.h). */
#ifndef SPINSHARD_MODEL_NORM_H
#define SPINSHARD_MODEL_NORM_H

#include "model/wmat.h"

#include <stdint.h>

/* Local. out = x / sqrt(mean(x^2) + eps) for rows of n, times gain [n] unless it is NULL. out may
 * be x. Zhang, Sennrich: Root Mean Square Layer Normalization, 2019, equation 4. */
void norm_rows_f32(const float *x, int64_t rows, int64_t n, double eps, const float *gain,
                   float *out);
void norm_rows_f64(const double *x, int64_t rows, int64_t n, double eps, const float *gain,
                   double *out);

/* Local. 1 / sqrt(mean(x^2) + eps) of one row. */
float norm_scale_f32(const float *x, int64_t n, double eps);
double norm_scale_f64(const double *x, int64_t n, double eps);

/* Local. Backward of norm_rows on one row, without gain: dx += scale (g - y mean(g y)), with y the
 * output and scale its norm_scale. */
void norm_backward_f32(const float *y, float scale, const float *g, int64_t n, float *dx);
void norm_backward_f64(const double *y, double scale, const double *g, int64_t n, double *dx);

/* Local. x[0..n] times gain (NULL: 1) as factors of a product in `compute`: bf16, or REAL. to may
 * be x where the type is the same. */
void norm_factors_f32(const float *x, int64_t n, const float *gain, compute_type compute, void *to);
void norm_factors_f64(const double *x, int64_t n, const float *gain, compute_type compute,
                      void *to);

/* Local, threaded. norm_factors of `rows` rows of n without gaps. */
void norm_row_factors_f32(const float *from, int64_t rows, int64_t n, const float *gain,
                          compute_type compute, void *to);
void norm_row_factors_f64(const double *from, int64_t rows, int64_t n, const float *gain,
                          compute_type compute, void *to);

/* Local. x[0..n] += b[0..n]; b NULL: nothing. */
void norm_add_bias_f32(float *x, const float *b, int64_t n);
void norm_add_bias_f64(double *x, const float *b, int64_t n);

#endif
