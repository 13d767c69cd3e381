/* rotation_file - rotations.safetensors: the rotations, scales and clips of a model as F64, y = x
 * R. Keys: `R1` [hidden, hidden], `model.layers.{i}.self_attn.R2` [head_dim, head_dim] or
 * [kv_heads, head_dim, head_dim], `model.layers.{i}.input_layernorm.S`,
 * `.post_attention_layernorm.S` [hidden], `.self_attn.S_vo`, `.self_attn.S_qk` [kv_heads,
 * head_dim], `.mlp.S_ud` [intermediate]; R3 where it is not plain Hadamard, `.self_attn.R3`
 * [kv_heads, head_dim, head_dim]; clips, [2] each, the low and the high end:
 * `.input_layernorm.clip`, `.post_attention_layernorm.clip`, `.mlp.clip`,
 * `.self_attn.clip_o`, `.clip_k`, `.clip_v`; each of them for all layers or for none; F32 is read
 * too, which makes the files of SpinQuant with these public keys readable. Not the set itself
 * (rotations/rotation_set.h). */
#ifndef SPINSHARD_PIPELINE_WEIGHTS_ROTATION_FILE_H
#define SPINSHARD_PIPELINE_WEIGHTS_ROTATION_FILE_H

#include "base/err.h"
#include "io/hf_checkpoint.h"
#include "mpi/comm.h"
#include "rotations/rotation_set.h"

/* Largest |R^T R - I| of a matrix that counts as orthogonal: F32 files of other tools have 1e-6. */
#define ROTATION_FILE_ORTHOGONAL 1e-5
/* Above this a matrix is replaced by the orthogonal one next to it when it is read: fused and
 * rotated back it would else not give the model again. */
#define ROTATION_FILE_EXACT 1e-12

/* Root only. Write R1, all R2, the scales, clips and R3 of a set; metadata: key, value, ..., NULL.
 * fp32: the twin of `inspect --export-spinquant`, without those three, which have no public keys.
 * Fails with ERR_NOFIT or what writing gives. */
err rotation_file_write(const char *path, rotation_set *set, bool fp32,
                        const char *const *metadata);

/* Collective on c; path and sizes must agree. Root reads, all ranks get the set: R1, R2, scales
 * and clips from the file, R3 too where opts have it and the file more than Hadamard, R4 by opts
 * (its r1, r2 and start are not used). Caller owns *out. Same result on every rank. Fails with
 * ERR_INPUT: wrong sizes, not orthogonal (and by how much), scales that are not positive numbers
 * between SCALE_LEAST and SCALE_MOST, pickles; and, unless source is NULL, a file whose metadata
 * names headers of safetensors files that are not the source's: it was learned on another model. A
 * file that names none (other tools, --export-spinquant) is taken. */
err rotation_file_read(const comm *c, const char *path, const rotation_options *opts,
                       const rotation_sizes *sizes, const hf_checkpoint *source,
                       rotation_set **out);

#endif
