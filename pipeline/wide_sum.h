/* wide_sum - a sum of doubles that is the same in any order, in 128-bit fixed point: the caller
 * says how many bits a unit has below one, so that units are small beside all that counts. A term
 * may be up to 2^50, a sum up to 2^(127 - bits). Not for gradients of rotations, which are too many
 * for 16 bytes each (fixed_sum.h). */
#ifndef SPINSHARD_PIPELINE_WIDE_SUM_H
#define SPINSHARD_PIPELINE_WIDE_SUM_H

#include <math.h>
#include <stdbool.h>

__extension__ typedef __int128 wide_sum;

/* Local. *sum += v in units of 2^-bits. False, and nothing is added, where |v| > 2^50, or v is NaN.
 */
static inline bool wide_sum_add(wide_sum *sum, double v, int bits) {
    if (!(fabs(v) <= 0x1p50)) return false;
    *sum += (wide_sum)ldexp(v, bits);
    return true;
}

/* Local. What it stands for. */
static inline double wide_sum_real(wide_sum sum, int bits) {
    return ldexp((double)sum, -bits);
}

#endif
