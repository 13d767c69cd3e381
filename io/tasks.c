/* One JSON object a line; the keys of the first line decide the shape that all must have. */
#include "io/tasks.h"

#include "base/json.h"
#include "io/text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_FILE_BYTES = 256 << 20, MAX_LINE_BYTES = 1 << 20 };

typedef struct item {
    json_t *line; /* owned */
    int options, gold;
} item;

struct task_set {
    task_shape shape;
    item *items;
    int64_t n, room;
};

static const struct {
    const char *first, *second; /* keys of the two parts; one of them is a list, or none */
    int keys;
} shapes[] = {[TASK_CHOICES] = {"query", "choices", 3},
              [TASK_PROMPT] = {"context", "choices", 3},
              [TASK_CONTEXTS] = {"contexts", "continuation", 3},
              [TASK_WORD] = {"context", "continuation", 2}};

static const json_t *part(const json_t *line, const char *key, int k) {
    const json_t *v = json_object_get(line, key);
    return json_is_array(v) ? json_array_get(v, (size_t)k) : v;
}

static err shape_of(const json_t *line, const char *where, task_shape *out) {
    for (int s = 0; s <= TASK_WORD; s++)
        if (json_object_get(line, shapes[s].first) && json_object_get(line, shapes[s].second)) {
            *out = (task_shape)s;
            if ((int)json_object_size(line) == shapes[s].keys) return err_none();
        }
    return err_make(
        ERR_INPUT, where,
        "keys are query (or context), choices, gold; or contexts, continuation, gold; or "
        "context, continuation",
        "not an item of a task: missing or unknown keys");
}

static err check_list(const json_t *line, const char *key, const char *where, int *n) {
    const json_t *v = json_object_get(line, key);
    const size_t size = json_array_size(v);
    if (!json_is_array(v) || size < 2 || size > TASK_MAX_OPTIONS)
        return err_make(ERR_INPUT, where, NULL, "\"%s\" must be a list of 2 to %d texts", key,
                        TASK_MAX_OPTIONS);
    *n = (int)size;
    return err_none();
}

static err check_text(const json_t *v, const char *key, bool may_be_empty, const char *where) {
    if (!json_is_string(v)) return err_make(ERR_INPUT, where, NULL, "\"%s\" must be text", key);
    if (!may_be_empty && !json_string_length(v))
        return err_make(ERR_INPUT, where, NULL, "\"%s\" has an empty text", key);
    return err_none();
}

static err check_item(task_shape shape, const char *where, item *it) {
    const char *first = shapes[shape].first, *second = shapes[shape].second;
    int64_t gold = 0;
    err e = err_none();
    it->options = 1;
    const bool choices = shape == TASK_CHOICES || shape == TASK_PROMPT;
    if (choices) e = check_list(it->line, second, where, &it->options);
    if (shape == TASK_CONTEXTS) e = check_list(it->line, first, where, &it->options);
    const bool lists[2] = {json_is_array(json_object_get(it->line, first)),
                           json_is_array(json_object_get(it->line, second))};
    if (!e.code && (lists[0] != (shape == TASK_CONTEXTS) || lists[1] != choices))
        e = err_make(ERR_INPUT, where, NULL, "\"%s\" must be text", lists[0] ? first : second);
    for (int k = 0; k < it->options && !e.code; k++) {
        e = check_text(part(it->line, first, k), first, true, where);
        if (!e.code) e = check_text(part(it->line, second, k), second, false, where);
    }
    if (!e.code && shape != TASK_WORD)
        e = json_get_int(it->line, "gold", 0, it->options - 1, where, &gold);
    it->gold = (int)gold;
    return e;
}

static item *add(task_set *t) {
    if (t->n == t->room) {
        t->room = t->room ? 2 * t->room : 256;
        t->items = realloc(t->items, (size_t)t->room * sizeof *t->items);
        if (!t->items) abort();
    }
    item *it = &t->items[t->n++];
    *it = (item){.line = NULL};
    return it;
}

static err add_line(task_set *t, const char *line, size_t len, const char *where) {
    task_shape shape = TASK_CHOICES;
    item *it = add(t);
    err e = json_parse(line, len, where, &it->line);
    if (!e.code && !json_is_object(it->line))
        e = err_make(ERR_INPUT, where, NULL, "not a JSON object");
    if (!e.code) e = shape_of(it->line, where, &shape);
    if (!e.code && t->n == 1) t->shape = shape;
    if (!e.code && shape != t->shape)
        e = err_make(ERR_INPUT, where, "give each kind a file of its own",
                     "an item of another kind than those before");
    return e.code ? e : check_item(shape, where, it);
}

static bool is_blank(const char *line, size_t n) {
    while (n && (*line == ' ' || *line == '\t' || *line == '\r')) line++, n--;
    return n == 0;
}

err task_set_parse(const char *text, size_t len, const char *where, task_set **out) {
    task_set *t = calloc(1, sizeof *t);
    int64_t number = 0;
    err e = err_none();
    *out = NULL;
    if (!t) abort();
    while (len && (text[len - 1] == '\n' || text[len - 1] == '\r')) len--;
    for (size_t at = 0; at < len && !e.code;) {
        const char *end = memchr(text + at, '\n', len - at);
        const size_t n = end ? (size_t)(end - text) - at : len - at;
        char place[320];
        snprintf(place, sizeof place, "%.280s, line %" PRId64, where, ++number);
        if (is_blank(text + at, n)) {
            at += n + 1;
            continue;
        }
        if (n > MAX_LINE_BYTES)
            e = err_make(ERR_INPUT, place, NULL, "longer than %d bytes", MAX_LINE_BYTES);
        else
            e = add_line(t, text + at, n, place);
        at += n + 1;
    }
    if (!e.code && !t->n) e = err_make(ERR_INPUT, where, NULL, "holds no items");
    if (e.code) {
        task_set_destroy(&t);
        return e;
    }
    *out = t;
    return e;
}

err task_set_read(const char *path, task_set **out) {
    char *text = NULL;
    size_t len = 0;
    *out = NULL;
    err e = text_read_lines(path, &text, &len);
    if (!e.code && len > MAX_FILE_BYTES)
        e = err_make(ERR_INPUT, path, NULL, "longer than %d bytes", MAX_FILE_BYTES);
    if (!e.code) e = task_set_parse(text, len, path, out);
    free(text);
    return e;
}

void task_set_destroy(task_set **t) {
    if (!*t) return;
    for (int64_t i = 0; i < (*t)->n; i++) json_decref((*t)->items[i].line);
    free((*t)->items);
    free(*t);
    *t = NULL;
}

task_shape task_set_shape(const task_set *t) {
    return t->shape;
}

int64_t task_set_count(const task_set *t) {
    return t->n;
}

int task_options(const task_set *t, int64_t i) {
    return t->items[i].options;
}

int task_gold(const task_set *t, int64_t i) {
    return t->items[i].gold;
}

const char *task_context(const task_set *t, int64_t i, int k) {
    return json_string_value(part(t->items[i].line, shapes[t->shape].first, k));
}

const char *task_continuation(const task_set *t, int64_t i, int k) {
    return json_string_value(part(t->items[i].line, shapes[t->shape].second, k));
}
