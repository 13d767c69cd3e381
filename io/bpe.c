/* Loads vocabulary and merges into hash tables: a pair of ids gives the rank of its merge and the
 * id of the result. Encoding is in bpe_run.c. */
#include "io/bpe_internal.h"

#include "io/utf8.h"

#include <stdio.h>
#include <stdlib.h>

static const char *const FETCH = "fetch tokenizer.json again";

/* GPT-2's alphabet: the printable characters of Latin-1 stand for themselves, the other bytes for
 * the characters from 256 on, in order. */
size_t bpe_spell_byte(unsigned byte, char to[4]) {
    if (byte <= 32) return utf8_put(256 + byte, to);
    if (byte >= 127 && byte <= 160) return utf8_put(256 + 33 + (byte - 127), to);
    if (byte == 173) return utf8_put(256 + 33 + 34, to);
    return utf8_put(byte, to);
}

bpe_start bpe_start_of(const bpe *b, const char *character, size_t width) {
    bpe_start s = {.n = 1};
    s.ids[0] = vocab_find(b->vocab, character, width);
    s.direct = s.ids[0] >= 0;
    if (s.direct) return s;
    s.n = b->byte_fallback ? (int)width : 0;
    for (size_t i = 0; i < width && s.n; i++) {
        s.ids[i] = b->byte_token[(unsigned char)character[i]];
        if (s.ids[i] < 0) s.n = 0;
    }
    return s;
}

/* Options that change ids and that we do not have are refused. */
static err refuse_options(const json_t *model, const char *where) {
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    double dropout = 0;
    for (int i = 0; i < 2; i++) {
        const char *text = "";
        err e = json_opt_str(model, affixes[i], where, &text);
        if (e.code) return e;
        if (*text) return err_make(ERR_INPUT, where, NULL, "\"%s\" is not supported", affixes[i]);
    }
    err e = json_opt_real(model, "dropout", where, &dropout);
    if (!e.code && dropout != 0)
        e = err_make(ERR_INPUT, where, "set it to null", "\"dropout\" is not supported");
    return e;
}

static err parse_options(const json_t *model, const char *where, bpe *b) {
    const char *unk = "";
    err e = json_opt_bool(model, "byte_fallback", where, &b->byte_fallback);
    if (!e.code) e = json_opt_bool(model, "fuse_unk", where, &b->fuse_unk);
    if (!e.code) e = json_opt_bool(model, "ignore_merges", where, &b->ignore_merges);
    if (!e.code) e = json_opt_str(model, "unk_token", where, &unk);
    if (!e.code) e = refuse_options(model, where);
    if (e.code) return e;
    if (strlen(unk) >= sizeof b->unk_name)
        return err_make(ERR_INPUT, where, NULL, "\"unk_token\" is too long");
    strcpy(b->unk_name, unk);
    return err_none();
}

static err parse_vocab(json_t *model, const char *where, bpe *b) {
    json_t *list = json_object_get(model, "vocab"), *id;
    const char *token;
    if (!json_is_object(list) || json_object_size(list) == 0)
        return err_make(ERR_INPUT, where, NULL, "the model has no vocabulary");
    b->vocab = vocab_create(json_object_size(list));
    if (!b->vocab) return growbuf_full();
    json_object_foreach(list, token, id) {
        if (!json_is_integer(id))
            return err_make(ERR_INPUT, where, NULL, "the id of token \"%.40s\" is not an integer",
                            token);
        err e = vocab_add(b->vocab, token, json_integer_value(id), where);
        if (e.code) return e;
    }
    return err_none();
}

/* The parts of a merge: "a b" (exactly one space) or ["a", "b"]. */
static bool merge_parts(const json_t *v, const char *part[2], size_t len[2]) {
    if (json_is_string(v)) {
        const char *text = json_string_value(v), *space = strchr(text, ' ');
        if (!space || strchr(space + 1, ' ')) return false;
        part[0] = text;
        part[1] = space + 1;
        len[0] = (size_t)(space - text);
        len[1] = json_string_length(v) - len[0] - 1;
        return true;
    }
    if (json_array_size(v) != 2) return false;
    for (size_t i = 0; i < 2; i++) {
        part[i] = json_string_value(json_array_get(v, i));
        if (!part[i]) return false;
        len[i] = strlen(part[i]);
    }
    return true;
}

static void put_merge(bpe *b, int32_t left, int32_t right, uint32_t rank, int32_t id) {
    uint64_t pair = bpe_pair(left, right);
    uint64_t i = (pair * 0x9e3779b97f4a7c15u) >> 20;
    while (b->merges[i & b->mask].pair != BPE_NO_PAIR && b->merges[i & b->mask].pair != pair) i++;
    b->merges[i & b->mask] = (bpe_merge){pair, rank, id}; /* a pair told twice: the last counts */
}

