/* packed_tensor - between a quantized matrix and the bytes of its tensors in an archive
 * (compressed-tensors, pack-quantized or int-quantized). Not a quantizer: codes and scales come as
 * they are. On the way: INT4 codes + scales -> [packed_tensor] -> shard bytes, and back in verify.
 */
#ifndef SPINSHARD_SHARD_PACKED_TENSOR_H
#define SPINSHARD_SHARD_PACKED_TENSOR_H

#include "base/err.h"
#include "io/hf_checkpoint.h"
#include "quant/rtn.h"
#include "shard/layout.h"

/* Local. The stored type of scales. */
st_dtype packed_scale_dtype(scale_type t);

/* Local. Bytes of the slot of a kind (not LAYOUT_PLAIN). */
uint64_t packed_tensor_bytes(const qmatrix *q, layout_kind kind);

/* Local. Write the bytes of the slot of a kind; `to` holds packed_tensor_bytes. */
void packed_tensor_fill(const qmatrix *q, layout_kind kind, void *to);

/* Local. Unpack what packed_tensor_fill wrote and compare it with the codes, zero points and scales
 * that it came from. Fails with ERR_NUMERICS naming `what` and the first row that differs: a memory
 * or a processor that cannot be trusted. */
err packed_tensor_check(const qmatrix *q, layout_kind kind, const void *from, const char *what);

/* Local. Write all slots of one linear into the bytes of its unit. */
void packed_tensor_fill_unit(const layout *l, llama_role role, int64_t layer, const qmatrix *q,
                             void *unit);

/* Local. n floats in a stored type, rounded half to even. A finite value that overflows F16 is
 * ERR_NUMERICS, naming `what`. */
err packed_plain_fill(const float *from, int64_t n, st_dtype dtype, const char *what, void *to);

/* Local. Read one linear of an archive back, in the form it is found in. `linear` is its name
 * without ".weight" or ".weight_packed".
 * Caller owns *out (qmatrix_destroy). Fails with ERR_VERIFY where tensors are missing or do not fit
 * each other, else with the errors of reading. */
err packed_tensor_read(const hf_checkpoint *ck, const char *linear, int bits, int64_t group,
                       bool symmetric, qmatrix **out);

#endif
