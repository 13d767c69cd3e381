/* How far a run is, from the files that it keeps: the work tree, its events and who holds the
 * folder. */
#include "jobs/status.h"

#include "base/file.h"
#include "base/size.h"
#include "io/run_owner.h"
#include "io/run_state.h"
#include "jobs/run/run_progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What helps an unfinished run. */
static const char *advice(const run_progress *x) {
    if (x->told && (x->exit_code == ERR_USAGE || x->exit_code == ERR_INPUT ||
                    x->exit_code == ERR_MISMATCH || x->exit_code == ERR_NUMERICS))
        return "what it said at its end must be mended first: the same command would meet it again";
    if (x->told && (x->exit_code == ERR_SPACE || x->exit_code == ERR_NOFIT))
        return "make room as it said at its end, then run the same command again: it goes on from "
               "here";
    if (x->told && x->exit_code == ERR_RANK)
        return "a rank was lost; run the same command again: it goes on from the last commit";
    if (!x->told && x->deaths <= 1)
        return "run the same command again: it goes on from the last commit";
    if (x->deaths > 1)
        return "it ended several times at the same place without a word: the same command will not "
               "help; look at what the node and the batch system say, else report a bug";
    return "run the same command again: it goes on from here";
}

static void put_seconds(json_t *v, const char *key, double seconds) {
    if (seconds >= 0) json_object_set_new(v, key, json_real(seconds));
}

/* What the phase at hand was planned to take on its largest rank, for who wonders about memory. */
static void add_planned_memory(json_t *v, const run_progress *x) {
    const json_t *list = json_object_get(x->plan, "phases");
    const json_t *f = x->phase_number ? json_array_get(list, (size_t)x->phase_number - 1) : NULL;
    if (f) json_object_set(v, "planned_bytes", json_object_get(f, "bytes"));
}

static void add_progress(json_t *v, const run_progress *x, bool complete, bool alive) {
    if (!x->last) return;
    json_object_set_new(v, "starts", json_integer(x->starts));
    json_object_set_new(v, "node_hours", json_real(x->node_hours));
    json_object_set_new(v, "seconds", json_real(x->seconds));
    if (x->last_commit[0]) json_object_set_new(v, "last_commit", json_string(x->last_commit));
    if (!alive && x->told) json_object_set_new(v, "last_exit", json_integer(x->exit_code));
    if (!complete && !alive && !x->told) {
        char text[256];
        json_object_set_new(v, "death", json_string(run_progress_death(x, text)));
    }
    if (complete || !x->phase_number) return;
    json_object_set_new(v, "running", json_string(x->phase));
    json_object_set_new(v, "phase_number", json_integer(x->phase_number));
    json_object_set_new(v, "phases", json_integer(x->phases));
    json_object_set_new(v, "done", json_integer(x->done));
    json_object_set_new(v, "total", json_integer(x->total));
    if (x->loss >= 0) json_object_set_new(v, "loss", json_real(x->loss));
    put_seconds(v, "phase_left_s", x->phase_left_s);
    put_seconds(v, "run_left_s", x->run_left_s);
    if (!alive && !x->told) add_planned_memory(v, x);
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
        const json_t *captured = json_object_get(json_object_get(state, "work"), "captured");
        if (captured) json_object_set(v, "captured_bytes", json_object_get(captured, "bytes"));
    }
    if (owner[0]) json_object_set_new(v, "owner", json_string(owner));
    run_progress x = run_progress_read(out);
    add_progress(v, &x, complete, alive);
    if (!complete && !alive && unfinished)
        json_object_set_new(v, "advice", json_string(advice(&x)));
    if (x.last) json_object_set(v, "last_event", x.last);
    run_progress_clear(&x);
    json_decref(state);
    free(run);
    free(manifest);
    return v;
}

static int64_t whole(const json_t *v, const char *key) {
    return (int64_t)json_integer_value(json_object_get(v, key));
}

static void print_left(const json_t *v, const char *key, const char *of) {
    const double s = json_number_value(json_object_get(v, key));
    if (!json_object_get(v, key)) return;
    if (s < 120)
        printf(", %.0f s of %s left", s, of);
    else
        printf(s < 7200 ? ", %.0f min of %s left" : ", %.1f h of %s left",
               s < 7200 ? s / 60 : s / 3600, of);
}

static void print_progress(const json_t *v) {
    const char *phase = json_string_value(json_object_get(v, "phase")),
               *running = json_string_value(json_object_get(v, "running")),
               *commit = json_string_value(json_object_get(v, "last_commit"));
    char time[32];
    if (running) {
        printf("  %s, phase %" PRId64 " of %" PRId64, running, whole(v, "phase_number"),
               whole(v, "phases"));
        if (whole(v, "total"))
            printf(": %" PRId64 " of %" PRId64 " done", whole(v, "done"), whole(v, "total"));
        if (json_object_get(v, "loss"))
            printf(", loss %.5g", json_number_value(json_object_get(v, "loss")));
        print_left(v, "phase_left_s", "the phase");
        print_left(v, "run_left_s", "the run");
        puts("");
    }
    if (phase)
        printf("  phase %s kept, %" PRId64 " units done, %" PRId64 " restarts", phase,
               whole(v, "units_done"), whole(v, "restarts"));
    if (phase) printf(commit ? ", last commit %s\n" : "\n", commit);
    if (json_object_get(v, "captured_bytes"))
        printf("  captured rows are kept, %s: a restart reads them back\n",
               size_text((uint64_t)whole(v, "captured_bytes"), time));
    if (json_object_get(v, "node_hours"))
        printf("  %s and %.3g node hours in %" PRId64 " starts",
               size_seconds_text(json_number_value(json_object_get(v, "seconds")), time),
               json_number_value(json_object_get(v, "node_hours")), whole(v, "starts"));
    if (json_object_get(v, "node_hours") && json_object_get(v, "last_exit"))
        printf(", the last ended with exit code %" PRId64 "%s", whole(v, "last_exit"),
               whole(v, "last_exit") == ERR_STOPPED ? ", a stop that was asked for" : "");
    if (json_object_get(v, "node_hours")) puts("");
    if (json_object_get(v, "death"))
        printf("  %s\n", json_string_value(json_object_get(v, "death")));
}

static void print_text(const json_t *v) {
    printf("%s: %s\n", json_string_value(json_object_get(v, "out")),
           json_string_value(json_object_get(v, "state")));
    print_progress(v);
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

static void print(const options *o, const json_t *v) {
    if (options_has(o, OPT_JSON)) {
        json_dumpf(v, stdout, JSON_INDENT(1));
        puts("");
    } else {
        print_text(v);
    }
}

err job_status(const comm *c, const options *o) {
    enum { EVERY_S = 5 };
    (void)c;
    if (!file_exists(o->target))
        return err_make(ERR_INPUT, o->target, "check the path", "there is no such folder");
    for (bool running = true; running;) {
        json_t *v = describe(o->target);
        const char *state = json_string_value(json_object_get(v, "state"));
        const bool none = !strcmp(state, "none");
        running = !strcmp(state, "running") && options_has(o, OPT_WATCH);
        if (!none) print(o, v);
        json_decref(v);
        if (none)
            return err_make(ERR_INPUT, o->target, "give the --out folder of a quantize command",
                            "is not an output folder: no manifest.json and no run");
        fflush(stdout);
        if (running) sleep(EVERY_S);
    }
    return err_none();
}
