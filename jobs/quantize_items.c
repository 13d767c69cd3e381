/* Phase gptq of quantize: every rank does its items, each unit becomes an object of the run state,
 * rank 0 commits. A killed run finds its objects again. */
#include "jobs/quantize_run.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/task.h"
#include "jobs/stop.h"
#include "shard/packed_tensor.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A commit costs a few flushes of the disk; so much work may be lost instead. */
#define COMMIT_EVERY_S 1.0

/* The objects of the (one or two) units of an item while it is done. */
typedef struct item_output {
    quantize_run *q;
    int n_units;
    int64_t units[2];
    run_object *objects[2];
    struct piece *piece;
} item_output;

/* Bytes on their way into an object: room that is kept, so that it is not cleared each time. */
typedef struct piece {
    void *bytes;
    uint64_t room;
} piece;

static err piece_reserve(piece *p, uint64_t bytes, const char *what) {
    if (bytes <= p->room) return err_none();
    mem_free(p->bytes);
    p->room = 0;
    err e = mem_alloc((int64_t)bytes, 1, what, &p->bytes);
    if (!e.code) p->room = bytes;
    return e;
}

static err put(item_output *out, const layout_slot *slot, const void *data, uint64_t n,
               uint64_t begin) {
    for (int i = 0; i < out->n_units; i++)
        if (out->units[i] == slot->unit)
            return run_object_put(out->objects[i], data, n, slot->unit_offset + begin);
    return err_make(ERR_BUG, slot->name, NULL, "a tensor of another unit");
}

static err take_plain(void *arg, const llama_tensor *t, int64_t row0, int64_t rows,
                      const float *w) {
    item_output *out = arg;
    const layout_slot *slot = layout_find_role(out->q->layout, t->role, t->layer, LAYOUT_PLAIN);
    if (!slot) return err_make(ERR_BUG, t->name, NULL, "no place in the archive");
    uint64_t size = (uint64_t)st_dtype_bytes(slot->dtype);
    int64_t n = rows * t->cols;
    err e = piece_reserve(out->piece, (uint64_t)n * size, t->name);
    if (!e.code) e = packed_plain_fill(w, n, slot->dtype, t->name, out->piece->bytes);
    if (e.code) return e;
    return put(out, slot, out->piece->bytes, (uint64_t)n * size, (uint64_t)(row0 * t->cols) * size);
}

static err take_quantized(void *arg, const llama_tensor *t, const qmatrix *m) {
    item_output *out = arg;
    static const layout_kind kinds[] = {LAYOUT_PACKED, LAYOUT_SCALE, LAYOUT_ZEROS, LAYOUT_SHAPE};
    err e = err_none();
    for (int i = 0; i < 4 && !e.code; i++) {
        const layout_slot *slot = layout_find_role(out->q->layout, t->role, t->layer, kinds[i]);
        if (!slot) continue; /* no zero points where symmetric */
        uint64_t n = packed_tensor_bytes(m, kinds[i]);
        if (n != slot->bytes)
            return err_make(ERR_BUG, slot->name, NULL, "size differs from the layout");
        e = piece_reserve(out->piece, n, slot->name);
        if (e.code) return e;
        packed_tensor_fill(m, kinds[i], out->piece->bytes);
        e = put(out, slot, out->piece->bytes, n, 0);
    }
    return e;
}

/* What a rank tells rank 0 about a round: one item at most. */
typedef struct round_report {
    int64_t item; /* -1: none */
    char hex[2][SHA256_HEX];
    quantize_result result;
    double seconds;
} round_report;

/* Items whose objects may be hashed and flushed while others are computed: an embedding takes as
 * long as several layers. */
enum { BEHIND = 4 };

/* An item whose objects are hashed and flushed while the next ones are computed. */
typedef struct pending {
    item_output out;
    round_report report; /* of item -1 where there is none */
    err e;
    task *finishing;
} pending;

static void finish_objects(void *arg) {
    pending *p = arg;
    for (int i = 0; i < p->out.n_units && !p->e.code; i++)
        p->e = run_object_finish(&p->out.objects[i], p->report.hex[i]);
}

/* Compute an item; its objects are still open. */
static err do_item(quantize_run *q, int64_t item, read_ahead *reader, piece *room, pending *p) {
    item_output *out = &p->out;
    *p = (pending){.out = {.q = q, .piece = room}, .report.item = item};
    out->n_units = quantize_item_units(&q->job, item, out->units);
    err e = err_none();
    double start = clock_now_s();
    for (int i = 0; i < out->n_units && !e.code; i++)
        e = run_object_create(q->out, layout_unit_bytes(q->layout, out->units[i]),
                              &out->objects[i]);
    quantize_sink sink = {.arg = out, .plain = take_plain, .quantized = take_quantized};
    if (!e.code) e = quantize_item(&q->job, item, reader, &sink, &p->report.result);
    p->report.seconds = clock_now_s() - start;
    return e;
}

