/* hf_checkpoint - a Hugging Face checkpoint: config.json, one or more safetensors shards, and the
 * index that deals names to shards. Finds a tensor by name and reads it, whole or in part, straight
 * into the caller's buffer. Not a cache and not a model: it converts nothing and knows no roles.
 * Stands at "safetensors tensor -> weight slot of the owning rank".
 *
 * As in transformers, model.safetensors wins over an index where both exist. With an index, the
 * index decides: a tensor it does not name is not part of the checkpoint. Names that __metadata__
 * maps to a tensor of the same shard (tied embeddings saved once) are found like the tensor itself.
 */
#ifndef SPINSHARD_IO_HF_CHECKPOINT_H
#define SPINSHARD_IO_HF_CHECKPOINT_H

#include "base/err.h"
#include "base/json.h"
#include "base/sha256.h"
#include "io/fileset.h"
#include "io/safetensors.h"
#include "mpi/comm.h"

#include <stddef.h>
#include <stdint.h>

typedef struct hf_checkpoint hf_checkpoint;

/* A tensor and the shard it is in. For an alias, info.name is the name of the tensor it stands for.
 */
typedef struct hf_tensor {
    st_tensor info;
    int shard;
} hf_tensor;

/* Collective on c. Rank 0 reads config.json, the index and the header of each shard; all ranks
 * parse the same bytes. Borrows fs, which must outlive it; caller owns *out. Same result on every
 * rank. Fails with ERR_INPUT: missing file or shard, shard names that are not base names, damaged
 * headers, index and shards that disagree, pickled or GGUF weights, quantized sources of other
 * tools. */
err hf_checkpoint_open(const comm *c, const fileset *fs, hf_checkpoint **out);
void hf_checkpoint_destroy(hf_checkpoint **ck); /* local; NULL is fine; sets NULL */

/* Local. A checkpoint whose weights are not there, for plans: config.json of fs, and `header` (the
 * JSON of a safetensors header, len bytes, of data_bytes of tensors) in the place of its shards.
 * Reading a tensor fails; all else works. Caller owns *out. Fails with ERR_INPUT as
 * hf_checkpoint_open does for config.json. */
err hf_checkpoint_describe(const fileset *fs, const char *header, size_t len, uint64_t data_bytes,
                           hf_checkpoint **out);

const fileset *hf_checkpoint_fileset(const hf_checkpoint *ck); /* local; borrowed */

/* Local. config.json: parsed (borrowed), and the sha256 of its bytes. */
const json_t *hf_checkpoint_config(const hf_checkpoint *ck);
const char *hf_checkpoint_config_sha256(const hf_checkpoint *ck);

/* Local. The tensor of a name or alias, NULL where there is none; borrowed. */
const hf_tensor *hf_checkpoint_find(const hf_checkpoint *ck, const char *name);

/* Local. From now on `name` (borrowed), which is no tensor, is found as t, a tensor of ck. Fails
 * with ERR_NOFIT. */
err hf_checkpoint_put_alias(hf_checkpoint *ck, const char *name, const hf_tensor *t);

/* Local. All tensors, sorted by name, without aliases. */
int64_t hf_checkpoint_count(const hf_checkpoint *ck);
const hf_tensor *hf_checkpoint_at(const hf_checkpoint *ck, int64_t i);

/* Local. Bytes of a tensor in the file. */
static inline uint64_t hf_tensor_bytes(const hf_tensor *t) {
    return t->info.end - t->info.begin;
}

/* Local. All bytes of a tensor in file order, row-major, little-endian, into `to`. sha256_hex (may
 * be NULL) receives their hash, taken while reading. Not thread-safe: files are opened at first
 * use. */
err hf_checkpoint_read(const hf_checkpoint *ck, const hf_tensor *t, void *to,
                       char sha256_hex[SHA256_HEX]);

/* Local. n bytes of a tensor from byte `begin` of it. */
err hf_checkpoint_read_range(const hf_checkpoint *ck, const hf_tensor *t, uint64_t begin,
                             uint64_t n, void *to);

/* Local. The shards, sorted by name. */
int hf_checkpoint_shards(const hf_checkpoint *ck);
const char *hf_checkpoint_shard_name(const hf_checkpoint *ck, int i);
const char *hf_checkpoint_header_sha256(const hf_checkpoint *ck, int i);
const st_header *hf_checkpoint_header(const hf_checkpoint *ck, int i); /* borrowed */
uint64_t hf_checkpoint_shard_bytes(const hf_checkpoint *ck, int i);    /* size of the file */
uint64_t hf_checkpoint_bytes(const hf_checkpoint *ck); /* of all tensors, aliases counted once */

#endif
