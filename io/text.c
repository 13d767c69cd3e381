/* Whole files into memory; a scanner for ids in decimal with spaces or commas between; windows are
 * places in one array of ids. */
#include "io/text.h"

#include "base/file.h"
#include "base/file_kind.h"
#include "base/mem.h"
#include "base/size.h"
#include "io/growbuf.h"
#include "io/text_kind.h"
#include "io/utf8.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

/* A text is held whole, with its ids; above this it is taken for a mistake. */
static const uint64_t MAX_TEXT_BYTES = (uint64_t)64 << 30;

struct text_windows {
    int64_t count, length;
    int32_t *ids; /* [count, length]; owns */
    char bos[160];
};

err text_read_lines(const char *path, char **text, size_t *len) {
    err e = file_read_all(path, MAX_TEXT_BYTES, text, len);
    if (e.code) return e;
    e = file_kind_refuse(path, *text, *len, true, "a UTF-8 text");
    text_kind_drop_mark(*text, len);
    size_t good = e.code ? 0 : utf8_check(*text, *len);
    if (!e.code && good < *len)
        e = err_make(ERR_INPUT, path, "convert the text to UTF-8", "byte %zu is not UTF-8", good);
    if (!e.code) return e;
    free(*text);
    *text = NULL;
    return e;
}

err text_read(const char *path, char **text, size_t *len) {
    err e = text_read_lines(path, text, len);
    if (!e.code) e = text_kind_unfold(path, text, len);
    if (!e.code) return e;
    free(*text);
    *text = NULL;
    return e;
}

static size_t skip_blank(const char *text, size_t len, size_t i) {
    while (i < len && text[i] && strchr(" \t\r\n\v\f", text[i])) i++;
    return i;
}

static err bad_id(const char *path, int64_t n, const char *what) {
    return err_make(ERR_INPUT, path,
                    "give integers between white space or commas, or one JSON array",
                    "after %" PRId64 " token ids: %s", n, what);
}

/* One id at *at; it ends where a digit no longer follows. */
static err parse_id(const char *path, const char *text, size_t len, size_t *at, int64_t vocab,
                    growbuf *ids) {
    int64_t v = 0, n = (int64_t)(ids->len / sizeof(int32_t));
    size_t i = *at;
    for (; i < len && text[i] >= '0' && text[i] <= '9'; i++)
        if (v <= INT32_MAX) v = 10 * v + (text[i] - '0');
    if (i == *at) return bad_id(path, n, "not an integer that is 0 or more");
    if (v >= vocab || v > INT32_MAX)
        return err_make(ERR_INPUT, path, "the ids must come from the tokenizer of this model",
                        "token id %" PRId64 " (number %" PRId64 ") is not in 0..%" PRId64, v, n,
                        vocab - 1);
    int32_t id = (int32_t)v;
    *at = i;
    return growbuf_add(ids, &id, sizeof id) ? err_none() : growbuf_full();
}

/* What stands between two ids: white space, or one comma in white space; in a list the comma must
 * be there. Moves *at behind it; *more tells whether an id must follow. */
static bool skip_separator(const char *text, size_t len, bool list, size_t *at, bool *more) {
    size_t end = skip_blank(text, len, *at);
    bool blank = end > *at;
    *at = end;
    *more = end < len && text[end] == ',';
    if (*more)
        *at = skip_blank(text, len, end + 1);
    else if (end < len && text[end] != ']')
        return blank && !list;
    return true;
}

static err parse_ids(const char *path, const char *text, size_t len, int64_t vocab, growbuf *ids) {
    size_t i = skip_blank(text, len, 0);
    bool list = i < len && text[i] == '[', more = false;
    if (list) i = skip_blank(text, len, i + 1);
    while (more || (i < len && text[i] != ']')) {
        err e = parse_id(path, text, len, &i, vocab, ids);
        if (e.code) return e;
        if (!skip_separator(text, len, list, &i, &more))
            return bad_id(path, (int64_t)(ids->len / sizeof(int32_t)), "no separator");
    }
    int64_t n = (int64_t)(ids->len / sizeof(int32_t));
    if (list && i == len) return bad_id(path, n, "the list has no end");
    if (list) i = skip_blank(text, len, i + 1);
    return i < len ? bad_id(path, n, "something stands behind the end") : err_none();
}

