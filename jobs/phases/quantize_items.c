/* In rounds: each rank computes one item while a thread hashes and flushes those before; rank 0
 * enters what a round brought and commits when enough time has passed. */
#include "jobs/phases/quantize_items.h"

#include "base/clock.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/size.h"
#include "base/task.h"
#include "jobs/phases/item_output.h"
#include "jobs/phases/quantize_learn.h"
#include "jobs/run/run_phase.h"
#include "jobs/run/stop.h"
#include "jobs/setup/recipe_asks.h"
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

/* A table of the vocabulary takes long to read and long to flush: layers go before it, which are
 * computed while it is read, and layers behind it. */
static void move_table_inside(int64_t *items, int64_t n) {
    enum { BEFORE = 4 };
    const int64_t table = items[0], to = size_min(BEFORE, n / 2);
    if (n == 0 || table != 0) return;
    memmove(items, items + 1, (size_t)to * sizeof *items);
    items[to] = table;
}

/* The items of a rank that it rounds to nearest and that are not done, in the order in which it
 * does them. Caller frees (free). */
static int64_t *items_of(const quantize_run *q, int rank, int64_t *n) {
    int64_t *items = calloc((size_t)q->n_items + 1, sizeof *items);
    if (!items) abort();
    *n = 0;
    for (int64_t i = 0; i < q->n_items; i++) {
        const bool other = i >= 1 && i <= q->source.cfg.layers && quantize_uses_gptq(q->set);
        if (q->owner[i] == rank && !other && !quantize_item_done(q, i)) items[(*n)++] = i;
    }
    move_table_inside(items, *n);
    return items;
}

/* Large buffers of a rank while it rounds its items to nearest, added to *p. True: it reads tensors
 * ahead, since the plan then has at most `limit` bytes (0: unknown). */
