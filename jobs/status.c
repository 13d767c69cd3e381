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

/* How the last starts of a run ended, as far as the end of events.jsonl tells. */
typedef struct ends {
    json_t *last;  /* the last event; NULL where there is none */
    int64_t slice; /* of the last event */
    bool told;     /* that start said how it ended: exit_code */
    int64_t exit_code;
    int64_t deaths; /* starts at the end that ended without a word and without a commit */
    bool committed; /* the start at hand */
} ends;

static void take_event(ends *x, json_t *v) {
    const int64_t slice = json_integer_value(json_object_get(v, "slice"));
    const char *event = json_string_value(json_object_get(v, "event"));
    const json_t *code = json_object_get(v, "exit");
    if (!x->last || slice != x->slice) {
        if (x->last && (x->told || x->committed)) x->deaths = 0;
        x->deaths++;
        x->slice = slice;
        x->told = x->committed = false;
    }
    if (json_is_integer(code)) {
        x->told = true;
        x->exit_code = json_integer_value(code);
    }
    x->committed |= event && !strcmp(event, "commit");
    json_decref(x->last);
    x->last = v;
}

static ends read_ends(const char *out) {
    char *path = file_join(out, "events.jsonl"), buf[TAIL_BYTES];
    FILE *f = fopen(path, "r");
    ends x = {.last = NULL};
    free(path);
    if (!f) return x;
    fseek(f, 0, SEEK_END);
    long end = ftell(f), from = end > TAIL_BYTES - 1 ? end - (TAIL_BYTES - 1) : 0;
    fseek(f, from, SEEK_SET);
    size_t n = fread(buf, 1, sizeof buf - 1, f);
    fclose(f);
    for (size_t at = 0; at < n;) {
        const char *line = buf + at, *stop = memchr(line, '\n', n - at);
        json_t *v = NULL;
        if (!stop) break; /* a line still being written */
        at += (size_t)(stop - line) + 1;
        if (json_parse(line, (size_t)(stop - line), "events.jsonl", &v).code) continue;
        take_event(&x, v);
    }
    if (x.told || x.committed) x.deaths = 0;
    return x;
}

/* What helps an unfinished run. */
static const char *advice(const ends *x) {
    if (x->told && (x->exit_code == ERR_USAGE || x->exit_code == ERR_INPUT ||
                    x->exit_code == ERR_MISMATCH || x->exit_code == ERR_NUMERICS))
        return "what it said at its end must be mended first: the same command would meet it again";
    if (x->told && (x->exit_code == ERR_SPACE || x->exit_code == ERR_NOFIT))
        return "make room as it said at its end, then run the same command again: it goes on from "
               "here";
    if (x->deaths > 1)
        return "it ended several times at the same place without a word: the same command will not "
               "help; look at what the node and the batch system say, else report a bug";
    return "run the same command again: it goes on from here";
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
    ends x = read_ends(out);
    if (!complete && !alive && unfinished)
        json_object_set_new(v, "advice", json_string(advice(&x)));
    if (x.last) json_object_set_new(v, "last_event", x.last);
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
    const char *text = json_string_value(json_object_get(v, "advice"));
    if (text) printf("  %s\n", text);
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
