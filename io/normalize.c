/* Steps are parsed into an array and applied one after the other from buffer to buffer. */
#include "io/normalize.h"

#include "io/utf8.h"

#include <stdlib.h>
#include <utf8proc.h>

typedef enum step_kind {
    STEP_FORM,
    STEP_PREPEND,
    STEP_REPLACE,
    STEP_LOWERCASE,
    STEP_STRIP
} step_kind;

typedef struct step {
    step_kind kind;
    utf8proc_option_t form; /* STEP_FORM */
    growbuf find, put;      /* STEP_REPLACE, STEP_PREPEND (put); own */
    bool left, right;       /* STEP_STRIP */
} step;

enum { MAX_STEPS = 32 };

struct normalizer {
    int n_steps;
    step steps[MAX_STEPS];
};

bool normalize_is_space(uint32_t c) {
    if (c < 0x80) return c == ' ' || (c >= '\t' && c <= '\r');
    return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 ||
           c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

bool normalize_is_number(uint32_t c) {
    if (c < 0x80) return c >= '0' && c <= '9';
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    return k == UTF8PROC_CATEGORY_ND || k == UTF8PROC_CATEGORY_NL || k == UTF8PROC_CATEGORY_NO;
}

bool normalize_is_punctuation(uint32_t c) {
    if (c < 0x80)
        return (c > ' ' && c < '0') || (c > '9' && c < 'A') || (c > 'Z' && c < 'a') ||
               (c > 'z' && c < 0x7f);
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    return k >= UTF8PROC_CATEGORY_PC && k <= UTF8PROC_CATEGORY_PO;
}

/* Alphabetic, marks, decimal numbers, connectors, joiners. Alphabetic is L, Nl and, besides marks,
 * the letters in circles and squares. */
bool normalize_is_word(uint32_t c) {
    if (c < 0x80)
        return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
               c == '_';
    if (c == 0x200c || c == 0x200d) return true;
    if ((c >= 0x24b6 && c <= 0x24e9) || (c >= 0x1f130 && c <= 0x1f149) ||
        (c >= 0x1f150 && c <= 0x1f169) || (c >= 0x1f170 && c <= 0x1f189))
        return true;
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    return (k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_ND) || k == UTF8PROC_CATEGORY_NL ||
           k == UTF8PROC_CATEGORY_PC;
}

static err put_string(growbuf *b, const char *s) {
    return growbuf_add(b, s, strlen(s)) ? err_none() : growbuf_full();
}

static err parse_replace(const json_t *v, const char *where, step *s) {
    const char *find, *put;
    err e = json_get_str(json_object_get(v, "pattern"), "String", where, &find);
    if (e.code)
        return err_make(
            ERR_INPUT, where, NULL,
            "the pattern of normalizer \"Replace\" is not a String; others are not supported");
    e = json_get_str(v, "content", where, &put);
    if (e.code) return e;
    if (!*find) return err_make(ERR_INPUT, where, NULL, "normalizer \"Replace\" replaces nothing");
    s->kind = STEP_REPLACE;
    e = put_string(&s->find, find);
    return e.code ? e : put_string(&s->put, put);
}

static err parse_prepend(const json_t *v, const char *where, step *s) {
    const char *put;
    err e = json_get_str(v, "prepend", where, &put);
    if (e.code) return e;
    s->kind = STEP_PREPEND;
    return put_string(&s->put, put);
}

static err parse_strip(const json_t *v, const char *where, step *s) {
    s->kind = STEP_STRIP;
    s->left = s->right = true;
    err e = json_opt_bool(v, "strip_left", where, &s->left);
    return e.code ? e : json_opt_bool(v, "strip_right", where, &s->right);
}

static bool parse_form(const char *type, step *s) {
    static const struct {
        const char *type;
        int form;
    } forms[] = {
        {"NFC", UTF8PROC_STABLE | UTF8PROC_COMPOSE},
        {"NFD", UTF8PROC_STABLE | UTF8PROC_DECOMPOSE},
        {"NFKC", UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT},
        {"NFKD", UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT},
    };
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        if (strcmp(type, forms[i].type) != 0) continue;
        s->kind = STEP_FORM;
        s->form = (utf8proc_option_t)forms[i].form;
        return true;
    }
    return false;
}

static err parse(const json_t *v, const char *where, int depth, normalizer *z);

static err parse_sequence(const json_t *v, const char *where, int depth, normalizer *z) {
    const json_t *list = json_object_get(v, "normalizers");
    if (!json_is_array(list) || depth > 4)
        return err_make(ERR_INPUT, where, NULL, "a damaged Sequence of normalizers");
    err e = err_none();
    for (size_t i = 0; i < json_array_size(list) && !e.code; i++)
        e = parse(json_array_get(list, i), where, depth + 1, z);
    return e;
}

