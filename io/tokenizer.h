/* tokenizer - text to token ids by a Hugging Face tokenizer.json: added tokens, normalizer,
 * pre-tokenizer, BPE model, post-processor. The ids are those of the `tokenizers` package.
 * Not a decoder, not a trainer, no chat templates, no dropout; truncation and padding entries are
 * ignored. Stands between the text file and the token windows (io/text.h). */
#ifndef SPINSHARD_IO_TOKENIZER_H
#define SPINSHARD_IO_TOKENIZER_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct tokenizer tokenizer;

enum { TOKENIZER_MAX_AFFIX = 4 }; /* most ids that a post-processor may add at one end */

/* Local. Build from the bytes of a tokenizer.json; `where` names it in messages. The bytes may be
 * freed afterwards. Caller owns *out (tokenizer_destroy). Fails with ERR_INPUT: a damaged file, or
 * a model, normalizer, pre-tokenizer or post-processor that is not supported, by its name. */
err tokenizer_create(const char *json, size_t len, const char *where, tokenizer **out);
void tokenizer_destroy(tokenizer **t); /* local; NULL is fine; sets NULL */

/* Local. The ids of len bytes of UTF-8 (NUL bytes allowed). add_special: with what the
 * post-processor adds at both ends. Does not change t, so threads may share it. Caller frees *ids
 * (free; valid also for *n == 0). Fails with ERR_INPUT and the offset of the first bad byte. */
err tokenizer_encode(const tokenizer *t, const char *text, size_t len, bool add_special,
                     int32_t **ids, int64_t *n);

/* Local. Highest id + 1, added tokens included. For tests. */
int64_t tokenizer_vocab_size(const tokenizer *t);

/* Local. What the post-processor puts in front of a single sequence; returns how many. */
int64_t tokenizer_prefix(const tokenizer *t, int32_t ids[TOKENIZER_MAX_AFFIX]);

/* Local. The id of a token as the file spells it, or -1. For tests. */
int32_t tokenizer_id(const tokenizer *t, const char *token);

/* Local. The spelling of an id, or NULL where the file has none. Borrowed. */
const char *tokenizer_token(const tokenizer *t, int32_t id);

#endif
