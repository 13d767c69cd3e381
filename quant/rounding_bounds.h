/* rounding_bounds - what a sound rounding of a group of weights can look like, whatever rounded it:
 * scale and zero point, and how far a code may be from its weight. For judging an archive against
 * its source (jobs: verify --source). Neither rounds nor needs the calibration text.
 *
 * The weights x are computed anew, perhaps by other kernels: an x may be off by one spacing of
 * fp32, 2^-23 of itself.
 *
 * Scale and zero point. All methods, GPTQ too, take them from the weights before any is rounded:
 * (s_k, z_k) = scale_of_range(lo, hi, 1 - k/100), with k = 0, or 0 <= k < 80 by search. An x that
 * is off moves s_k before it is rounded to its stored type by less than one spacing of that type,
 * so the stored s is s_k or a neighbour, and it moves the quotient that z_k rounds by less than 1.
 *
 * Codes of rounding to nearest. Let s be the stored scale, and s0 = (hi - lo)/N with N = 2^b - 1,
 * or symmetric s0 = max|x|/N with N = 2^(b-1) - 1: |x|/s and (hi - lo)/s are at most N s0/s. Where
 * no clamp acts the value is at most half a step from x. Symmetric, a clamp leaves |x|/s - N, at
 * most N (s0/s - 1). Asymmetric, z = rint(-p lo/s) with the shrinking p of the search, else p = 1.
 * The high clamp leaves x/s + z - N <= hi/s - p lo/s + 1/2 - N <= 1/2 + N (s0/s - 1). The low one
 * leaves -lo/s - z <= 1/2 + (1 - p)(-lo)/s <= 1/2 + N (1 - p) s0/s; as s = p s0 (1 + d), where d is
 * the rounding of s, that is 1/2 + N (s0/s - 1) + N d at most. A z that is held to N leaves -lo/s -
 * N at the low end, at most N (s0/s - 1). So |value - x| <= s (1/2 + N max(0, s0/s - 1) + N |d|),
 * the last term with p < 1 alone, and the fp32 quotient and an x that is off add N max(1, s0/s)
 * 2^-21 steps at most. This holds for scales from the range, where s0/s - 1 is one rounding of s,
 * and for searched ones, where it is the part that is clipped.
 *
 * Codes of GPTQ. Columns after the first make good the errors of those before them, and where
 * inputs hardly differ nothing bounds how far: the outputs are what is held, not the weights. But
 * the first column in the order of a matrix is rounded as it came, in all rows, and rows that fell
 * back to rounding to nearest are so in all columns. So there is a column in which every row keeps
 * the bound above. (GPTAQ shifts the first column too: of it only scales and zero points are
 * judged.) */
#ifndef SPINSHARD_QUANT_ROUNDING_BOUNDS_H
#define SPINSHARD_QUANT_ROUNDING_BOUNDS_H

#include "quant/rtn.h"

#include <stdbool.h>
#include <stdint.h>

/* Local. True where `scale` and `zero` (offset form) can be those of the n finite weights x. Of
 * `how` bits, symmetric, search and scale_type count. */
bool rounding_scale_fits(const wquant *how, const float *x, int64_t n, float scale, int zero);

/* Local. Most steps of `scale` that rounding to nearest leaves between a weight of x and its value.
 */
double rounding_most_steps(const wquant *how, const float *x, int64_t n, float scale);

#endif
