/* cache_rotation - the rotation that vLLM applies to keys and values before it stores them in 4
 * bits (--kv-cache-dtype int4_per_token_head), and takes off when it reads them: R = diag(signs) H
 * / sqrt(b) in blocks of b, the largest power of two that divides the head size. The signs are
 * fixed, the same for every layer, head and model. Not R3, which is ours to choose. */
#ifndef SPINSHARD_ROTATIONS_CACHE_ROTATION_H
#define SPINSHARD_ROTATIONS_CACHE_ROTATION_H

#include "rotations/rotation.h"

/* Local. Signs [n], 1 or -1, of a block: the i-th is 1 where number i of the Mersenne Twister
 * MT19937, seeded with 0x9E3779B9, has bit 23 clear. So PyTorch draws
 * bernoulli(0.5) in fp32, from 24 bits (vLLM 0.32, vllm/v1/attention/ops/int4_per_token_head.py,
 * _get_rht_signs). n <= CACHE_ROTATION_MOST. */
enum { CACHE_ROTATION_MOST = 624 };
void cache_rotation_signs(int64_t n, int8_t *signs);

/* Local. The rotation of one head. Caller owns *out. Fails with ERR_USAGE for an odd
 * head size, whose codes the runtime cannot pack, else as rotation_create_hadamard. */
err cache_rotation_create(int64_t head_dim, rotation **out);

#endif
