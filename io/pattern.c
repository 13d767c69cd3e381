/* A recursive descent over the source pattern that writes the equivalent for PCRE2, and refuses
 * what would differ. */
#include "io/pattern.h"

#include <ctype.h>
#include <stdio.h>

/* \w; outside of a class, Oniguruma takes some numbers of Latin-1 for parts of words, too. */
#define WORD         "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"
#define WORD_OUTSIDE WORD "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}"

typedef struct reader {
    const char *p; /* next character */
    const char *where;
    growbuf *out;
    bool in_class;
} reader;

static err put(reader *r, const char *s) {
    return growbuf_add(r->out, s, strlen(s)) ? err_none() : growbuf_full();
}

static err take(reader *r, size_t n) {
    const char *from = r->p;
    r->p += n;
    return growbuf_add(r->out, from, n) ? err_none() : growbuf_full();
}

static err refuse(const reader *r, const char *what) {
    return err_make(ERR_INPUT, r->where, "use a tokenizer.json without it",
                    "the pattern of a pre-tokenizer uses %s, which is not supported (at \"%.20s\")",
                    what, r->p);
}

/* \p{..}: categories mean the same; a script in PCRE2 would mean its extensions too. */
static err property(reader *r) {
    char name[48], text[64];
    char kind = r->p[1];
    const char *brace = r->p + 2;
    size_t n = 0;
    if (*brace != '{') return refuse(r, "a property without braces");
    bool negated = brace[1] == '^';
    const char *from = brace + 1 + negated;
    while (isalnum((unsigned char)from[n]) || from[n] == '_') n++;
    if (from[n] != '}' || n == 0 || n >= sizeof name)
        return refuse(r, "a property of another form");
    snprintf(name, sizeof name, "%.*s", (int)n, from);
    bool plain = n <= 2 || strcmp(name, "White_Space") == 0;
    snprintf(text, sizeof text, "\\%c{%s%s%s}", kind, negated ? "^" : "", plain ? "" : "sc:", name);
    r->p = from + n + 1;
    return put(r, text);
}

/* \uHHHH, \xHH, \x{H..} */
static err code_point(reader *r) {
    char text[16];
    const char *hex = r->p + 2;
    size_t n = 0, most = r->p[1] == 'u' ? 4 : 2;
    bool braces = r->p[1] == 'x' && *hex == '{';
    if (braces) {
        hex++;
        most = 6;
    }
    while (n < most && isxdigit((unsigned char)hex[n])) n++;
    if (n == 0 || (r->p[1] == 'u' && n < 4) || (braces && hex[n] != '}'))
        return refuse(r, "a character code of another form");
    snprintf(text, sizeof text, "\\x{%.*s}", (int)n, hex);
    r->p = hex + n + braces;
    return put(r, text);
}

static err escape(reader *r) {
    static const struct {
        char letter;
        const char *outside, *inside; /* inside a class; NULL: cannot be said there */
    } classes[] = {
        {'s', "\\p{White_Space}", "\\p{White_Space}"},
        {'S', "\\P{White_Space}", "\\P{White_Space}"},
        {'d', "\\p{Nd}", "\\p{Nd}"},
        {'D', "\\P{Nd}", "\\P{Nd}"},
        {'w', "[" WORD_OUTSIDE "]", WORD},
        {'W', "[^" WORD_OUTSIDE "]", NULL},
        {'v', "\\x{0b}", "\\x{0b}"},
    };
    char c = r->p[1];
    if (c == 'p' || c == 'P') return property(r);
    if (c == 'x' || c == 'u') return code_point(r);
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++) {
        if (c != classes[i].letter) continue;
        const char *text = r->in_class ? classes[i].inside : classes[i].outside;
        if (!text) break;
        r->p += 2;
        return put(r, text);
    }
    if (c && (strchr("rntf", c) || ispunct((unsigned char)c) || c == ' ')) return take(r, 2);
    if (c && strchr("Az", c) && !r->in_class) return take(r, 2);
    return refuse(r, "an escape");
}

static err class_character(reader *r) {
    if (*r->p == '\\') return escape(r);
    if (*r->p == '[') return refuse(r, "a class within a class");
    if (r->p[0] == '&' && r->p[1] == '&') return refuse(r, "an intersection of classes");
    return take(r, 1);
}

static err class_of_characters(reader *r) {
    err e = take(r, 1);
    if (!e.code && *r->p == '^') e = take(r, 1);
    if (*r->p == ']') return refuse(r, "a class that begins with a bracket");
    r->in_class = true;
    while (!e.code && *r->p && *r->p != ']') e = class_character(r);
    r->in_class = false;
    if (!e.code && !*r->p) return refuse(r, "a class without an end");
    return e.code ? e : take(r, 1);
}

static err group(reader *r) {
    static const char *const known[] = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?i)"};
    if (r->p[1] != '?') return r->p[1] == '*' ? refuse(r, "a callout") : take(r, 1);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strncmp(r->p, known[i], strlen(known[i])) == 0) return take(r, strlen(known[i]));
    return refuse(r, "a group of another form");
}

/* {n,m}+ repeats the repeat in Ruby syntax, and is possessive in PCRE2; {,m} is {0,m} in Ruby. */
static err interval(reader *r) {
    size_t n = 1;
    while (isdigit((unsigned char)r->p[n]) || r->p[n] == ',') n++;
    if (r->p[n] != '}' || !isdigit((unsigned char)r->p[1]))
        return refuse(r, "a brace of another form");
    if (r->p[n + 1] == '+') return refuse(r, "a repeated interval");
    return take(r, n + 1);
}

err pattern_translate(const char *onig, const char *where, growbuf *out) {
    reader r = {.p = onig, .where = where, .out = out};
    err e = err_none();
    while (*r.p && !e.code) {
        switch (*r.p) {
        case '\\':
            e = escape(&r);
            break;
        case '[':
            e = class_of_characters(&r);
            break;
        case '(':
            e = group(&r);
            break;
        case '{':
            e = interval(&r);
            break;
        default:
            e = take(&r, 1);
        }
    }
    if (!e.code && !growbuf_add(out, "", 1)) e = growbuf_full();
    return e;
}
