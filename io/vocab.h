/* vocab - strings and their ids, both ways. Knows nothing of merges or bytes: a string is what the
 * model compares (io/bpe.c says which). Filled while a tokenizer is loaded, read-only afterwards.
 */
#ifndef SPINSHARD_IO_VOCAB_H
#define SPINSHARD_IO_VOCAB_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { VOCAB_MAX_ID = (1 << 22) - 1 };

typedef struct vocab vocab;

vocab *vocab_create(size_t n_expected); /* local; NULL where memory ends */
void vocab_destroy(vocab **v);          /* local; NULL is fine; sets NULL */

/* Local. Give a token the id; it is copied. Fails with ERR_INPUT: the token or the id is there
 * already, or the id is out of range. */
err vocab_add(vocab *v, const char *token, int64_t id, const char *where);

/* Local. The id of len bytes, or -1. */
int32_t vocab_find(const vocab *v, const char *bytes, size_t len);

/* Local. The token of an id, or NULL. Borrowed until the next vocab_add. */
const char *vocab_token(const vocab *v, int32_t id);

int64_t vocab_size(const vocab *v); /* local; highest id + 1 */

/* Local. A hash of len bytes for tables that live as long as the process. */
uint64_t vocab_hash(const char *bytes, size_t len);

#endif
