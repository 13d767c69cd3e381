/* pretokenize - the `pre_tokenizer` of a tokenizer.json: cuts a text into words, which the model
 * then cuts into tokens; the door to PCRE2.
 * ByteLevel, Split, Digits, Metaspace, Whitespace, WhitespaceSplit, Punctuation,
 * CharDelimiterSplit, Sequence; others are refused by name. Does not spell bytes as the characters
 * of the byte-level alphabet: io/bpe.c takes the bytes themselves (pretokenizer_is_byte_level).
 * Patterns are written for Oniguruma; they are translated, and what means something else in PCRE2
 * is refused. PCRE2 knows the Unicode version it was built with (10.42: 14.0); letters added to
 * Unicode after that are no letters here. */
#ifndef SPINSHARD_IO_PRETOKENIZE_H
#define SPINSHARD_IO_PRETOKENIZE_H

#include "base/json.h"

#include <stdbool.h>
#include <stddef.h>

typedef struct pretokenizer pretokenizer;
typedef struct pretokenize_run pretokenize_run;

/* Local. From the JSON value (NULL or null: none). Borrows nothing. Caller owns *out
 * (pretokenizer_destroy). Fails with ERR_INPUT. */
err pretokenizer_create(const json_t *v, const char *where, pretokenizer **out);
void pretokenizer_destroy(pretokenizer **p); /* local; NULL is fine; sets NULL */

/* Local. True where words are to be read as bytes. */
bool pretokenizer_is_byte_level(const pretokenizer *p);

/* Takes a word, never empty, valid during the call. False ends the run. */
typedef bool (*pretokenize_sink)(void *ctx, const char *word, size_t len);

/* Local. What one thread needs to cut texts. Borrows p and ctx. Caller owns *out
 * (pretokenize_run_destroy). Fails with ERR_NOFIT. */
err pretokenize_run_create(const pretokenizer *p, pretokenize_sink sink, void *ctx,
                           pretokenize_run **out);
void pretokenize_run_destroy(pretokenize_run **r); /* local; NULL is fine; sets NULL */

/* Local. Hand the words of valid UTF-8 to the sink, in order. at_start: the text stands at the very
 * start of the input (Metaspace asks). False where the sink said so or a pattern failed; then
 * pretokenize_error has the error, or success where it was the sink. */
bool pretokenize_text(pretokenize_run *r, const char *text, size_t len, bool at_start);
err pretokenize_error(const pretokenize_run *r);

#endif
