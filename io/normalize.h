/* normalize - the `normalizer` of a tokenizer.json, and classes of characters; the door to
 * utf8proc. NFC, NFD, NFKC, NFKD, Prepend, Replace (of a string), Lowercase, Strip, Sequence;
 * others are refused by name. First step of a text on its way to ids. */
#ifndef SPINSHARD_IO_NORMALIZE_H
#define SPINSHARD_IO_NORMALIZE_H

#include "base/json.h"
#include "io/growbuf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct normalizer normalizer;

/* Local. From the JSON value (NULL or null: none). Borrows nothing. Caller owns *out
 * (normalizer_destroy). Fails with ERR_INPUT. */
err normalizer_create(const json_t *v, const char *where, normalizer **out);
void normalizer_destroy(normalizer **z); /* local; NULL is fine; sets NULL */

/* Local. The normal form of valid UTF-8. *out points into text or into one of tmp, which the caller
 * owns and may use again. *kept_start (may be NULL) is cleared where characters at the start were
 * stripped. Fails with ERR_INPUT or ERR_NOFIT. */
err normalizer_apply(const normalizer *z, const char *text, size_t len, growbuf tmp[2],
                     const char **out, size_t *out_len, bool *kept_start);

/* Local. Classes of characters as the `tokenizers` package knows them. */
bool normalize_is_space(uint32_t c);       /* property White_Space */
bool normalize_is_number(uint32_t c);      /* category N */
bool normalize_is_word(uint32_t c);        /* \w of UTS 18, annex C */
bool normalize_is_punctuation(uint32_t c); /* category P, or ASCII punctuation */

#endif
