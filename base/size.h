/* size - arithmetic on counts and bytes that cannot overflow unseen, and sizes as people write
 * them. Not a big-number library. Used wherever a size comes from outside. */
#ifndef SPINSHARD_BASE_SIZE_H
#define SPINSHARD_BASE_SIZE_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

/* Local. *out = a*b or a+b; false, and *out untouched, where the result does not fit. */
static inline bool size_mul(uint64_t a, uint64_t b, uint64_t *out) {
    uint64_t r;
    if (__builtin_mul_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}
static inline bool size_add(uint64_t a, uint64_t b, uint64_t *out) {
    uint64_t r;
    if (__builtin_add_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}

static inline int64_t size_min(int64_t a, int64_t b) {
    return a < b ? a : b;
}
static inline int64_t size_max(int64_t a, int64_t b) {
    return a > b ? a : b;
}
static inline int64_t size_ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

/* Local. Narrow a count for an interface that takes int (MPI, BLAS). Fails with ERR_BUG. */
err size_to_int(int64_t n, const char *what, int *out);

/* Local. "4G", "512M", "1048576" (1024-based K M G T) to bytes. Fails with ERR_USAGE. */
err size_parse(const char *text, uint64_t *bytes);

/* Local. Rounded up to whole seconds, as "1:05:00". */
const char *size_seconds_text(double seconds, char buf[32]);

/* Local. "90s", "10m", "2h", "HH:MM:SS" or plain seconds to seconds. Fails with ERR_USAGE. */
err size_parse_seconds(const char *text, double *seconds);
/* Local. Also the forms that Slurm's --time takes: there a plain number and the first of "MM:SS"
 * are minutes, and "D-HH", "D-HH:MM", "D-HH:MM:SS" begin with days. Fails with ERR_USAGE. */
err size_parse_slurm_seconds(const char *text, double *seconds);

/* Local. Bytes for people: "1.53 GiB". Writes into buf and returns it. */
const char *size_text(uint64_t bytes, char buf[32]);

#endif
