/* The library's events are made into a JSON tree by recursive descent, and a tree is written as
 * blocks for the first level and flow style below. */
#include "base/yaml.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

enum { MAX_DEPTH = 64 };

static err refuse(const char *where, size_t line, const char *what) {
    return err_make(ERR_USAGE, where,
                    "correct that line; `spinshard quantize --help` lists the keys", "line %zu: %s",
                    line + 1, what);
}

/* YAML 1.2 core schema, section 10.3.2. */
static json_t *plain_scalar(const char *s) {
    if (!*s || !strcmp(s, "~") || !strcmp(s, "null")) return json_null();
    if (!strcmp(s, "true")) return json_true();
    if (!strcmp(s, "false")) return json_false();
    if (strspn(s, "+-.0123456789eE") == strlen(s) && strpbrk(s, "0123456789")) {
        char *end;
        errno = 0;
        long long i = strtoll(s, &end, 10);
        if (!*end && !errno) return json_integer(i);
        double d = strtod(s, &end);
        if (!*end && d - d == 0) return json_real(d);
    }
    return json_string(s);
}

static err build(yaml_parser_t *p, yaml_event_t *event, const char *where, int depth, json_t **out);

static err next_event(yaml_parser_t *p, const char *where, yaml_event_t *event) {
    if (yaml_parser_parse(p, event)) return err_none();
    return refuse(where, p->problem_mark.line, p->problem ? p->problem : "not YAML");
}

static err build_list(yaml_parser_t *p, const char *where, int depth, json_t *list) {
    for (;;) {
        yaml_event_t event;
        err e = next_event(p, where, &event);
        if (e.code) return e;
        bool end = event.type == YAML_SEQUENCE_END_EVENT;
        json_t *item = NULL;
        if (!end) e = build(p, &event, where, depth, &item);
        yaml_event_delete(&event);
        if (end || e.code) return e;
        json_array_append_new(list, item);
    }
}

static err build_map(yaml_parser_t *p, const char *where, int depth, json_t *map) {
    for (;;) {
        yaml_event_t key, value;
        err e = next_event(p, where, &key);
        if (e.code) return e;
        if (key.type == YAML_MAPPING_END_EVENT) {
            yaml_event_delete(&key);
            return e;
        }
        size_t line = key.start_mark.line;
        const char *name = key.type == YAML_SCALAR_EVENT ? (char *)key.data.scalar.value : NULL;
        if (!name)
            e = refuse(where, line, "a key must be a plain word");
        else if (json_object_get(map, name))
            e = refuse(where, line, "the key stands there twice");
        if (!e.code) e = next_event(p, where, &value);
        if (!e.code) {
            json_t *item = NULL;
            e = build(p, &value, where, depth, &item);
            yaml_event_delete(&value);
            if (!e.code && json_object_set_new(map, name, item))
                e = refuse(where, line, "the key is not valid UTF-8");
        }
        yaml_event_delete(&key);
        if (e.code) return e;
    }
}

static err build(yaml_parser_t *p, yaml_event_t *event, const char *where, int depth,
                 json_t **out) {
    size_t line = event->start_mark.line;
    *out = NULL;
    if (depth > MAX_DEPTH) return refuse(where, line, "nested too deeply");
    if (event->type == YAML_SCALAR_EVENT) {
        if (event->data.scalar.anchor || event->data.scalar.tag)
            return refuse(where, line, "anchors and tags are not used here");
        const char *s = (char *)event->data.scalar.value;
        if (strlen(s) != event->data.scalar.length) return refuse(where, line, "NUL in a value");
        *out =
            event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE ? plain_scalar(s) : json_string(s);
        return *out ? err_none() : refuse(where, line, "not valid UTF-8");
    }
    err e;
    if (event->type == YAML_SEQUENCE_START_EVENT && !event->data.sequence_start.anchor) {
        *out = json_array();
        e = build_list(p, where, depth + 1, *out);
    } else if (event->type == YAML_MAPPING_START_EVENT && !event->data.mapping_start.anchor) {
        *out = json_object();
        e = build_map(p, where, depth + 1, *out);
    } else {
        return refuse(where, line, "aliases and anchors are not used here");
    }
    if (e.code) {
        json_decref(*out);
        *out = NULL;
    }
    return e;
}

