/* read_ahead - tensors of a checkpoint in an order known beforehand: while one is worked on, the
 * next ones are read and hashed beside, as far as there is room. Each tensor is read once. Not a
 * cache. Stands between "safetensors tensor" and whoever fuses it. */
#ifndef SPINSHARD_PIPELINE_WEIGHTS_READ_AHEAD_H
#define SPINSHARD_PIPELINE_WEIGHTS_READ_AHEAD_H

#include "base/err.h"
#include "base/sha256.h"
#include "io/hf_checkpoint.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct read_ahead read_ahead;

/* Local. Bytes of the buffer: the largest two tensors that follow each other, and 32 MB; not ahead:
 * the largest tensor alone, which is used before the next one is read. */
uint64_t read_ahead_bytes(const hf_checkpoint *ck, char *const *names, int64_t n, bool ahead);

/* Local. names [n] are copied. Reading begins at once, on a thread. Caller owns *out; ck must
 * outlive it and is not used by anyone else meanwhile. Fails with ERR_NOFIT. */
err read_ahead_create(const hf_checkpoint *ck, char *const *names, int64_t n, bool ahead,
                      read_ahead **out);
void read_ahead_destroy(read_ahead **r); /* local; NULL is fine; sets NULL */

/* Local. The next tensor, which must have this name, its bytes as on disk and their hash; *data is
 * borrowed until the next call. Fails with ERR_INPUT (not in the checkpoint, or what reading
 * gives), ERR_NOFIT, ERR_BUG (another order). */
err read_ahead_next(read_ahead *r, const char *name, const hf_tensor **t, const void **data,
                    char hex[SHA256_HEX]);

#endif
