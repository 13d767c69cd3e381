/* bpe - the model of a tokenizer.json: byte-pair encoding with merges by rank (Sennrich, Haddow,
 * Birch 2016), over characters with byte fallback, or over bytes. Ids are those of the `tokenizers`
 * package. Does not cut texts into words (io/pretokenize.h), and supports neither dropout
 * nor continuing_subword_prefix and end_of_word_suffix.
 * Last step of a text on its way to ids. */
#ifndef SPINSHARD_IO_BPE_H
#define SPINSHARD_IO_BPE_H

#include "base/json.h"
#include "io/growbuf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct bpe bpe;
typedef struct bpe_run bpe_run;

/* Local. From the `model` object. byte_level: words are bytes, which the vocabulary spells in the
 * byte-level alphabet. Borrows nothing. Caller owns *out (bpe_destroy). Fails with ERR_INPUT: not a
 * BPE model, a feature that is not supported, an id or a token twice, a merge of unknown parts. */
err bpe_create(const json_t *model, bool byte_level, const char *where, bpe **out);
void bpe_destroy(bpe **b); /* local; NULL is fine; sets NULL */

int64_t bpe_vocab_size(const bpe *b);            /* local; highest id + 1 */
int32_t bpe_id(const bpe *b, const char *token); /* local; as the file spells it; or -1 */
const char *bpe_token(const bpe *b, int32_t id); /* local; borrowed; NULL where there is none */

/* Local. What one thread needs to encode: a cache of words and scratch. Ids are appended to `ids`
 * as int32_t. Borrows b and ids. Caller owns *out (bpe_run_destroy). */
err bpe_run_create(const bpe *b, growbuf *ids, bpe_run **out);
void bpe_run_destroy(bpe_run **r); /* local; NULL is fine; sets NULL */

/* Local. Append the ids of one word; the signature of a pretokenize_sink. False where it failed;
 * then bpe_error has the error. */
bool bpe_word(void *run, const char *word, size_t len);
err bpe_error(const bpe_run *r);

#endif