static err parse_stream(yaml_parser_t *p, const char *where, json_t **out) {
    int depth = 0;
    err e = err_none();
    for (bool end = false; !end && !e.code;) {
        yaml_event_t event;
        e = next_event(p, where, &event);
        if (e.code) break;
        switch (event.type) {
        case YAML_STREAM_END_EVENT:
            end = true;
            break;
        case YAML_DOCUMENT_START_EVENT:
            if (*out) e = refuse(where, event.start_mark.line, "more than one document");
            break;
        case YAML_STREAM_START_EVENT:
        case YAML_DOCUMENT_END_EVENT:
            break;
        default:
            e = build(p, &event, where, depth, out);
        }
        yaml_event_delete(&event);
    }
    if (!e.code && !*out) *out = json_null();
    return e;
}

err yaml_parse(const char *text, size_t len, const char *where, json_t **out) {
    yaml_parser_t p;
    *out = NULL;
    if (!yaml_parser_initialize(&p)) return err_make(ERR_BUG, where, NULL, "no YAML parser");
    yaml_parser_set_input_string(&p, (const unsigned char *)text, len);
    err e = parse_stream(&p, where, out);
    yaml_parser_delete(&p);
    if (e.code) {
        json_decref(*out);
        *out = NULL;
    }
    return e;
}

/* A string that a reader would take for something else, or that has special characters, is quoted
 * as JSON, which YAML's double-quoted form contains. */
static bool needs_quotes(const char *s) {
    json_t *as = plain_scalar(s);
    bool other = !json_is_string(as);
    json_decref(as);
    if (other || strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./+-") !=
                     strlen(s))
        return true;
    return s[0] == '-' || s[0] == '.' || !strcmp(s, "---");
}

static void emit_flow(FILE *f, const json_t *v) {
    const char *key;
    json_t *item;
    size_t i;
    const char *sep = "";
    if (json_is_string(v) && !needs_quotes(json_string_value(v))) {
        fputs(json_string_value(v), f);
    } else if (json_is_object(v)) {
        fputc('{', f);
        json_object_foreach((json_t *)(uintptr_t)v, key, item) {
            fprintf(f, "%s%s: ", sep, key);
            emit_flow(f, item);
            sep = ", ";
        }
        fputc('}', f);
    } else if (json_is_array(v)) {
        fputc('[', f);
        json_array_foreach(v, i, item) {
            fputs(sep, f);
            emit_flow(f, item);
            sep = ", ";
        }
        fputc(']', f);
    } else {
        char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_REAL_PRECISION(17));
        fputs(text ? text : "null", f);
        free(text);
    }
}

/* Objects of the first level become blocks, lists of objects one item a line, the rest flow style.
 */
err yaml_text(const json_t *v, char **out, size_t *len) {
    FILE *f = open_memstream(out, len);
    if (!f) return err_make(ERR_NOFIT, "yaml_text", NULL, "no memory");
    const char *key, *inner;
    json_t *item, *child;
    size_t i;
    json_object_foreach((json_t *)(uintptr_t)v, key, item) {
        if (json_is_object(item) && json_object_size(item)) {
            fprintf(f, "%s:\n", key);
            json_object_foreach(item, inner, child) {
                fprintf(f, "  %s: ", inner);
                emit_flow(f, child);
                fputc('\n', f);
            }
        } else if (json_is_array(item) && json_is_object(json_array_get(item, 0))) {
            fprintf(f, "%s:\n", key);
            json_array_foreach(item, i, child) {
                fputs("  - ", f);
                emit_flow(f, child);
                fputc('\n', f);
            }
        } else {
            fprintf(f, "%s: ", key);
            emit_flow(f, item);
            fputc('\n', f);
        }
    }
    return fclose(f) ? err_make(ERR_NOFIT, "yaml_text", NULL, "no memory") : err_none();
}
