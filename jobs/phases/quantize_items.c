/* Phase gptq of quantize: every rank does its items, each unit becomes an object of the run state,
 * rank 0 commits. A killed run finds its objects again. */
#include "jobs/phases/item_output.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/size.h"
#include "base/task.h"
#include "jobs/run/stop.h"
#include "mpi/replicas.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A commit costs a few flushes of the disk; so much work may be lost instead. */
#define COMMIT_EVERY_S 1.0

/* Items whose objects may be hashed and flushed while others are computed: an embedding takes as
 * long as several layers. */
enum { BEHIND = 16 };

/* An item whose objects are hashed and flushed while the next ones are computed. */
typedef struct pending {
    item_output out;
    item_report report; /* of item -1 where there is none */
    err e;
    task *finishing;
} pending;

static void finish_objects(void *arg) {
    pending *p = arg;
    p->e = item_output_finish(&p->out, p->report.hex);
}

/* Compute an item; its objects are still open. */
static err do_item(quantize_run *q, int64_t item, read_ahead *reader, item_piece *room,
                   pending *p) {
    *p = (pending){.report.item = item};
    double start = clock_now_s();
    err e = item_output_open(q, item, room, &p->out);
    const quantize_sink sink = item_output_sink(&p->out);
    if (!e.code) e = quantize_item(&q->job, item, reader, &sink, &p->report.result);
    p->report.seconds = clock_now_s() - start;
    return e;
}

/* Wait for the objects of an item; none of them is left open. */
static err await_objects(pending *p, item_report *report) {
    task_wait(&p->finishing);
    item_output_abandon(&p->out);
    *report = p->report;
    err e = p->e;
    *p = (pending){.report.item = -1};
    return e;
}

/* One round of a rank: an item is computed while the objects of those before are finished; what
 * the round brings is the item that was computed BEHIND rounds before. */
static err do_round(quantize_run *q, int64_t item, read_ahead *reader, item_piece *room,
                    pending *before, item_report *brought) {
    pending now = {.report.item = -1};
    err e = item >= 0 ? do_item(q, item, reader, room, &now) : err_none(),
        f = await_objects(before, brought);
    if (!f.code) f = e;
    if (f.code) {
        item_report none;
        await_objects(&now, &none);
        return f;
    }
    *before = now;
    if (item >= 0) before->finishing = task_start(finish_objects, before);
    return f;
}

bool quantize_item_done(const quantize_run *q, int64_t item) {
    int64_t units[2];
    int n = quantize_item_units(&q->job, item, units);
    for (int i = 0; i < n; i++)
        if (!q->units[units[i]].hex[0]) return false;
    return true;
}

/* A table of the vocabulary takes long to read and long to flush: layers go before it, which are
 * computed while it is read, and layers behind it. */
static void move_table_inside(int64_t *items, int64_t n) {
    enum { BEFORE = 4 };
    const int64_t table = items[0], to = size_min(BEFORE, n / 2);
    if (n == 0 || table != 0) return;
    memmove(items, items + 1, (size_t)to * sizeof *items);
    items[to] = table;
}

int64_t *quantize_items_of(const quantize_run *q, int rank, int64_t *n) {
    int64_t *items = calloc((size_t)q->n_items + 1, sizeof *items);
    if (!items) abort();
    *n = 0;
    for (int64_t i = 0; i < q->n_items; i++) {
        const bool other = i >= 1 && i <= q->source.cfg.layers && quantize_uses_gptq(q->recipe);
        if (q->owner[i] == rank && !other && !quantize_item_done(q, i)) items[(*n)++] = i;
    }
    move_table_inside(items, *n);
    return items;
}

