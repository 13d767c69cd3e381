/* added_tokens - the `added_tokens` of a tokenizer.json: strings that are one token wherever they
 * stand, found before the model sees the text. Does not run the normalizer on texts; its caller
 * does, between the two rounds. */
#ifndef SPINSHARD_IO_ADDED_TOKENS_H
#define SPINSHARD_IO_ADDED_TOKENS_H

#include "base/json.h"
#include "io/bpe.h"
#include "io/normalize.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct added_tokens added_tokens;

/* Tokens are looked for in the text as it came, then in what is left after the normalizer. */
typedef enum added_round { ADDED_RAW, ADDED_NORMALIZED, ADDED_ROUNDS } added_round;

/* Local. From the JSON list (NULL or null: none). Tokens of ADDED_NORMALIZED are normalized by z.
 * Borrows nothing. Caller owns *out. Fails with ERR_INPUT: an id or a token twice, or one that the
 * model knows differently. */
err added_tokens_create(const json_t *list, const normalizer *z, const bpe *model,
                        const char *where, added_tokens **out);
void added_tokens_destroy(added_tokens **a); /* local; NULL is fine; sets NULL */

/* Local. False where a round has nothing to look for. */
bool added_tokens_any(const added_tokens *a, added_round round);

/* Takes a piece, never empty: the token `id`, or text where id is -1. False ends the run. */
typedef bool (*added_sink)(void *ctx, int32_t id, const char *piece, size_t len);

/* Local. Cut a text at its tokens: leftmost, then longest. False where the sink said so. */
bool added_tokens_split(const added_tokens *a, added_round round, const char *text, size_t len,
                        added_sink sink, void *ctx);

int64_t added_tokens_top(const added_tokens *a);                   /* highest id + 1 */
int32_t added_tokens_id(const added_tokens *a, const char *token); /* or -1 */
const char *added_tokens_name(const added_tokens *a, int32_t id);  /* or NULL; borrowed */

#endif