static err parse(const json_t *v, const char *where, int depth, normalizer *z) {
    const char *type;
    err e = json_get_str(v, "type", where, &type);
    if (e.code) return e;
    if (strcmp(type, "Sequence") == 0) return parse_sequence(v, where, depth, z);
    if (z->n_steps == MAX_STEPS) return err_make(ERR_INPUT, where, NULL, "too many normalizers");
    step *s = &z->steps[z->n_steps++];
    if (strcmp(type, "Prepend") == 0) return parse_prepend(v, where, s);
    if (strcmp(type, "Replace") == 0) return parse_replace(v, where, s);
    if (strcmp(type, "Strip") == 0) return parse_strip(v, where, s);
    if (strcmp(type, "Lowercase") == 0) {
        s->kind = STEP_LOWERCASE;
        return err_none();
    }
    if (parse_form(type, s)) return err_none();
    return err_make(ERR_INPUT, where, NULL, "normalizer \"%s\" is not supported", type);
}

err normalizer_create(const json_t *v, const char *where, normalizer **out) {
    *out = NULL;
    normalizer *z = calloc(1, sizeof *z);
    if (!z) return growbuf_full();
    err e = v && !json_is_null(v) ? parse(v, where, 0, z) : err_none();
    if (e.code)
        normalizer_destroy(&z);
    else
        *out = z;
    return e;
}

void normalizer_destroy(normalizer **z) {
    if (!*z) return;
    for (int i = 0; i < (*z)->n_steps; i++) {
        growbuf_clear(&(*z)->steps[i].find);
        growbuf_clear(&(*z)->steps[i].put);
    }
    free(*z);
    *z = NULL;
}

/* The rest of each step: from (text, len) to b, which is empty; false where memory ends. */

static bool apply_form(const step *s, const char *text, size_t len, growbuf *b) {
    utf8proc_uint8_t *done = NULL;
    utf8proc_ssize_t n =
        utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)len, &done, s->form);
    bool ok = n >= 0 && growbuf_add(b, done, (size_t)n);
    free(done);
    return ok;
}

static bool apply_replace(const step *s, const char *text, size_t len, growbuf *b) {
    const char *end = text + len;
    while (text < end) {
        const char *hit = memmem(text, (size_t)(end - text), s->find.data, s->find.len);
        if (!hit) break;
        if (!growbuf_add(b, text, (size_t)(hit - text))) return false;
        if (!growbuf_add(b, s->put.data, s->put.len)) return false;
        text = hit + s->find.len;
    }
    return growbuf_add(b, text, (size_t)(end - text));
}

static bool apply_lowercase(const char *text, size_t len, growbuf *b) {
    size_t width;
    for (size_t i = 0; i < len; i += width) {
        char small[4];
        uint32_t c = utf8_at(text + i, &width);
        /* the one character whose full lower case is two characters */
        bool ok = c == 0x130 ? growbuf_add(b, "i\xcc\x87", 3)
                             : growbuf_add(b, small,
                                           utf8_put((uint32_t)utf8proc_tolower((int32_t)c), small));
        if (!ok) return false;
    }
    return true;
}

static void apply_strip(const step *s, const char **text, size_t *len) {
    const char *begin = *text, *end = begin + *len;
    size_t width;
    while (s->left && begin < end && normalize_is_space(utf8_at(begin, &width))) begin += width;
    while (s->right && begin < end) {
        const char *last = utf8_before(begin, end);
        if (!normalize_is_space(utf8_at(last, &width))) break;
        end = last;
    }
    *text = begin;
    *len = (size_t)(end - begin);
}

static bool apply_step(const step *s, const char *text, size_t len, growbuf *b) {
    switch (s->kind) {
    case STEP_FORM:
        return apply_form(s, text, len, b);
    case STEP_PREPEND:
        return len == 0 || (growbuf_add(b, s->put.data, s->put.len) && growbuf_add(b, text, len));
    case STEP_REPLACE:
        return apply_replace(s, text, len, b);
    case STEP_LOWERCASE:
        return apply_lowercase(text, len, b);
    case STEP_STRIP:
        break;
    }
    return false;
}

err normalizer_apply(const normalizer *z, const char *text, size_t len, growbuf tmp[2],
                     const char **out, size_t *out_len, bool *kept_start) {
    int turn = 0;
    for (int i = 0; i < z->n_steps; i++) {
        const step *s = &z->steps[i];
        if (s->kind == STEP_STRIP) {
            const char *before = text;
            apply_strip(s, &text, &len);
            if (kept_start && text != before) *kept_start = false;
            continue;
        }
        growbuf *b = &tmp[turn];
        b->len = 0;
        if (!growbuf_reserve(b, len + 8) || !apply_step(s, text, len, b)) return growbuf_full();
        text = b->data;
        len = b->len;
        turn = 1 - turn;
    }
    *out = text;
    *out_len = len;
    return err_none();
}