err text_read_ids(const char *path, int64_t vocab, int32_t **ids, int64_t *n) {
    char *text;
    size_t len;
    growbuf found = {0};
    *ids = NULL;
    *n = 0;
    err e = file_read_all(path, MAX_TEXT_BYTES, &text, &len);
    if (e.code) return e;
    e = file_kind_refuse(path, text, len, true, "token ids");
    if (!e.code && !growbuf_reserve(&found, 64)) e = growbuf_full();
    if (!e.code) e = parse_ids(path, text, len, vocab, &found);
    free(text);
    if (e.code) {
        growbuf_clear(&found);
        return e;
    }
    *ids = (int32_t *)found.data;
    *n = (int64_t)(found.len / sizeof(int32_t));
    return e;
}

/* The tokens in front of each window. */
static err choose_bos(bos_mode mode, int32_t bos_id, const tokenizer *t, const char *where,
                      int32_t ids[TOKENIZER_MAX_AFFIX], int64_t *n) {
    *n = 0;
    if (mode == BOS_NONE) return err_none();
    if (t) *n = tokenizer_prefix(t, ids);
    if (mode == BOS_AUTO || *n) return err_none();
    if (bos_id < 0)
        return err_make(ERR_INPUT, where, "use calib.bos=auto or none",
                        "bos is each-window, but the model has no BOS token");
    ids[0] = bos_id;
    *n = 1;
    return err_none();
}

static void name_bos(const int32_t *ids, int64_t n, const tokenizer *t, char *to, size_t size) {
    size_t used = (size_t)snprintf(to, size, "%s", n ? "" : "none");
    for (int64_t i = 0; i < n && used < size; i++) {
        const char *token = t ? tokenizer_token(t, ids[i]) : NULL;
        int got = token ? snprintf(to + used, size - used, "%s%.24s (%" PRId32 ")", i ? " " : "",
                                   token, ids[i])
                        : snprintf(to + used, size - used, "%sid %" PRId32, i ? " " : "", ids[i]);
        used += (size_t)got;
    }
}

static void fill(text_windows *w, const int32_t *ids, const int32_t *bos, int64_t n_bos) {
    int64_t n_text = w->length - n_bos;
    for (int64_t i = 0; i < w->count; i++) {
        int32_t *to = w->ids + i * w->length;
        if (n_bos) memcpy(to, bos, (size_t)n_bos * sizeof *to);
        memcpy(to + n_bos, ids + i * n_text, (size_t)n_text * sizeof *to);
    }
}

err text_windows_create(const int32_t *ids, int64_t n, int64_t window, int64_t limit, int64_t tail,
                        bos_mode mode, int32_t bos_id, const tokenizer *t, const char *where,
                        text_windows **out) {
    int32_t bos[TOKENIZER_MAX_AFFIX];
    int64_t n_bos;
    *out = NULL;
    err e = choose_bos(mode, bos_id, t, where, bos, &n_bos);
    if (e.code) return e;
    int64_t n_text = window - n_bos;
    if (window < 2 || n_text < 1)
        return err_make(ERR_USAGE, "window", "use a longer window",
                        "a window of %" PRId64 " tokens with %" PRId64 " of BOS predicts nothing",
                        window, n_bos);
    if (tail > 0 && tail < n) {
        ids += n - tail;
        n = tail;
    }
    if (n < n_text)
        return err_make(ERR_INPUT, where, "give a longer text or a shorter window",
                        "the text has %" PRId64 " tokens, one window needs %" PRId64, n, n_text);
    int64_t count = n / n_text, total;
    if (limit > 0) count = size_min(count, limit);
    if (__builtin_mul_overflow(count, window, &total))
        return err_make(ERR_INPUT, where, NULL, "too many tokens");
    text_windows *w = calloc(1, sizeof *w);
    if (!w) return growbuf_full();
    e = MEM_NEW(&w->ids, total, "text windows");
    if (e.code) {
        free(w);
        return e;
    }
    w->count = count;
    w->length = window;
    fill(w, ids, bos, n_bos);
    name_bos(bos, n_bos, t, w->bos, sizeof w->bos);
    *out = w;
    return err_none();
}

void text_windows_destroy(text_windows **w) {
    if (!*w) return;
    mem_free((*w)->ids);
    free(*w);
    *w = NULL;
}

int64_t text_windows_count(const text_windows *w) {
    return w->count;
}

int64_t text_windows_length(const text_windows *w) {
    return w->length;
}

const int32_t *text_window_at(const text_windows *w, int64_t i) {
    return w->ids + i * w->length;
}

const char *text_windows_bos(const text_windows *w) {
    return w->bos;
}
