/* Lookups and messages alone. */
#include "pipeline/weights/source_tensor.h"

#include <inttypes.h>

err source_tensor_find(const hf_checkpoint *ck, const char *name, const hf_tensor **out) {
    *out = hf_checkpoint_find(ck, name);
    if (*out) return err_none();
    return err_make(ERR_INPUT, name, NULL, "the tensor is missing from the checkpoint");
}

fuse_dtype source_tensor_dtype(st_dtype t) {
    return t == ST_BF16 ? FUSE_BF16 : t == ST_F16 ? FUSE_F16 : FUSE_F32;
}

err source_tensor_refuse(const char *name, int64_t count) {
    if (!count) return err_none();
    return err_make(ERR_INPUT, name, "the checkpoint is damaged: fetch it again",
                    "%" PRId64 " values are NaN or Inf", count);
}
