/* Events are read once and sorted into the sections; of what happened twice the newest counts. */
#include "jobs/reporting/report_data.h"

#include "base/file.h"
#include "base/size.h"
#include "io/run_owner.h"
#include "io/utf8.h"
#include "jobs/run/event_table.h"
#include "shard/manifest.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MOST_BYTES = 1 << 28 };

static bool is_event(const json_t *v, const char *name) {
    return !strcmp(json_word_of(v, "event"), name);
}

/* What an event tells beside what every event has. */
static void take_own(json_t *to, const json_t *event) {
    static const char *const common[] = {"t", "wall", "slice", "phase", "event"};
    json_t *own = json_deep_copy(event);
    for (size_t d = 0; d < 5; d++) json_object_del(own, common[d]);
    json_object_update(to, own);
    json_decref(own);
}

/* ---- sections from events ---- */

static json_t *phase_named(json_t *list, const char *name) {
    size_t i;
    json_t *p;
    json_array_foreach(list, i, p) if (!strcmp(json_word_of(p, "phase"), name)) return p;
    p = json_pack("{s:s, s:[], s:[]}", "phase", name, "steps", "held");
    json_array_append_new(list, p);
    return p;
}

/* Steps that a restart did again take the place of the first ones: they are equal, but for times.
 */
static void take_step(json_t *list, const json_t *v) {
    static const char *const keys[] = {"step",     "loss",     "loss_r2", "held",    "held_r2",
                                       "angle_r1", "angle_r2", "orth",    "seconds", "peak_share"};
    json_t *to = json_object_get(phase_named(list, json_word_of(v, "phase")),
                                 is_event(v, "held") ? "held" : "steps"),
           *one = json_object();
    for (size_t k = 0; k < sizeof keys / sizeof keys[0]; k++) {
        json_t *value = json_object_get(v, keys[k]);
        if (value) json_object_set(one, keys[k], value);
    }
    while (json_array_size(to) && json_real_of(json_array_get(to, json_array_size(to) - 1),
                                               "step") >= json_real_of(v, "step"))
        json_array_remove(to, json_array_size(to) - 1);
    json_array_append_new(to, one);
}

static json_t *learning_of(const json_t *events) {
    json_t *list = json_array(), *v;
    size_t i;
    json_array_foreach((json_t *)(uintptr_t)events, i, v) {
        const bool counted = json_is_integer(json_object_get(v, "step"));
        if (counted && (is_event(v, "step") || is_event(v, "held"))) take_step(list, v);
    }
    return list;
}

static json_t *weights_of(const json_t *events) {
    json_t *items = event_table_by(events, "layer", "item"), *list = json_array(), *v;
    size_t i;
    json_array_foreach(items, i, v) {
        json_t *error = json_object_get(v, "relative_error"),
               *linears = json_object_get(v, "linears");
        if (error || linears)
            json_array_append_new(list, json_pack("{s:O, s:f, s:O*, s:O*}", "item",
                                                  json_object_get(v, "item"), "layer",
                                                  json_real_of(v, "item") - 1, "relative_error",
                                                  error, "linears", linears));
    }
    json_decref(items);
    return list;
}

/* Seconds since 1970 of an event's clock on the wall. */
static double wall_s(const json_t *v) {
    struct tm tm = {0};
    return strptime(json_word_of(v, "wall"), "%Y-%m-%dT%H:%M:%SZ", &tm) ? (double)timegm(&tm) : NAN;
}

/* Starts of the run: when, on what, how long, and how each ended. */
static json_t *slices_of(const json_t *events) {
    json_t *list = json_array(), *v;
    event_start start = {0};
    double first = NAN;
    size_t i;
    json_array_foreach((json_t *)(uintptr_t)events, i, v) {
        json_t *last = json_array_get(list, json_array_size(list) - 1);
        const double begin = wall_s(v) - json_real_of(v, "t");
        if (event_start_take(&start, v) == EVENT_BEGINS_START) {
            if (!isfinite(first)) first = begin;
            last = json_pack("{s:O, s:f, s:O, s:i}", "slice", json_object_get(v, "slice"),
                             "begin_s", isfinite(begin) ? begin - first : 0, "wall",
                             json_object_get(v, "wall"), "nodes", 1);
            json_array_append_new(list, last);
        }
        json_object_set(last, "seconds", json_object_get(v, "t"));
        if (json_object_get(v, "exit")) json_object_set(last, "exit", json_object_get(v, "exit"));
        if (is_event(v, "run")) {
            json_object_set(last, "nodes", json_object_get(v, "nodes"));
            json_object_set(last, "ranks", json_object_get(v, "ranks"));
        }
    }
    return list;
}

