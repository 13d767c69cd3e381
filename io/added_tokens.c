/* The strings are kept in a tree of bytes; at each place of a text the longest match wins, subject
 * to the flags for words and spaces. */
#include "io/added_tokens.h"

#include "io/utf8.h"
#include "io/vocab.h"

#include <inttypes.h>
#include <stdlib.h>

typedef struct added {
    int32_t id;
    bool single_word, lstrip, rstrip;
} added;

/* A node of a tree of bytes: first child and next sibling; 0 is none, since 0 is the root. */
typedef struct node {
    uint32_t child, sibling;
    int32_t token; /* index of the token that ends here, or -1 */
    unsigned char byte;
} node;

struct added_tokens {
    vocab *names;
    growbuf tokens;                /* added */
    growbuf nodes[ADDED_ROUNDS];   /* node */
    bool first[ADDED_ROUNDS][256]; /* may a token begin with the byte? */
};

static bool tree_create(growbuf *nodes) {
    node root = {.token = -1};
    return growbuf_add(nodes, &root, sizeof root);
}

static uint32_t tree_child(const growbuf *nodes, uint32_t at, unsigned char byte) {
    const node *n = (const node *)nodes->data;
    uint32_t i = n[at].child;
    while (i && n[i].byte != byte) i = n[i].sibling;
    return i;
}

static bool tree_put(growbuf *nodes, const char *text, size_t len, int32_t token) {
    uint32_t at = 0;
    for (size_t i = 0; i < len; i++) {
        unsigned char byte = (unsigned char)text[i];
        uint32_t next = tree_child(nodes, at, byte);
        if (!next) {
            node fresh = {.token = -1, .byte = byte, .sibling = ((node *)nodes->data)[at].child};
            next = (uint32_t)(nodes->len / sizeof fresh);
            if (!growbuf_add(nodes, &fresh, sizeof fresh)) return false;
            ((node *)nodes->data)[at].child = next;
        }
        at = next;
    }
    node *end = (node *)nodes->data + at;
    if (end->token < 0) end->token = token; /* of two that normalize to the same, the first */
    return true;
}

/* The longest token that begins at text, or -1. */
static int32_t tree_longest(const growbuf *nodes, const char *text, size_t len, size_t *stop) {
    uint32_t at = 0;
    int32_t found = -1;
    for (size_t i = 0; i < len; i++) {
        at = tree_child(nodes, at, (unsigned char)text[i]);
        if (!at) break;
        if (((const node *)nodes->data)[at].token < 0) continue;
        found = ((const node *)nodes->data)[at].token;
        *stop = i + 1;
    }
    return found;
}

static err check_against_model(const char *name, int64_t id, const bpe *model, const char *where) {
    int32_t known = bpe_id(model, name);
    if (known >= 0 && known != id)
        return err_make(ERR_INPUT, where, NULL,
                        "added token \"%.40s\" has the id %" PRId64 ", but %" PRId32
                        " in the vocabulary",
                        name, id, known);
    const char *other = known < 0 && id <= VOCAB_MAX_ID ? bpe_token(model, (int32_t)id) : NULL;
    if (other)
        return err_make(ERR_INPUT, where, NULL,
                        "id %" PRId64 " is given to \"%.40s\" and to the added token \"%.40s\"", id,
                        other, name);
    return err_none();
}

static err put_token(added_tokens *a, const char *name, added t, bool normalized,
                     const normalizer *z) {
    growbuf tmp[2] = {{0}, {0}};
    const char *text = name;
    size_t len = strlen(name);
    added_round round = normalized ? ADDED_NORMALIZED : ADDED_RAW;
    int32_t index = (int32_t)(a->tokens.len / sizeof t);
    err e = normalized ? normalizer_apply(z, name, len, tmp, &text, &len, NULL) : err_none();
    if (!e.code && len) {
        a->first[round][(unsigned char)*text] = true;
        if (!growbuf_add(&a->tokens, &t, sizeof t) || !tree_put(&a->nodes[round], text, len, index))
            e = growbuf_full();
    }
    growbuf_clear(&tmp[0]);
    growbuf_clear(&tmp[1]);
    return e;
}

