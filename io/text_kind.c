/* JSON lines are told by their first line, and an array by its first two signs and its end. */
#include "io/text_kind.h"

#include "base/json.h"
#include "io/growbuf.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* docs/FORMATS.md has it in six lines. */
#define CHAT                                                                                       \
    "render them by the model's chat template: python -c \"import json, sys, transformers as t; "  \
    "k = t.AutoTokenizer.from_pretrained(sys.argv[2]); [print(json.dumps({'text': "                \
    "k.apply_chat_template(json.loads(x)['messages'], tokenize=False)})) for x in "                \
    "open(sys.argv[1])]\" FILE MODEL > TEXTS"

void text_kind_drop_mark(char *text, size_t *len) {
    if (*len < 3 || memcmp(text, "\xef\xbb\xbf", 3) != 0) return;
    *len -= 3;
    memmove(text, text + 3, *len + 1); /* with the NUL behind */
}

static bool is_blank(const char *line, size_t n) {
    size_t i = 0;
    while (i < n && strchr(" \t\r\n", line[i]) && line[i]) i++;
    return i == n;
}

/* One line at *at, without its end; *at moves behind it. */
static const char *next_line(const char *text, size_t len, size_t *at, size_t *n) {
    const char *line = text + *at, *end = memchr(line, '\n', len - *at);
    *n = end ? (size_t)(end - line) : len - *at;
    *at += *n + (end != NULL);
    return line;
}

static bool first_is_object(const char *text, size_t len) {
    size_t n = 0;
    const char *line = "";
    for (size_t at = 0; at < len && is_blank(line, n);) line = next_line(text, len, &at, &n);
    json_t *v = NULL;
    const bool yes = n && line[0] == '{' && !json_parse(line, n, "", &v).code && json_is_object(v);
    json_decref(v);
    return yes;
}

/* A text may begin with a bracket; one that is a JSON array of texts or objects was not meant so.
 */
static bool is_array(const char *text, size_t len) {
    size_t i = 0;
    while (i < len && text[i] && strchr(" \t\r\n", text[i])) i++;
    if (i == len || text[i] != '[') return false;
    for (i++; i < len && text[i] && strchr(" \t\r\n", text[i]); i++) {
    }
    json_t *v = NULL;
    if (i == len || (text[i] != '{' && text[i] != '"')) return false;
    if (!json_values_fit(text, len)) return true;
    const bool yes = !json_parse(text, len, "", &v).code && json_is_array(v);
    json_decref(v);
    return yes;
}

static err unfold_line(const char *line, size_t n, const char *where, growbuf *out) {
    json_t *v = NULL;
    err e = json_parse(line, n, where, &v);
    const json_t *text = json_object_get(v, "text");
    if (!e.code && !json_is_string(text) && json_is_array(json_object_get(v, "messages")))
        e = err_make(ERR_INPUT, where, CHAT,
                     "conversations (\"messages\"), which each model writes in its own way");
    else if (!e.code && !json_is_string(text))
        e = err_make(ERR_INPUT, where, "name the key of the texts \"text\", or give a plain text",
                     "JSON lines, and this one has no \"text\"");
    if (!e.code && (!growbuf_add(out, json_string_value(text), json_string_length(text)) ||
                    !growbuf_add(out, "\n", 1)))
        e = growbuf_full();
    json_decref(v);
    return e;
}

err text_kind_unfold(const char *path, char **text, size_t *len) {
    if (is_array(*text, *len))
        return err_make(ERR_INPUT, path,
                        "make lines of it: jq -c '.[]' FILE > FILE.jsonl, each an object with "
                        "\"text\"; or give a plain text",
                        "a JSON array, not a text");
    if (!first_is_object(*text, *len)) return err_none();
    growbuf out = {0};
    int64_t number = 0;
    err e = growbuf_reserve(&out, *len + 1) ? err_none() : growbuf_full();
    for (size_t at = 0, n; at < *len && !e.code;) {
        const char *line = next_line(*text, *len, &at, &n);
        char where[320];
        snprintf(where, sizeof where, "%.280s, line %" PRId64, path, ++number);
        if (!is_blank(line, n)) e = unfold_line(line, n, where, &out);
    }
    if (!e.code && !growbuf_add(&out, "", 1)) e = growbuf_full();
    if (e.code) {
        growbuf_clear(&out);
        return e;
    }
    free(*text);
    *len = out.len - 1;
    *text = (char *)out.data;
    return e;
}