/* Wait for the objects of an item; none of them is left open. */
static err await_objects(pending *p, round_report *report) {
    task_wait(&p->finishing);
    for (int i = 0; i < p->out.n_units; i++) run_object_abandon(&p->out.objects[i]);
    *report = p->report;
    err e = p->e;
    *p = (pending){.report.item = -1};
    return e;
}

/* One round of a rank: an item is computed while the objects of those before are finished; what
 * the round brings is the item that was computed BEHIND rounds before. */
static err do_round(quantize_run *q, int64_t item, read_ahead *reader, piece *room, pending *before,
                    round_report *brought) {
    pending now = {.report.item = -1};
    err e = item >= 0 ? do_item(q, item, reader, room, &now) : err_none(),
        f = await_objects(before, brought);
    if (!f.code) f = e;
    if (f.code) {
        round_report none;
        await_objects(&now, &none);
        return f;
    }
    *before = now;
    if (item >= 0) before->finishing = task_start(finish_objects, before);
    return f;
}

static bool item_done(const quantize_run *q, int64_t item) {
    int64_t units[2];
    int n = quantize_item_units(&q->job, item, units);
    for (int i = 0; i < n; i++)
        if (!q->units[units[i]].hex[0]) return false;
    return true;
}

/* The items of this rank that are not done, rising. Caller frees (free). */
static int64_t *own_items(const quantize_run *q, int64_t *n) {
    int64_t *items = calloc((size_t)q->n_items + 1, sizeof *items);
    if (!items) abort();
    *n = 0;
    for (int64_t i = 0; i < q->n_items; i++)
        if (q->owner[i] == comm_rank(q->c) && !item_done(q, i)) items[(*n)++] = i;
    return items;
}

/* Root only. Enter a finished item into the work tree, the events and the sums. */
static err note_item(quantize_run *q, const round_report *r) {
    int64_t units[2];
    int n = quantize_item_units(&q->job, r->item, units);
    json_t *done = json_object_get(run_state_work(q->state), "units");
    char key[24];
    for (int i = 0; i < n; i++) {
        snprintf(key, sizeof key, "%" PRId64, units[i]);
        json_object_set_new(
            done, key,
            json_pack("{s:s, s:s}", "object", r->hex[i], "source_sha256", r->result.source_sha256));
    }
    /* A source that changed under a run must not end up in one archive with what it was. */
    json_t *sources = json_object_get(run_state_work(q->state), "sources");
    snprintf(key, sizeof key, "%" PRId64, r->item);
    const char *before = json_string_value(json_object_get(sources, key));
    if (before && strcmp(before, r->result.source_sha256))
        return err_make(ERR_MISMATCH, q->source.path, "start over with --force",
                        "tensors of layer item %" PRId64 " are not those of the start of this run",
                        r->item);
    json_object_set_new(sources, key, json_string(r->result.source_sha256));
    q->error_sq += r->result.error.sum_sq_error;
    q->weight_sq += r->result.error.sum_sq_weight;
    json_t *more = json_pack("{s:I, s:f}", "item", (json_int_t)r->item, "seconds", r->seconds);
    if (r->result.error.sum_sq_weight > 0)
        json_object_set_new(
            more, "relative_error",
            json_real(sqrt(r->result.error.sum_sq_error / r->result.error.sum_sq_weight)));
    events_add(q->events, "gptq", "layer", more);
    return err_none();
}

/* Collective. Share what the round brought: rank 0 notes it, everyone marks the units. */
static err share_round(quantize_run *q, const round_report *mine, int64_t *done_items) {
    int size = comm_size(q->c);
    round_report *all = calloc((size_t)size, sizeof *all);
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
        if (q->state && !e.code) e = note_item(q, &all[r]);
    }
    free(all);
    return e;
}

err quantize_do_items(quantize_run *q) {
    int64_t done = 0, at = 0, round = 0, n_own;
    for (int64_t i = 0; i < q->n_items; i++) done += item_done(q, i);
    quantize_phase_start(q, "gptq");
    double last_commit_s = clock_now_s();
    int64_t *own = own_items(q, &n_own);
    read_ahead *reader = NULL;
    pending open[BEHIND];
    for (int i = 0; i < BEHIND; i++) open[i] = (pending){.report.item = -1};
    piece bytes = {0};
    err e = quantize_item_read_ahead(&q->job, own, n_own, &reader);
    e = comm_agree(q->c, e, "reading the weights", NULL);
    while (done < q->n_items && !e.code) {
        round_report mine = {.item = -1};
        int64_t item = at < n_own ? own[at++] : -1;
        e = do_round(q, item, reader, &bytes, &open[round++ % BEHIND], &mine);
        e = comm_agree(q->c, e, "quantizing", NULL);
        if (e.code) break;
        e = share_round(q, &mine, &done);
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
    round_report unused;
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