/* Collective. Share what the round brought: rank 0 notes it, everyone marks the units. */
static err share_round(quantize_run *q, const item_report *mine, int64_t *done_items) {
    int size = comm_size(q->c);
    item_report *all = calloc((size_t)size, sizeof *all);
    if (!all) abort();
    comm_gather(q->c, mine, sizeof *mine, all, 0);
    comm_bcast(q->c, all, (uint64_t)size * sizeof *all, 0);
    err e = err_none();
    for (int r = 0; r < size; r++) {
        if (all[r].item < 0) continue;
        int64_t units[2];
        int n = quantize_item_units(&q->job, all[r].item, units);
        for (int i = 0; i < n; i++) memcpy(q->units[units[i]].hex, all[r].hex[i], SHA256_HEX);
        ++*done_items;
        if (q->state && !e.code) e = item_note(q, &all[r]);
    }
    free(all);
    return e;
}

/* Collective. What every rank goes by: the recipe, and which units are done. */
static err check_replicas(const quantize_run *q) {
    char *text = json_dumps(recipe_tree(q->recipe), JSON_COMPACT);
    if (!text) abort();
    const replica parts[] = {
        {"recipe", text, strlen(text)},
        {"list of finished units", q->units, (uint64_t)q->n_units * sizeof *q->units}};
    err e = replicas_check(q->c, parts, 2, "quantizing");
    free(text);
    return e;
}

err quantize_do_items(quantize_run *q) {
    int64_t done = 0, at = 0, round = 0, n_own;
    for (int64_t i = 0; i < q->n_items; i++) done += quantize_item_done(q, i);
    if (!quantize_uses_gptq(q->recipe)) quantize_phase_start(q, "gptq"); /* else it is on */
    double last_commit_s = clock_now_s();
    int64_t *own = quantize_items_of(q, comm_rank(q->c), &n_own);
    read_ahead *reader = NULL;
    pending open[BEHIND];
    for (int i = 0; i < BEHIND; i++) open[i] = (pending){.report.item = -1};
    item_piece bytes = {0};
    memory_plan plan = {.n = 0};
    memory_plan_add(&plan, "program", q->base_bytes);
    const bool ahead =
        quantize_items_memory(q, comm_rank(q->c), memory_plan_limit(q->limit), &plan);
    if (!ahead) log_line(LOG_PHASE, "gptq: no tensor is read ahead: memory is short");
    err e = quantize_item_read_ahead(&q->job, own, n_own, ahead, &reader);
    e = comm_agree(q->c, e, "reading the weights", NULL);
    while (done < q->n_items && !e.code) {
        item_report mine = {.item = -1};
        int64_t item = at < n_own ? own[at++] : -1;
        e = do_round(q, item, reader, &bytes, &open[round++ % BEHIND], &mine);
        e = comm_agree(q->c, e, "quantizing", NULL);
        if (e.code) break;
        e = share_round(q, &mine, &done);
        err same = check_replicas(q);
        if (!e.code) e = same;
        bool stop = stop_agreed(q->c);
        bool due = stop || done == q->n_items || clock_now_s() - last_commit_s > COMMIT_EVERY_S;
        if (q->state && due && !e.code) {
            e = run_state_commit(q->state, "gptq");
            events_add(q->events, "gptq", "commit", json_pack("{s:I}", "done", (json_int_t)done));
            last_commit_s = clock_now_s();
        }
        if (q->state) run_state_heartbeat(q->state);
        e = comm_agree(q->c, e, "committing", NULL);
        log_progress("gptq", done, q->n_items);
        if (stop && !e.code && done < q->n_items)
            e = comm_agree(q->c, stop_error(q->out), "stopping", NULL);
    }
    item_report unused;
    for (int i = 0; i < BEHIND; i++) await_objects(&open[i], &unused);
    mem_free(bytes.bytes);
    read_ahead_destroy(&reader);
    free(own);
    if (e.code) return e;
    json_t *more = NULL;
    if (q->state && q->weight_sq > 0) {
        double relative = sqrt(q->error_sq / q->weight_sq);
        log_line(LOG_PHASE, "weights: relative error %.4f", relative);
        more = json_pack("{s:f}", "relative_error", relative);
    }
    quantize_phase_end(q, "gptq", more);
    return e;
}