/* Each phase of each start, as far as it went. */
static json_t *phases_of(const json_t *events, const json_t *slices) {
    json_t *list = json_array(), *v, *open = NULL;
    const json_t *slice = NULL;
    event_start start = {0};
    size_t i, starts = 0;
    json_array_foreach((json_t *)(uintptr_t)events, i, v) {
        if (event_start_take(&start, v) == EVENT_BEGINS_START) {
            slice = json_array_get(slices, starts++);
            open = NULL;
        }
        if (is_event(v, "start")) {
            open = json_pack("{s:s, s:O, s:f, s:b}", "phase", json_word_of(v, "phase"), "slice",
                             json_object_get(v, "slice"), "begin_s",
                             json_real_of(slice, "begin_s") + json_real_of(v, "t"), "done", false);
            json_array_append_new(list, open);
        }
        if (!open || strcmp(json_word_of(open, "phase"), json_word_of(v, "phase")) != 0) continue;
        json_object_set_new(open, "seconds",
                            json_real(json_real_of(slice, "begin_s") + json_real_of(v, "t") -
                                      json_real_of(open, "begin_s")));
        if (!is_event(v, "end") && !is_event(v, "read_back")) continue;
        take_own(open, v);
        json_object_set_new(open, "done", json_true());
    }
    return list;
}

/* ---- the summary ---- */

static const char *state_of(const char *out_dir) {
    char owner[256];
    char *run = file_join(out_dir, "run"), *sealed = file_join(out_dir, "manifest.json");
    const bool complete = file_exists(sealed), alive = run_owner_describe(run, owner);
    free(run);
    free(sealed);
    return complete ? "complete" : alive ? "running" : "unfinished";
}

static void add_archive(const char *out_dir, json_t *to) {
    char *path = file_join(out_dir, "manifest.json"), *text = NULL;
    size_t len;
    manifest *m = NULL;
    uint64_t bytes = 0;
    err e = file_exists(path) ? file_read_all(path, MOST_BYTES, &text, &len)
                              : err_make(ERR_INPUT, path, NULL, "absent");
    if (!e.code) e = manifest_parse(text, len, path, &m);
    for (int64_t i = 0; m && i < m->n_tars; i++) bytes += m->tars[i].bytes;
    if (m) {
        json_object_set_new(to, "name", json_string(m->name));
        json_object_set_new(to, "architecture", json_string(m->architecture));
        json_object_set_new(to, "tars", json_integer((json_int_t)m->n_tars));
        json_object_set_new(to, "tar_bytes", json_integer((json_int_t)bytes));
        json_object_set(to, "recipe", m->recipe);
    }
    manifest_destroy(&m);
    free(text);
    free(path);
}

static json_t *summary_of(const char *out_dir, const json_t *events, const json_t *slices) {
    json_t *to = json_object(), *v;
    double seconds = 0, node_s = 0;
    size_t i;
    json_array_foreach((json_t *)(uintptr_t)events, i, v) {
        if (is_event(v, "run")) take_own(to, v);
    }
    add_archive(out_dir, to);
    json_array_foreach((json_t *)(uintptr_t)slices, i, v) {
        seconds += json_real_of(v, "seconds");
        node_s += json_real_of(v, "seconds") * json_real_of(v, "nodes");
    }
    json_object_set_new(to, "seconds", json_real(seconds));
    json_object_set_new(to, "node_hours", json_real(node_s / 3600));
    const int64_t starts = (int64_t)json_array_size(slices);
    json_object_set_new(to, "restarts", json_integer(starts ? starts - 1 : 0));
    return to;
}

/* ---- all ---- */

static err accuracy_of(const char *const *evals, int n, json_t *list) {
    err e = err_none();
    for (int i = 0; i < n && !e.code; i++) {
        json_t *v = NULL;
        e = json_read_file(evals[i], MOST_BYTES, &v);
        if (!e.code && !json_is_array(json_object_get(v, "perplexity")))
            e = err_make(ERR_INPUT, evals[i], "give what `spinshard eval --json` prints",
                         "has no list \"perplexity\"");
        if (!e.code) json_array_append(list, v);
        json_decref(v);
    }
    return e;
}

err report_collect(const char *out_dir, const char *const *evals, int n_evals, json_t **out) {
    json_t *events = NULL, *accuracy = json_array();
    *out = NULL;
    char *path = file_join(out_dir, "events.jsonl");
    err e = err_none();
    if (file_exists(out_dir) && !file_exists(path))
        e = err_make(ERR_INPUT, out_dir, "give the --out folder of a quantize command",
                     "is not an output folder: it has no events.jsonl");
    else if (utf8_check(out_dir, strlen(out_dir)) != strlen(out_dir))
        e = err_make(ERR_INPUT, out_dir, "call the folder by a name in UTF-8",
                     "its name is not UTF-8, which JSON and the page are");
    free(path);
    if (!e.code) e = event_table_all(out_dir, &events);
    if (!e.code) e = accuracy_of(evals, n_evals, accuracy);
    if (!e.code) {
        json_t *slices = slices_of(events);
        *out = json_pack("{s:s, s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:O, s:{s:o, s:O}}", "out",
                         out_dir, "state", state_of(out_dir), "summary",
                         summary_of(out_dir, events, slices), "learning", learning_of(events),
                         "sites", event_table_by(events, "sites", "layer"), "noise",
                         event_table_by(events, "noise", "layer"), "weights", weights_of(events),
                         "gptq", event_table_by(events, "errors", "layer"), "accuracy", accuracy,
                         "run", "phases", phases_of(events, slices), "slices", slices);
        if (!*out) abort();
        json_decref(slices);
    }
    json_decref(accuracy);
    json_decref(events);
    return e;
}
