/* Read from the end, so that a path with commas stays a path. */
#include "jobs/setup/text_word.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The number behind "KEY=", where `word` is that; else NULL. */
static const char *number_of(const char *word, const char *key) {
    const size_t n = strlen(key);
    return !strncmp(word, key, n) && word[n] == '=' ? word + n + 1 : NULL;
}

static err take(const char *word, const char *digits, int64_t *to) {
    char *end;
    errno = 0;
    const long long n = strtoll(digits, &end, 10);
    if (*to) return err_make(ERR_USAGE, "--text", NULL, "%s: said twice", word);
    if (end == digits || *end || errno || n < 1)
        return err_make(ERR_USAGE, "--text", NULL, "%s: \"%s\" is not a whole number above 0", word,
                        digits);
    *to = n;
    return err_none();
}

err text_word_parse(const char *word, text_word *out) {
    *out = (text_word){.path = strdup(word)};
    if (!out->path) abort();
    err e = err_none();
    char *comma;
    while (!e.code && (comma = strrchr(out->path, ','))) {
        const char *limit = number_of(comma + 1, "limit"), *tail = number_of(comma + 1, "tail");
        if (!limit && !tail) break;
        e = limit ? take(word, limit, &out->limit) : take(word, tail, &out->tail);
        *comma = 0;
    }
    return e;
}
