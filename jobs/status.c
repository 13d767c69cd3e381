/* How far a run is, from the files that it keeps: the work tree, its events and who holds the
 * folder. */
#include "jobs/status.h"

#include "base/file.h"
#include "io/run_owner.h"
#include "io/run_state.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TAIL_BYTES = 65536 };

/* The last whole line of events.jsonl; NULL where there is none. */
static json_t *last_event(const char *out) {
    char *path = file_join(out, "events.jsonl"), buf[TAIL_BYTES];
    FILE *f = fopen(path, "r");
    free(path);
    if (!f) return NULL;
    fseek(f, 0, SEEK_END);
    long end = ftell(f), from = end > TAIL_BYTES - 1 ? end - (TAIL_BYTES - 1) : 0;
    fseek(f, from, SEEK_SET);
    size_t n = fread(buf, 1, sizeof buf - 1, f);
    fclose(f);
    while (n && buf[n - 1] != '\n') n--; /* a line still being written */
    if (!n) return NULL;
    buf[n - 1] = 0;
    const char *line = strrchr(buf, '\n');
    line = line ? line + 1 : buf;
    json_t *v;
    err e = json_parse(line, strlen(line), "events.jsonl", &v);
    return e.code ? NULL : v;
}

static json_t *describe(const char *out) {
    char owner[256];
    char *run = file_join(out, "run"), *manifest = file_join(out, "manifest.json");
    json_t *v = json_object(), *state = NULL;
    bool complete = file_exists(manifest), unfinished = file_exists(run);
    bool alive = run_owner_describe(run, owner);
    json_object_set_new(v, "out", json_string(out));
    json_object_set_new(v, "state",
                        json_string(complete     ? "complete"
                                    : alive      ? "running"
                                    : unfinished ? "unfinished"
                                                 : "none"));
    if (unfinished && !run_state_peek(out, &state).code) {
        json_object_set(v, "phase", json_object_get(state, "phase"));
        json_object_set(v, "restarts", json_object_get(state, "slice"));
        json_object_set(v, "generation", json_object_get(state, "generation"));
        const json_t *units = json_object_get(json_object_get(state, "work"), "units");
        json_object_set_new(v, "units_done", json_integer((json_int_t)json_object_size(units)));
    }
    if (owner[0]) json_object_set_new(v, "owner", json_string(owner));
    json_t *event = last_event(out);
    if (event) json_object_set_new(v, "last_event", event);
    json_decref(state);
    free(run);
    free(manifest);
    return v;
}

static void print_text(const json_t *v) {
    printf("%s: %s\n", json_string_value(json_object_get(v, "out")),
           json_string_value(json_object_get(v, "state")));
    const char *phase = json_string_value(json_object_get(v, "phase"));
    if (phase)
        printf("  phase %s, %" JSON_INTEGER_FORMAT " units done, %" JSON_INTEGER_FORMAT
               " restarts\n",
               phase, json_integer_value(json_object_get(v, "units_done")),
               json_integer_value(json_object_get(v, "restarts")));
    const char *owner = json_string_value(json_object_get(v, "owner"));
    if (owner) printf("  owner: %s\n", owner);
    const json_t *event = json_object_get(v, "last_event");
    if (event)
        printf("  last event: %s %s at %s\n", json_string_value(json_object_get(event, "phase")),
               json_string_value(json_object_get(event, "event")),
               json_string_value(json_object_get(event, "wall")));
    if (!strcmp(json_string_value(json_object_get(v, "state")), "unfinished"))
        puts("  run the same command again: it goes on from here");
}

err job_status(const comm *c, const options *o) {
    (void)c;
    if (!file_exists(o->target))
        return err_make(ERR_INPUT, o->target, "check the path", "there is no such folder");
    json_t *v = describe(o->target);
    if (!strcmp(json_string_value(json_object_get(v, "state")), "none")) {
        json_decref(v);
        return err_make(ERR_INPUT, o->target, "give the --out folder of a quantize command",
                        "is not an output folder: no manifest.json and no run");
    }
    if (options_has(o, OPT_JSON)) {
        json_dumpf(v, stdout, JSON_INDENT(1));
        puts("");
    } else {
        print_text(v);
    }
    json_decref(v);
    return err_none();
}
