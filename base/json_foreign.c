/* JSON as Python reads it: see json_parse_foreign. */
#include "base/json.h"

#include "base/log.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What JSON lacks becomes a string that begins with this, which no file has reason to hold. */
#define MARK "\"\\u0001"

typedef struct growing {
    char *text;
    size_t len, room;
} growing;

static void put(growing *g, const char *from, size_t n) {
    if (g->len + n > g->room) {
        g->room = 2 * (g->len + n) + 64;
        g->text = realloc(g->text, g->room);
        if (!g->text) abort();
    }
    memcpy(g->text + g->len, from, n);
    g->len += n;
}

/* Length of the string that begins at text[0] = '"', its end included. */
static size_t string_length(const char *text, size_t len) {
    size_t i = 1;
    while (i < len && text[i] != '"') i += text[i] == '\\' ? 2 : 1;
    return i < len ? i + 1 : len;
}

/* Letters, digits and signs that hang together. */
static size_t word_length(const char *text, size_t len) {
    size_t i = 0;
    while (i < len && (isalnum((unsigned char)text[i]) || strchr("+-.", text[i]) != NULL) &&
           text[i])
        i++;
    return i;
}

/* True for NaN, an infinity, and numbers that neither 64 bits nor a double hold. */
static bool is_beyond(const char *text, size_t n) {
    char word[400], *end;
    const bool digits = isdigit((unsigned char)text[n - 1]);
    if (n >= sizeof word) return digits;
    memcpy(word, text, n);
    word[n] = 0;
    if (!strcmp(word, "NaN") || !strcmp(word, "Infinity") || !strcmp(word, "-Infinity"))
        return true;
    if (!digits || strspn(word, "0123456789+-.eE") != n) return false;
    errno = 0;
    if (strspn(word, "-0123456789") == n) return strtoll(word, &end, 10), errno == ERANGE;
    return isinf(strtod(word, &end));
}

static void mark_all(const char *text, size_t len, growing *out) {
    for (size_t i = 0, n; i < len; i += n) {
        n = text[i] == '"' ? string_length(text + i, len - i) : word_length(text + i, len - i);
        const bool mark = n && text[i] != '"' && is_beyond(text + i, n);
        if (!n) n = 1;
        if (mark) put(out, MARK, sizeof MARK - 1);
        put(out, text + i, n);
        if (mark) put(out, "\"", 1);
    }
}

err json_parse_foreign(const char *text, size_t len, const char *where, json_t **out) {
    if (len >= 3 && !memcmp(text, "\xef\xbb\xbf", 3)) text += 3, len -= 3;
    err e = json_parse(text, len, where, out);
    if (e.code != ERR_INPUT) return e;
    growing g = {0};
    json_error_t why;
    mark_all(text, len, &g);
    if (json_values_fit(text, len)) *out = json_loadb(g.text, g.len, JSON_DECODE_ANY, &why);
    free(g.text);
    if (!*out) return e;
    log_line(LOG_RUN, "%s: %s; read as Python does: the last of equal keys counts", where, e.what);
    return err_none();
}

void json_unmark(char *text) {
    char *to = text;
    for (const char *from = text; *from;) {
        if (strncmp(from, MARK, sizeof MARK - 1) != 0) {
            *to++ = *from++;
            continue;
        }
        for (from += sizeof MARK - 1; *from && *from != '"'; from++) *to++ = *from;
        from += *from == '"';
    }
    *to = 0;
}
