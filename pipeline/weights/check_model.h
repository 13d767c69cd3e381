/* check_model - does a checkpoint hold what its config demands? Names, shapes and float types,
 * before a byte of a weight is read. Not a check of values (NaN is found while loading). Stands
 * between "plan" and "safetensors tensor". */
#ifndef SPINSHARD_PIPELINE_WEIGHTS_CHECK_MODEL_H
#define SPINSHARD_PIPELINE_WEIGHTS_CHECK_MODEL_H

#include "base/err.h"
#include "io/hf_checkpoint.h"
#include "model/config.h"

/* Local, same result on every rank. Every tensor of the config is there with its shape, as F32, F16
 * or BF16; the head may be absent where it is tied. Tensors that the model does not use are counted
 * in one log line of rank 0 (buffers of the rotary embedding are not). Fails with ERR_INPUT, naming
 * the tensor, what is expected and what was found. */
err check_model(const llama_config *cfg, const hf_checkpoint *ck);

#endif