/* Does a mark follow another character in it? Then cutting there would lose the merge. */
static bool reaches_over_mark(const char *text, size_t len) {
    for (const char *p = text; (p = memmem(p, len - (size_t)(p - text), BPE_MARK, BPE_MARK_LEN));
         p += BPE_MARK_LEN)
        if (p > text &&
            (p - text < BPE_MARK_LEN || memcmp(p - BPE_MARK_LEN, BPE_MARK, BPE_MARK_LEN)))
            return true;
    return false;
}

static err add_merge(bpe *b, const json_t *v, uint32_t rank, growbuf *joined, const char *where) {
    const char *part[2];
    size_t len[2];
    if (!merge_parts(v, part, len))
        return err_make(ERR_INPUT, where, FETCH, "merge %u is not a pair of tokens", rank);
    joined->len = 0;
    if (!growbuf_add(joined, part[0], len[0]) || !growbuf_add(joined, part[1], len[1]))
        return growbuf_full();
    int32_t left = vocab_find(b->vocab, part[0], len[0]);
    int32_t right = vocab_find(b->vocab, part[1], len[1]);
    int32_t both = vocab_find(b->vocab, joined->data, joined->len);
    if (left < 0 || right < 0 || both < 0)
        return err_make(ERR_INPUT, where, FETCH,
                        "merge %u, \"%.40s\" and \"%.40s\": %s not in the vocabulary", rank,
                        part[0], part[1],
                        both < 0 && left >= 0 && right >= 0 ? "the result is" : "a part is");
    if (b->cut_at_mark) b->cut_at_mark = !reaches_over_mark(joined->data, joined->len);
    put_merge(b, left, right, rank, both);
    return err_none();
}

enum { MAX_MERGES = 1 << 21 }; /* 64 MB of slots; the largest known list has a fifth of it */

static err parse_merges(const json_t *model, const char *where, bpe *b) {
    const json_t *list = json_object_get(model, "merges");
    size_t n = json_array_size(list);
    uint64_t slots = 64;
    if (!json_is_array(list))
        return err_make(ERR_INPUT, where, NULL, "the model has no list of merges");
    if (n > MAX_MERGES)
        return err_make(ERR_INPUT, where, NULL, "%zu merges; at most %d are read", n, MAX_MERGES);
    while (slots < 2 * (uint64_t)n) slots *= 2;
    b->merges = malloc(slots * sizeof *b->merges);
    if (!b->merges) return growbuf_full();
    for (uint64_t i = 0; i < slots; i++) b->merges[i].pair = BPE_NO_PAIR;
    b->mask = slots - 1;
    growbuf joined = {0};
    err e = err_none();
    for (size_t i = 0; i < n && !e.code; i++)
        e = add_merge(b, json_array_get(list, i), (uint32_t)i, &joined, where);
    growbuf_clear(&joined);
    return e;
}

static void fill_tables(bpe *b) {
    for (unsigned i = 0; i < 256; i++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", i);
        b->byte_token[i] = vocab_find(b->vocab, name, 6);
    }
    for (unsigned i = 0; i < 256; i++) {
        char text[4] = {(char)i};
        size_t width = b->byte_level ? bpe_spell_byte(i, text) : 1;
        if (b->byte_level || i < 128) b->of_byte[i] = bpe_start_of(b, text, width);
    }
    b->unk = *b->unk_name ? vocab_find(b->vocab, b->unk_name, strlen(b->unk_name)) : -1;
}

static err check_type(const json_t *model, const char *where) {
    const char *type = "BPE"; /* files of before the key existed */
    if (!json_is_object(model)) return err_make(ERR_INPUT, where, NULL, "there is no \"model\"");
    err e = json_opt_str(model, "type", where, &type);
    if (e.code || strcmp(type, "BPE") == 0) return e;
    return err_make(ERR_INPUT, where, "only BPE tokenizers are read",
                    "model \"%s\" is not supported", type);
}

err bpe_create(const json_t *model, bool byte_level, const char *where, bpe **out) {
    *out = NULL;
    err e = check_type(model, where);
    if (e.code) return e;
    bpe *b = calloc(1, sizeof *b);
    if (!b) return growbuf_full();
    b->byte_level = byte_level;
    e = parse_options(model, where, b);
    if (!e.code) e = parse_vocab((json_t *)model, where, b);
    if (!e.code) {
        /* with ignore_merges a whole word may be a token; without a token of its own the mark may
         * be fused into an unknown one */
        b->cut_at_mark =
            !byte_level && !b->ignore_merges && vocab_find(b->vocab, BPE_MARK, BPE_MARK_LEN) >= 0;
        fill_tables(b);
        e = parse_merges(model, where, b);
    }
    if (e.code)
        bpe_destroy(&b);
    else
        *out = b;
    return e;
}

void bpe_destroy(bpe **b) {
    if (!*b) return;
    vocab_destroy(&(*b)->vocab);
    free((*b)->merges);
    free(*b);
    *b = NULL;
}

int64_t bpe_vocab_size(const bpe *b) {
    return vocab_size(b->vocab);
}

int32_t bpe_id(const bpe *b, const char *token) {
    return vocab_find(b->vocab, token, strlen(token));
}

const char *bpe_token(const bpe *b, int32_t id) {
    return vocab_token(b->vocab, id);
}