static err parse_token(added_tokens *a, const json_t *v, const normalizer *z, const bpe *model,
                       const char *where) {
    const char *name;
    added t = {0};
    int64_t id;
    bool special = false;
    err e = json_get_str(v, "content", where, &name);
    if (!e.code) e = json_get_int(v, "id", 0, VOCAB_MAX_ID, where, &id);
    if (!e.code) e = json_opt_bool(v, "special", where, &special);
    if (!e.code) e = check_against_model(name, id, model, where);
    if (!e.code) e = vocab_add(a->names, name, id, where);
    if (e.code) return e;
    bool normalized = !special;
    t.id = (int32_t)id;
    e = json_opt_bool(v, "single_word", where, &t.single_word);
    if (!e.code) e = json_opt_bool(v, "lstrip", where, &t.lstrip);
    if (!e.code) e = json_opt_bool(v, "rstrip", where, &t.rstrip);
    if (!e.code) e = json_opt_bool(v, "normalized", where, &normalized);
    return e.code ? e : put_token(a, name, t, normalized, z);
}

err added_tokens_create(const json_t *list, const normalizer *z, const bpe *model,
                        const char *where, added_tokens **out) {
    *out = NULL;
    if (list && !json_is_null(list) && !json_is_array(list))
        return err_make(ERR_INPUT, where, NULL, "\"added_tokens\" is not a list");
    added_tokens *a = calloc(1, sizeof *a);
    err e = a ? err_none() : growbuf_full();
    if (a) a->names = vocab_create(json_array_size(list));
    if (a && (!a->names || !tree_create(&a->nodes[ADDED_RAW]) ||
              !tree_create(&a->nodes[ADDED_NORMALIZED])))
        e = growbuf_full();
    for (size_t i = 0; !e.code && i < json_array_size(list); i++)
        e = parse_token(a, json_array_get(list, i), z, model, where);
    if (e.code)
        added_tokens_destroy(&a);
    else
        *out = a;
    return e;
}

void added_tokens_destroy(added_tokens **a) {
    if (!*a) return;
    vocab_destroy(&(*a)->names);
    growbuf_clear(&(*a)->tokens);
    for (int i = 0; i < ADDED_ROUNDS; i++) growbuf_clear(&(*a)->nodes[i]);
    free(*a);
    *a = NULL;
}

bool added_tokens_any(const added_tokens *a, added_round round) {
    return a->nodes[round].len > sizeof(node);
}

static bool word_before(const char *begin, const char *p) {
    size_t width;
    return p > begin && normalize_is_word(utf8_at(utf8_before(begin, p), &width));
}

static bool word_after(const char *p, const char *end) {
    size_t width;
    return p < end && normalize_is_word(utf8_at(p, &width));
}

static size_t spaces_before(const char *text, size_t start) {
    size_t width;
    while (start > 0) {
        const char *last = utf8_before(text, text + start);
        if (!normalize_is_space(utf8_at(last, &width))) break;
        start = (size_t)(last - text);
    }
    return start;
}

static size_t spaces_after(const char *text, size_t stop, size_t len) {
    size_t width;
    while (stop < len && normalize_is_space(utf8_at(text + stop, &width))) stop += width;
    return stop;
}

bool added_tokens_split(const added_tokens *a, added_round round, const char *text, size_t len,
                        added_sink sink, void *ctx) {
    size_t done = 0; /* all before it has been handed on */
    for (size_t i = 0; i < len;) {
        size_t width = 0;
        int32_t found = -1;
        if (a->first[round][(unsigned char)text[i]])
            found = tree_longest(&a->nodes[round], text + i, len - i, &width);
        if (found < 0) {
            i++;
            continue;
        }
        const added *t = (const added *)a->tokens.data + found;
        size_t start = i, stop = i + width;
        i = stop;
        if (t->single_word &&
            (word_before(text, text + start) || word_after(text + stop, text + len)))
            continue;
        if (t->lstrip) start = spaces_before(text, start);
        if (start < done) start = done; /* the token before took the spaces */
        if (t->rstrip) stop = spaces_after(text, stop, len);
        if (done < start && !sink(ctx, -1, text + done, start - done)) return false;
        if (!sink(ctx, t->id, text + start, stop - start)) return false;
        done = stop;
    }
    return done == len || sink(ctx, -1, text + done, len - done);
}

int64_t added_tokens_top(const added_tokens *a) {
    return vocab_size(a->names);
}

int32_t added_tokens_id(const added_tokens *a, const char *token) {
    return vocab_find(a->names, token, strlen(token));
}

const char *added_tokens_name(const added_tokens *a, int32_t id) {
    return vocab_token(a->names, id);
}
