/* source_tensor - what every reader of checkpoint tensors in pipeline/ and jobs/ asks first: where
 * the tensor is, what fusion calls its type, and whether its numbers are numbers. Reads nothing. */
#ifndef SPINSHARD_PIPELINE_WEIGHTS_SOURCE_TENSOR_H
#define SPINSHARD_PIPELINE_WEIGHTS_SOURCE_TENSOR_H

#include "base/err.h"
#include "io/hf_checkpoint.h"
#include "model/fuse.h"

/* Local. The tensor of a name; ERR_INPUT naming it where the checkpoint has none. */
err source_tensor_find(const hf_checkpoint *ck, const char *name, const hf_tensor **out);

/* Local. F32, F16 and BF16 as model/fuse.h names them. */
fuse_dtype source_tensor_dtype(st_dtype t);

/* Local. ERR_INPUT naming the tensor and the count, where count of its values are NaN or Inf. */
err source_tensor_refuse(const char *name, int64_t count);

#endif
