/* Lines are parsed one by one: the file grows while a run goes on. */
#include "jobs/run/event_table.h"

#include "base/file.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_EVENTS_BYTES = 1 << 30, MOST_LAYERS = 1 << 20 };

event_place event_start_take(event_start *s, const json_t *event) {
    const int64_t slice = json_integer_value(json_object_get(event, "slice"));
    const bool plan = !strcmp(json_word_of(event, "event"), "plan");
    const bool run = !strcmp(json_word_of(event, "event"), "run");
    const bool again = slice < s->slice ? plan || run : (plan && s->plan) || (run && s->run);
    const bool begins = !s->any || slice > s->slice || again;
    if (!begins && slice < s->slice) return EVENT_LATE;
    if (begins) *s = (event_start){.slice = slice, .any = true};
    s->plan |= plan;
    s->run |= run;
    return begins ? EVENT_BEGINS_START : EVENT_OF_START;
}

err event_table_all(const char *out_dir, json_t **out) {
    char *path = file_join(out_dir, "events.jsonl"), *text = NULL;
    size_t len = 0;
    event_start start = {0};
    *out = json_array();
    err e = file_read_all(path, MAX_EVENTS_BYTES, &text, &len);
    for (char *at = text, *end; at && at < text + len; at = end + 1) {
        json_t *v = NULL;
        end = memchr(at, '\n', (size_t)(text + len - at));
        if (!end) break; /* a line that is still being written */
        if (json_parse(at, (size_t)(end - at), "events.jsonl", &v).code) continue;
        if (event_start_take(&start, v) != EVENT_LATE) json_array_append(*out, v);
        json_decref(v);
    }
    free(text);
    free(path);
    if (e.code) {
        json_decref(*out);
        *out = NULL;
    }
    return e;
}

json_t *event_table_by(const json_t *events, const char *event, const char *key_name) {
    json_t *by_layer = json_object(), *list = json_array(), *v;
    size_t i;
    char key[24];
    json_array_foreach((json_t *)(uintptr_t)events, i, v) {
        const char *name = json_string_value(json_object_get(v, "event"));
        const json_t *layer = json_object_get(v, key_name);
        if (!name || strcmp(name, event) != 0 || !json_is_integer(layer)) continue;
        snprintf(key, sizeof key, "%" JSON_INTEGER_FORMAT, json_integer_value(layer));
        json_object_set(by_layer, key, v);
    }
    for (int64_t l = 0; json_array_size(list) < json_object_size(by_layer) && l < MOST_LAYERS;
         l++) {
        snprintf(key, sizeof key, "%" PRId64, l);
        json_t *one = json_object_get(by_layer, key);
        if (one) json_array_append(list, one);
    }
    json_decref(by_layer);
    return list;
}

err event_table_read(const char *out_dir, const char *event, json_t **out) {
    json_t *events;
    *out = NULL;
    err e = event_table_all(out_dir, &events);
    if (e.code) return e;
    *out = event_table_by(events, event, "layer");
    json_decref(events);
    return e;
}
