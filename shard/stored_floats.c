/* Rounding to half floats is that of base/half.h; long arrays go to threads in fixed pieces. */
#include "shard/stored_floats.h"

#include "base/half.h"
#include "base/size.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

enum { PARALLEL_FROM = 1 << 15 };

st_dtype stored_scale_dtype(scale_type t) {
    return t == SCALE_BF16 ? ST_BF16 : t == SCALE_FP16 ? ST_F16 : ST_F32;
}

bool stored_scale_type(st_dtype t, scale_type *out) {
    if (t != ST_BF16 && t != ST_F16 && t != ST_F32) return false;
    *out = t == ST_BF16 ? SCALE_BF16 : t == ST_F16 ? SCALE_FP16 : SCALE_F32;
    return true;
}

void stored_floats_put(const float *from, int64_t n, st_dtype dtype, void *to) {
    if (dtype == ST_BF16)
        half_array_to_bf16(from, n, to);
    else if (dtype == ST_F16)
        half_array_to_fp16(from, n, to);
    else
        memcpy(to, from, (size_t)n * sizeof *from);
}

void stored_floats_take(const void *from, int64_t n, st_dtype dtype, float *to) {
    if (dtype == ST_BF16)
        half_array_from_bf16(from, n, to);
    else if (dtype == ST_F16)
        half_array_from_fp16(from, n, to);
    else
        memcpy(to, from, (size_t)n * sizeof *to);
}

err stored_floats_fill(const float *from, int64_t n, st_dtype dtype, const char *what, void *to) {
    if (dtype == ST_F16) {
        int64_t lost = 0;
#pragma omp parallel for schedule(static) reduction(+ : lost) if (n > PARALLEL_FROM)
        for (int64_t i = 0; i < n; i++) /* 65520 is the first to round to infinity */
            lost += isfinite(from[i]) && fabsf(from[i]) >= 65520.0f;
        if (lost)
            return err_make(ERR_NUMERICS, what, "store with archive.dtype=bf16",
                            "%" PRId64 " values are too large for fp16", lost);
    }
    const int64_t parts = size_ceil_div(n, PARALLEL_FROM), size = st_dtype_bytes(dtype);
#pragma omp parallel for schedule(dynamic) if (parts > 1)
    for (int64_t p = 0; p < parts; p++) {
        const int64_t i = p * PARALLEL_FROM;
        stored_floats_put(from + i, size_min(PARALLEL_FROM, n - i), dtype, (char *)to + i * size);
    }
    return err_none();
}
