/* scale_search - the scale and zero point of one group by trying 80 shrunk ranges: 1.00 to 0.21 in
 * steps of 0.01; the least sum of |error|^2.4 wins, the wider range on a tie. The exponent 2.4 and
 * the grid are those of the published code (GPTQ's quantizer with mse on).
 * Candidates use the scale rounded to its stored type: what is measured is what is stored.
 * Not the taking of codes (rtn.c). On the way: fused weight -> scales. */
#ifndef SPINSHARD_QUANT_SCALE_SEARCH_H
#define SPINSHARD_QUANT_SCALE_SEARCH_H

#include "quant/rtn.h"

#include <stdint.h>

enum { SCALE_SEARCH_CANDIDATES = 80 };

/* Local. Scale and zero point (offset form; 2^(b-1) if symmetric) of the n finite numbers x. Sums
 * are taken in one fixed order, so the bits depend on x and `how` alone. */
void scale_search(const wquant *how, const float *x, int64_t n, float *scale, int *zero);

/* Local. Range of n finite numbers with 0 put into it: *lo <= 0 <= *hi. */
void scale_range(const float *x, int64_t n, float *lo, float *hi);

/* Local. Scale and zero point of a range [lo, hi] with lo <= 0 <= hi shrunk by p (1: the plain
 * rule). */
void scale_of_range(const wquant *how, float lo, float hi, float p, float *scale, int *zero);

/* Local. Sum over n of |value - x|^2.4 for one scale and zero point (offset form), relative error
 * about 1e-6, times a power of 2^2.4 that depends on the largest |x| alone: numbers are first
 * scaled by a power of two, so that tiny weights do not underflow. For tests and the bench. */
float scale_error(const wquant *how, const float *x, int64_t n, float scale, int zero);

/* Local. |e|^2.4 of n numbers in place; 0 for 0. For tests. */
void scale_pow24(float *e, int64_t n);

#endif
