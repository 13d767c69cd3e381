/* fixed_sum - a sum of gradients that is the same in any order: each contribution (a unit: the
 * gradient of one layer, window and slice) is rounded to integers v 2^exponent and integers are
 * added. Not over ranks: integers add there too (mpi/comm.h). Stands between the backward of a
 * block and the Cayley step.
 *
 * The exponent leaves room: with at most N units no entry of a unit may exceed 2^b integers, b =
 * min(50, 62 - log2 N), so no sum overflows. It is taken from the largest entry of the step before,
 * times 2^FIXED_SUM_HEADROOM; a unit above the bound is not added, the sum is marked as spoilt, and
 * the caller repeats the step with the exponent that this step's own largest entry gives. What is
 * lost by rounding is below 2^-40 of the largest entry for N = 2^14. */
#ifndef SPINSHARD_PIPELINE_FIXED_SUM_H
#define SPINSHARD_PIPELINE_FIXED_SUM_H

#include "base/err.h"
#include "base/half.h"
#include "model/wmat.h"

#include <stdbool.h>
#include <stdint.h>

enum { FIXED_SUM_HEADROOM = 8, FIXED_SUM_UNKNOWN = INT32_MIN };

typedef struct fixed_sum {
    int64_t n;
    int64_t *v;      /* owned; [n] */
    int exponent;    /* FIXED_SUM_UNKNOWN: nothing is added, the largest entry is looked for */
    double scale;    /* 2^-exponent */
    double bound;    /* largest magnitude of an entry; 0 where the exponent is not known */
    double max;      /* largest finite magnitude since the beginning */
    bool spoilt;     /* an entry was above the bound */
    bool not_finite; /* an entry was NaN or infinite */
} fixed_sum;

/* Local. Room for n integers; what names the buffer. Fails with ERR_NOFIT. */
err fixed_sum_init(fixed_sum *s, int64_t n, const char *what);
void fixed_sum_clear(fixed_sum *s); /* local */

/* Local. Zero, for at most `units` units to each entry. */
void fixed_sum_begin(fixed_sum *s, int exponent, int64_t units);

/* Local, threaded. One unit, [count] reals of `compute` (float, or double for COMPUTE_F64), to the
 * entries from `at` on; the unit becomes zero, ready for the next. Same bits for any number of
 * threads. */
void fixed_sum_add(fixed_sum *s, int64_t at, int64_t count, compute_type compute, void *unit);

/* Local, one thread. A tile [rows, cols] of a unit, rows `ld` apart, to entries at + i stride + j;
 * put: it is the first of these entries, which are not looked at. False, and the entries are not
 * meant, where one is above the bound, NaN or infinite. For callers that share a unit out
 * themselves; `max` and the flags stay as they are. */
bool fixed_sum_add_tile(const fixed_sum *s, int64_t at, int64_t stride, int64_t rows, int64_t cols,
                        bool put, const float *unit, int64_t ld);

/* Local. The exponent for `units` units whose entries will hardly exceed max 2^HEADROOM. */
int fixed_sum_exponent(double max, int64_t units);

#endif
