/* The JSON of a safetensors header, read by its own grammar rather than by the JSON library: that
 * one cannot tell -0 from 0, holds no number above 2^63 - 1, and takes near a kilobyte for a
 * tensor, which a hostile header of 100 MB turns into gigabytes. The grammar has a fixed depth, so
 * nothing recurses. */
#include "io/safetensors_internal.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct parser {
    const char *text;
    size_t len, at;
    size_t used; /* of h->strings */
    st_header *h;
    const char *where;
    const char *tensor; /* the one being read, for messages; NULL outside */
    bool has_metadata;
    err failed;
} parser;

typedef bool (*member_reader)(parser *p, const char *key, void *to);

/* Remember what is wrong here; returns false so that callers can return it. */
static bool fail(parser *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static bool fail(parser *p, const char *fmt, ...) {
    char text[300], at[200] = "";
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (p->tensor) snprintf(at, sizeof at, "tensor \"%.160s\": ", p->tensor);
    p->failed = err_make(ERR_INPUT, p->where, "fetch the file again",
                         "%s%s (byte %zu of the header)", at, text, p->at);
    st_make_printable(p->failed.what);
    return false;
}

static int peek(parser *p) {
    while (p->at < p->len && memchr(" \t\n\r", p->text[p->at], 4)) p->at++;
    return p->at < p->len ? (unsigned char)p->text[p->at] : -1;
}

static bool take(parser *p, char c) {
    if (peek(p) != (unsigned char)c) return false;
    p->at++;
    return true;
}

static bool expect(parser *p, char c) {
    if (take(p, c)) return true;
    if (p->at == p->len) return fail(p, "the text ends where '%c' is due", c);
    return fail(p, "'%c' is due", c);
}

/* Length of the UTF-8 sequence at s (RFC 3629: no overlong forms, no surrogates, at most U+10FFFF);
 * 0 where it is none. */
static size_t utf8_length(const unsigned char *s, size_t left) {
    unsigned char a = s[0], lo = 0x80, hi = 0xBF;
    if (a < 0x80) return 1;
    size_t n = a >= 0xC2 && a <= 0xDF   ? 2
               : a >= 0xE0 && a <= 0xEF ? 3
               : a >= 0xF0 && a <= 0xF4 ? 4
                                        : 0;
    if (n == 0 || n > left) return 0;
    if (a == 0xE0) lo = 0xA0;
    if (a == 0xED) hi = 0x9F;
    if (a == 0xF0) lo = 0x90;
    if (a == 0xF4) hi = 0x8F;
    if (s[1] < lo || s[1] > hi) return 0;
    for (size_t i = 2; i < n; i++)
        if (s[i] < 0x80 || s[i] > 0xBF) return 0;
    return n;
}

/* Four hex digits at p->at. */
static bool read_hex4(parser *p, uint32_t *out) {
    uint32_t v = 0;
    if (p->len - p->at < 4) return fail(p, "\\u is cut short");
    for (int i = 0; i < 4; i++) {
        char c = p->text[p->at++];
        uint32_t d = c >= '0' && c <= '9'   ? (uint32_t)(c - '0')
                     : c >= 'a' && c <= 'f' ? (uint32_t)(c - 'a' + 10)
                     : c >= 'A' && c <= 'F' ? (uint32_t)(c - 'A' + 10)
                                            : 16;
        if (d > 15) return fail(p, "\\u needs four hexadecimal digits");
        v = v << 4 | d;
    }
    *out = v;
    return true;
}

static bool put_utf8(parser *p, uint32_t u) {
    unsigned char *to = (unsigned char *)p->h->strings + p->used;
    if (u < 0x80) {
        to[0] = (unsigned char)u;
        p->used += 1;
    } else if (u < 0x800) {
        to[0] = (unsigned char)(0xC0 | u >> 6);
        to[1] = (unsigned char)(0x80 | (u & 0x3F));
        p->used += 2;
    } else if (u < 0x10000) {
        to[0] = (unsigned char)(0xE0 | u >> 12);
        to[1] = (unsigned char)(0x80 | (u >> 6 & 0x3F));
        to[2] = (unsigned char)(0x80 | (u & 0x3F));
        p->used += 3;
    } else {
        to[0] = (unsigned char)(0xF0 | u >> 18);
        to[1] = (unsigned char)(0x80 | (u >> 12 & 0x3F));
        to[2] = (unsigned char)(0x80 | (u >> 6 & 0x3F));
        to[3] = (unsigned char)(0x80 | (u & 0x3F));
        p->used += 4;
    }
    return true;
}

/* After "\u". Surrogates must come in pairs; NUL would end our strings early. */
static bool read_unicode_escape(parser *p) {
    uint32_t u, low;
    if (!read_hex4(p, &u)) return false;
    if (u == 0) return fail(p, "a NUL character in a text");
    if (u >= 0xDC00 && u <= 0xDFFF) return fail(p, "half a surrogate pair");
    if (u < 0xD800 || u > 0xDBFF) return put_utf8(p, u);
    if (p->len - p->at < 2 || p->text[p->at] != '\\' || p->text[p->at + 1] != 'u')
        return fail(p, "half a surrogate pair");
    p->at += 2;
    if (!read_hex4(p, &low)) return false;
    if (low < 0xDC00 || low > 0xDFFF) return fail(p, "half a surrogate pair");
    return put_utf8(p, 0x10000 + ((u - 0xD800) << 10) + (low - 0xDC00));
}

/* After the backslash. */
static bool read_escape(parser *p) {
    static const char FROM[] = "\"\\/bfnrt", TO[] = "\"\\/\b\f\n\r\t";
    if (p->at == p->len) return fail(p, "a text without an end");
    char c = p->text[p->at++];
    if (c == 'u') return read_unicode_escape(p);
    const char *known = c ? strchr(FROM, c) : NULL;
    if (!known) return fail(p, "an unknown escape in a text");
    return put_utf8(p, (unsigned char)TO[known - FROM]);
}

/* A string, decoded into h->strings: that is never longer than its source, so the pool of the size
 * of the text cannot run over. */
static bool read_string(parser *p, const char **out) {
    if (!expect(p, '"')) return false;
    *out = p->h->strings + p->used;
    while (p->at < p->len && p->text[p->at] != '"') {
        const unsigned char *s = (const unsigned char *)p->text + p->at;
        if (*s < 0x20) return fail(p, "a control character in a text");
        if (*s == '\\') {
            p->at++;
            if (!read_escape(p)) return false;
            continue;
        }
        size_t n = utf8_length(s, p->len - p->at);
        if (!n) return fail(p, "invalid UTF-8");
        memcpy(p->h->strings + p->used, s, n);
        p->used += n;
        p->at += n;
    }
    if (p->at == p->len) return fail(p, "a text without an end");
    p->at++;
    p->h->strings[p->used++] = 0;
    return true;
}

/* A plain unsigned integer: no sign, fraction, exponent or leading zero. */
static bool read_count(parser *p, const char *what, uint64_t *out) {
    uint64_t v = 0;
    int c = peek(p);
    size_t start = p->at;
    if (c < '0' || c > '9') return fail(p, "%s must hold unsigned integers", what);
    for (; p->at < p->len && p->text[p->at] >= '0' && p->text[p->at] <= '9'; p->at++)
        if (__builtin_mul_overflow(v, (uint64_t)10, &v) ||
            __builtin_add_overflow(v, (uint64_t)(p->text[p->at] - '0'), &v))
            return fail(p, "a number in %s does not fit 64 bits", what);
    if (p->text[start] == '0' && p->at - start > 1)
        return fail(p, "a number in %s begins with 0", what);
    if (p->at < p->len && memchr(".eE", p->text[p->at], 3))
        return fail(p, "%s must hold unsigned integers", what);
    *out = v;
    return true;
}

/* At most `max` numbers in brackets. */
static bool read_counts(parser *p, const char *what, int max, uint64_t *out, int *n) {
    *n = 0;
    if (peek(p) != '[') return fail(p, "%s must be a list", what);
    p->at++;
    if (take(p, ']')) return true;
    do {
        if (*n == max) return fail(p, "%s has more than %d numbers", what, max);
        if (!read_count(p, what, &out[*n])) return false;
        ++*n;
    } while (take(p, ','));
    return expect(p, ']');
}

static bool read_object(parser *p, member_reader member, void *to) {
    if (!expect(p, '{')) return false;
    if (take(p, '}')) return true;
    do {
        const char *key;
        if (!read_string(p, &key) || !expect(p, ':') || !member(p, key, to)) return false;
    } while (take(p, ','));
    return expect(p, '}');
}

/* An array of n of size bytes that has room for one more. */
static bool make_room(parser *p, void **array, int64_t n, int64_t *room, size_t size) {
    if (n < *room) return true;
    int64_t more = *room ? *room + *room / 2 : 64;
    void *new = reallocarray(*array, (size_t)more, size);
    if (!new) {
        p->failed = err_make(ERR_NOFIT, p->where, NULL, "no memory for the header");
        return false;
    }
    *array = new;
    *room = more;
    return true;
}

static bool read_pair(parser *p, const char *key, void *to) {
    st_header *h = to;
    const char *value;
    if (peek(p) != '"') return fail(p, "__metadata__ must hold texts only");
    if (!read_string(p, &value)) return false;
    if (!make_room(p, (void **)&h->pairs, h->n_pairs, &h->room_pairs, sizeof *h->pairs))
        return false;
    h->pairs[h->n_pairs++] = (st_pair){key, value};
    return true;
}

typedef struct tensor_fields {
    st_tensor *t;
    bool dtype, shape, offsets; /* seen */
} tensor_fields;

static bool read_dtype(parser *p, st_tensor *t) {
    const char *name;
    size_t mark = p->used;
    if (peek(p) != '"') return fail(p, "dtype must be a text");
    if (!read_string(p, &name)) return false;
    p->used = mark; /* it is looked up, not kept */
    return st_dtype_parse(name, &t->dtype) || fail(p, "unknown dtype \"%.40s\"", name);
}

static bool read_shape(parser *p, st_tensor *t) {
    uint64_t shape[ST_MAX_DIMS];
    if (!read_counts(p, "shape", ST_MAX_DIMS, shape, &t->n_dims)) return false;
    for (int i = 0; i < t->n_dims; i++) {
        if (shape[i] > INT64_MAX) return fail(p, "dimension %" PRIu64 " is too large", shape[i]);
        t->shape[i] = (int64_t)shape[i];
    }
    return true;
}

static bool read_offsets(parser *p, st_tensor *t) {
    uint64_t offsets[2];
    int n;
    if (!read_counts(p, "data_offsets", 2, offsets, &n)) return false;
    if (n != 2) return fail(p, "data_offsets must be two numbers");
    t->begin = offsets[0];
    t->end = offsets[1];
    return true;
}

static bool read_field(parser *p, const char *key, void *to) {
    tensor_fields *f = to;
    bool *seen = !strcmp(key, "dtype")          ? &f->dtype
                 : !strcmp(key, "shape")        ? &f->shape
                 : !strcmp(key, "data_offsets") ? &f->offsets
                                                : NULL;
    if (!seen) return fail(p, "unknown field \"%.60s\"", key);
    if (*seen) return fail(p, "%s occurs twice", key);
    *seen = true;
    if (seen == &f->dtype) return read_dtype(p, f->t);
    if (seen == &f->shape) return read_shape(p, f->t);
    return read_offsets(p, f->t);
}

static bool read_tensor(parser *p, const char *name, st_header *h) {
    if (!make_room(p, (void **)&h->tensors, h->n_tensors, &h->room_tensors, sizeof *h->tensors))
        return false;
    tensor_fields f = {.t = &h->tensors[h->n_tensors]};
    memset(f.t, 0, sizeof *f.t);
    f.t->name = p->tensor = name;
    if (peek(p) != '{') return fail(p, "an object is due");
    size_t mark = p->used; /* field names are looked up, not kept */
    if (!read_object(p, read_field, &f)) return false;
    p->used = mark;
    if (!f.dtype) return fail(p, "dtype is missing");
    if (!f.shape) return fail(p, "shape is missing");
    if (!f.offsets) return fail(p, "data_offsets is missing");
    p->tensor = NULL;
    h->n_tensors++;
    return true;
}

static bool read_member(parser *p, const char *key, void *to) {
    if (strcmp(key, "__metadata__")) return read_tensor(p, key, to);
    if (p->has_metadata) return fail(p, "__metadata__ occurs twice");
    p->has_metadata = true;
    if (peek(p) != '{') return fail(p, "__metadata__ must be an object");
    return read_object(p, read_pair, to);
}

err st_parse_text(const char *text, size_t len, const char *where, st_header *h) {
    parser p = {.text = text, .len = len, .h = h, .where = where, .failed = err_none()};
    h->strings = malloc(len + 1);
    if (!h->strings)
        return err_make(ERR_NOFIT, where, NULL, "no memory for a header of %zu bytes", len);
    if (peek(&p) != '{')
        fail(&p, "the header is not a JSON object");
    else if (read_object(&p, read_member, h) && peek(&p) != -1)
        fail(&p, "bytes after the end of the JSON object");
    return p.failed;
}
