/* Line by line, keeping what the last start and its last phase say. */
#include "jobs/run/run_progress.h"

#include "base/file.h"
#include "base/size.h"
#include "jobs/run/event_table.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What is read of the start and the phase at hand, beside the result. */
typedef struct reader {
    run_progress p;
    event_start start;
    double nodes, last_t; /* of the start at hand; seconds since it began */
    double first_t;       /* of the first unit of the phase that was told in this start */
    int64_t first_done;   /* and how many were done then; -1: none was told */
    bool committed;       /* in the start at hand */
} reader;

static double number(const json_t *v, const char *key, double other) {
    const json_t *n = json_object_get(v, key);
    return json_is_number(n) ? json_number_value(n) : other;
}

static void end_start(reader *r) {
    r->p.seconds += r->last_t;
    r->p.node_hours += r->nodes * r->last_t / 3600;
}

static void begin_start(reader *r) {
    if (r->p.last) end_start(r);
    if (r->p.told || r->committed) r->p.deaths = 0;
    r->p.deaths++;
    r->p.starts++;
    r->p.told = r->committed = false;
    r->nodes = 1;
    r->last_t = 0;
    r->first_done = -1;
}

/* Of the plan's phases: what is no phase of it (load, done, the start points) changes nothing. */
static const json_t *planned(const reader *r, const char *phase, int *number_of) {
    const json_t *list = json_object_get(r->p.plan, "phases");
    for (size_t i = 0; i < json_array_size(list); i++)
        if (!strcmp(json_word_of(json_array_get(list, i), "phase"), phase)) {
            *number_of = (int)i + 1;
            return json_array_get(list, i);
        }
    return NULL;
}

static void take_phase(reader *r, const char *phase) {
    int at = 0;
    const json_t *f = planned(r, phase, &at);
    if (!f || !strcmp(phase, r->p.phase)) return;
    snprintf(r->p.phase, sizeof r->p.phase, "%s", phase);
    r->p.phase_number = at;
    r->p.done = 0;
    r->p.total = (int64_t)number(f, "units", 0);
    r->first_done = -1;
}

/* Units that were done: of learning its steps, of others what they count. */
static void take_units(reader *r, const json_t *v) {
    const char *event = json_word_of(v, "event");
    if (strcmp(json_word_of(v, "phase"), r->p.phase) != 0) return;
    const bool step = !strcmp(event, "step");
    const double done = step ? number(v, "step", -1) : number(v, "done", -1);
    if (done < 0) return;
    r->p.done = (int64_t)done;
    if (!strcmp(event, "unit")) r->p.total = (int64_t)number(v, "total", 0);
    if (step) r->p.loss = number(v, "loss", -1);
    if (r->first_done >= 0) return;
    r->first_done = r->p.done;
    r->first_t = r->last_t;
}

static void take(reader *r, json_t *v) {
    const char *event = json_word_of(v, "event");
    const json_t *code = json_object_get(v, "exit");
    const event_place place = event_start_take(&r->start, v);
    if (place == EVENT_LATE) {
        json_decref(v);
        return;
    }
    if (place == EVENT_BEGINS_START) begin_start(r);
    r->last_t = number(v, "t", r->last_t);
    if (!strcmp(event, "plan")) {
        json_decref(r->p.plan);
        r->p.plan = json_incref(v);
        r->p.phases = (int)json_array_size(json_object_get(v, "phases"));
    }
    r->nodes = number(v, "nodes", r->nodes); /* of the event `run` */
    take_phase(r, json_word_of(v, "phase"));
    take_units(r, v);
    if (!strcmp(event, "commit")) {
        r->committed = true;
        snprintf(r->p.last_commit, sizeof r->p.last_commit, "%s", json_word_of(v, "wall"));
    }
    if (json_is_integer(code)) {
        r->p.told = true;
        r->p.exit_code = json_integer_value(code);
    }
    json_decref(r->p.last);
    r->p.last = v;
}

/* The phase by its own pace once two of its units were told, else by the plan; those behind it by
 * the plan. */
static void estimate(reader *r) {
    run_progress *p = &r->p;
    int at = 0;
    const json_t *f = planned(r, p->phase, &at), *list = json_object_get(p->plan, "phases");
    p->phase_left_s = p->run_left_s = -1;
    if (!list) return;
    if (f) {
        const double share = p->total ? 1 - (double)p->done / (double)p->total : 1;
        p->phase_left_s = share * number(f, "seconds", 0);
        if (p->total && r->first_done >= 0 && p->done > r->first_done)
            p->phase_left_s = (r->last_t - r->first_t) * (double)(p->total - p->done) /
                              (double)(p->done - r->first_done);
    }
    p->run_left_s = f ? p->phase_left_s : 0;
    for (size_t i = (size_t)at; i < json_array_size(list); i++)
        p->run_left_s += number(json_array_get(list, i), "seconds", 0);
}

run_progress run_progress_read(const char *out_dir) {
    char *path = file_join(out_dir, "events.jsonl"), *line = NULL;
    size_t room = 0;
    ssize_t n;
    FILE *f = fopen(path, "r");
    reader r = {.p.loss = -1, .first_done = -1};
    free(path);
    while (f && (n = getline(&line, &room, f)) > 0) {
        json_t *v = NULL;
        if (line[n - 1] != '\n') break; /* still being written */
        if (json_parse(line, (size_t)n - 1, "events.jsonl", &v).code) continue;
        if (json_is_object(v))
            take(&r, v);
        else
            json_decref(v);
    }
    if (f) fclose(f);
    free(line);
    if (r.p.last) end_start(&r);
    if (r.p.told || r.committed) r.p.deaths = 0;
    estimate(&r);
    return r.p;
}

const char *run_progress_death(const run_progress *p, char text[256]) {
    const json_t *list = json_object_get(p->plan, "phases");
    const json_t *f = p->phase_number ? json_array_get(list, (size_t)p->phase_number - 1) : NULL;
    char planned[96] = "", bytes[32];
    if (f)
        snprintf(planned, sizeof planned, ", where %s are planned on the largest rank",
                 size_text((uint64_t)number(f, "bytes", 0), bytes));
    snprintf(text, 256,
             "the last start ended without a word in %s%s: it was killed, perhaps for memory, or "
             "its node failed",
             f ? p->phase : json_word_of(p->last, "phase"), planned);
    return text;
}

void run_progress_clear(run_progress *p) {
    json_decref(p->last);
    json_decref(p->plan);
    *p = (run_progress){.last = NULL};
}
