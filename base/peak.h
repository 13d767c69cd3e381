/* peak - the largest magnitude so far. Not a sum. */
#ifndef SPINSHARD_BASE_PEAK_H
#define SPINSHARD_BASE_PEAK_H

#include <math.h>
#include <stdbool.h>

/* Local. True where `a` is to take the place of the largest: NaN is above all numbers and nothing
 * is above NaN, so that one that came is still there at the end. */
static inline bool peak_above(double a, double most) {
    return a > most || isnan(a);
}

#endif
