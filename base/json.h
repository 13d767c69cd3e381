/* json - the one door to the JSON library, and strict getters with messages that name the key.
 * Parsing refuses duplicate keys, trailing bytes, bad UTF-8, NUL in strings and numbers that do
 * not fit. Not a schema language. json_t is jansson's value; others include this header only. */
#ifndef SPINSHARD_BASE_JSON_H
#define SPINSHARD_BASE_JSON_H

#include "base/err.h"

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

/* Local. Parse len bytes; `where` names the source in messages. Memory is bounded: a text of more
 * than some millions of values is refused before the library sees it. Caller owns *out
 * (json_decref). Fails with ERR_INPUT. */
err json_parse(const char *text, size_t len, const char *where, json_t **out);

/* Local. As json_parse, for files of models, which Python wrote and reads. If a key occurs several
 * times, the last one counts. NaN, infinities and numbers that fit neither 64 bits nor a double
 * become marked strings: a getter of numbers refuses them, and a copy of the value writes what
 * stood there (json_unmark). A byte order mark is skipped. A text that is not strict JSON is logged
 * as such. */
err json_parse_foreign(const char *text, size_t len, const char *where, json_t **out);

/* Local. In the text of a value from json_parse_foreign: marked strings become what stood there. In
 * place; the text gets no longer. */
void json_unmark(char *text);

/* Local. False where the text has more values than are read. */
bool json_values_fit(const char *text, size_t len);

/* Local. Read and parse a file of at most max_bytes. Fails with ERR_INPUT. */
err json_read_file(const char *path, uint64_t max_bytes, json_t **out);

/* Local. The text of a value: keys in their order of insertion, indent as given (0: one line),
 * doubles with 17 digits, a newline at the end. Caller frees *out (free). */
err json_text(const json_t *v, int indent, char **out, size_t *len);

/* Local. Getters of object members; `where` names the object in messages. The *_opt ones leave
 * *out untouched where the key is absent or null. Strings are borrowed. Fail with ERR_INPUT. */
err json_get_int(const json_t *o, const char *key, int64_t lo, int64_t hi, const char *where,
                 int64_t *out);
err json_opt_int(const json_t *o, const char *key, int64_t lo, int64_t hi, const char *where,
                 int64_t *out);
err json_opt_real(const json_t *o, const char *key, const char *where, double *out);
err json_opt_bool(const json_t *o, const char *key, const char *where, bool *out);
err json_get_str(const json_t *o, const char *key, const char *where, const char **out);
err json_opt_str(const json_t *o, const char *key, const char *where, const char **out);

/* Local. An object member to be shown to people: "" (borrowed) or NaN where it is absent or of
 * another kind. */
const char *json_word_of(const json_t *o, const char *key);
double json_real_of(const json_t *o, const char *key);

/* Local. A number for people, rounded to four digits; null where it is not finite. New reference.
 */
json_t *json_four_digits(double x);

#endif