static bool items_memory(const quantize_run *q, int rank, uint64_t limit, memory_plan *p) {
    quantize_memory most = {0};
    int64_t n_own, *own = items_of(q, rank, &n_own);
    for (int64_t i = 0; i < n_own; i++) {
        quantize_memory m = quantize_item_memory(&q->job, own[i]);
        if (m.fusion + m.codes > most.fusion + most.codes) most = m;
    }
    memory_plan_add(p, "fusion in fp64", most.fusion);
    const form *f = layout_opts(q->layout)->linears.form;
    memory_plan_add(p, "codes and scales", most.codes);
    memory_plan_add(p, "packed tensor",
                    !f || f->byte_codes ? most.codes : most.codes * (uint64_t)q->job.how.bits / 8);
    memory_plan_add(p, "rotations", quantize_learned_bytes(q));
    const uint64_t read = quantize_item_read_bytes(&q->job, own, n_own, true);
    const bool ahead = !limit || memory_plan_total(p) + read <= limit;
    memory_plan_add(p, "tensors as read",
                    ahead ? read : quantize_item_read_bytes(&q->job, own, n_own, false));
    free(own);
    return ahead;
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
    const char *phase = quantize_items_phase(q->set);
    if (!quantize_uses_gptq(q->set)) quantize_phase_start(q, phase); /* else it is on */
    const int64_t before = done;
    bool first = true; /* what is done first is kept at once: a run that dies young has begun */
    double last_commit_s = clock_now_s();
    int64_t *own = items_of(q, comm_rank(q->c), &n_own);
    read_ahead *reader = NULL;
    pending open[BEHIND];
    for (int i = 0; i < BEHIND; i++) open[i] = (pending){.report.item = -1};
    item_piece bytes = {0};
    memory_plan plan = {.n = 0};
    memory_plan_add(&plan, "program", q->base_bytes);
    const bool ahead = items_memory(q, comm_rank(q->c), memory_plan_limit(q->flags.limit), &plan);
    if (!ahead) log_line(LOG_PHASE, "%s: no tensor is read ahead: memory is short", phase);
    err e = quantize_item_read_ahead(&q->job, own, n_own, ahead, &reader);
    e = comm_agree(q->c, e, "reading the weights", NULL);
    while (done < q->n_items && !e.code) {
        item_report mine = {.item = -1};
        int64_t item = at < n_own ? own[at++] : -1;
        e = do_round(q, item, reader, &bytes, &open[round++ % BEHIND], &mine);
        /* What is resident beyond the plan: holes of a heap that earlier phases have stretched. */
        if (mem_rss_bytes() > memory_plan_total(&plan)) mem_give_back();
        e = comm_agree(q->c, e, "quantizing", NULL);
        if (e.code) break;
        e = share_round(q, &mine, &done);
        err same = check_replicas(q);
        if (!e.code) e = same;
        bool stop = stop_agreed(q->c);
        bool due = stop || done == q->n_items || (first && done > before) ||
                   clock_now_s() - last_commit_s > COMMIT_EVERY_S;
        if (q->state && due && !e.code) {
            e = run_state_commit(q->state, phase);
            events_add(q->events, phase, "commit", json_pack("{s:I}", "done", (json_int_t)done));
            last_commit_s = clock_now_s();
            first = first && done == before;
            if (!e.code && fault_hit("commit"))
                e = err_make(ERR_BUG, "commit", NULL, "a fault on demand");
        }
        if (q->state) run_state_heartbeat(q->state);
        e = comm_agree(q->c, e, "committing", NULL);
        log_progress(phase, done, q->n_items);
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
    quantize_phase_end(q, phase, more);
    return e;
}

/* What became of each round, to the first rank and back to all; and what all compare and ask. */
static plan_bytes items_network(const plan_maker *m, const bool *wanted) {
    enum { ASKED = 2 * sizeof(int64_t) + 2 * SHA256_HEX };
    int64_t most = 0, *own = calloc((size_t)m->ranks, sizeof *own);
    if (!own) abort();
    for (int64_t i = 0; i < m->q->n_items; i++)
        if (wanted[i]) most = size_max(most, ++own[m->q->owner[i]]);
    free(own);
    return plan_to_all(m, (uint64_t)(most + BEHIND) *
                              (sizeof(item_report) * (uint64_t)(1 + m->ranks) + ASKED));
}

err quantize_items_plan(plan_maker *m) {
    const quantize_run *q = m->q;
    const plan_place *place = &m->p->place;
    const int active = (int)size_min(m->ranks, q->n_items);
    double *load = calloc((size_t)m->ranks, sizeof *load), slowest = 0, all = 0, longest = 0;
    bool *wanted = calloc((size_t)q->n_items, sizeof *wanted);
    if (!load || !wanted) abort();
    const bool gptq = quantize_uses_gptq(q->set);
    err e = err_none();
    plan_phase *f = &m->p->phases[m->p->n_phases - 1]; /* that of GPTQ, which is completed */
    if (!gptq) e = plan_add_phase(m, quantize_items_phase(q->set), &f);
    for (int64_t i = 0; i < q->n_items; i++) {
        const bool layer = i >= 1 && i <= plan_config(m)->layers;
        wanted[i] = !gptq || !layer;
        if (!wanted[i]) continue;
        const double one = plan_item_seconds(m, i, true);
        load[q->owner[i]] += one;
        longest = fmax(longest, one);
    }
    for (int r = 0; r < m->ranks; r++) {
        slowest = fmax(slowest, load[r]);
        all += load[r];
    }
    for (int r = 0; r < active && !e.code; r++) {
        memory_plan p = plan_fresh(m);
        items_memory(q, r, place->limit, &p);
        plan_offer(f, &p, r);
    }
    free(load);
    const plan_bytes network = items_network(m, wanted);
    free(wanted);
    if (e.code) return e;
    if (gptq) slowest += f->seconds;
    const double disk = (double)m->p->read_bytes / (m->rank.rates->read * place->nodes) +
                        (double)m->p->run_bytes / (m->rank.rates->write * place->nodes);
    f->seconds = fmax(slowest, (double)m->p->read_bytes / (m->rank.rates->read * place->nodes)) +
                 (double)m->p->run_bytes / (m->rank.rates->write * place->nodes);
    if (!gptq && slowest > 0 && slowest > disk) f->busy = all / m->ranks / slowest;
    if (!gptq) f->units = size_ceil_div(q->n_items, active);
    f->blind_s = fmax(f->blind_s, longest);
    plan_send(m, f, network);
    return e;
}
