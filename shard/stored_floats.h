/* stored_floats - fp32 numbers to the bytes of a tensor of BF16, F16 or F32, and back. On the way:
 * fused rows, scales -> [stored_floats] -> shard bytes. */
#ifndef SPINSHARD_SHARD_STORED_FLOATS_H
#define SPINSHARD_SHARD_STORED_FLOATS_H

#include "base/err.h"
#include "io/safetensors.h"
#include "quant/rtn.h"

#include <stdint.h>

/* Local. The stored type of scales, and back: false where a tensor of this type holds none. */
st_dtype stored_scale_dtype(scale_type t);
bool stored_scale_type(st_dtype t, scale_type *out);

/* Local. n numbers, rounded half to even. A finite value that overflows F16 is ERR_NUMERICS, naming
 * `what`. Threaded for long ones. */
err stored_floats_fill(const float *from, int64_t n, st_dtype dtype, const char *what, void *to);

/* Local. n numbers, rounded half to even, of a short array: not threaded, and overflow is infinity.
 */
void stored_floats_put(const float *from, int64_t n, st_dtype dtype, void *to);

/* Local. n numbers back. */
void stored_floats_take(const void *from, int64_t n, st_dtype dtype, float *to);

#endif
