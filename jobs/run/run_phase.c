/* A phase is timed by the clock and by the largest peak of any rank, and told beside its plan. */
#include "jobs/run/run_phase.h"

#include "base/clock.h"
#include "base/gemm.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/size.h"
#include "jobs/run/run_plan.h"
#include "mpi/watch.h"

#include <stdio.h>
#include <stdlib.h>

/* NULL on other ranks than the first, and for phases without a plan. */
static const plan_phase *planned_of(const quantize_run *q, const char *phase) {
    return q->plan ? plan_find(q->plan, phase) : NULL;
}

/* Resident bytes of the rank with most: of the phase, and before it began. */
typedef struct phase_memory {
    int64_t peak, held;
} phase_memory;

/* The line at the end of a phase: what it took, and what was planned. */
static void tell_phase(const quantize_run *q, const char *phase, double seconds,
                       const phase_memory *took) {
    const plan_phase *f = planned_of(q, phase);
    char text[32], held[32], bytes[32], planned[64] = "", memory[64] = "";
    if (f) {
        snprintf(planned, sizeof planned, " (planned %.2f to %.2f)", plan_low(q->plan, f),
                 plan_high(q->plan, f));
        snprintf(memory, sizeof memory, " (planned %s)",
                 size_text(memory_plan_total(&f->memory), bytes));
    }
    log_line(LOG_PHASE, "%s: done in %.2f s%s, largest rank at %s%s, %s before it", phase, seconds,
             planned, size_text((uint64_t)took->peak, text), memory,
             size_text((uint64_t)took->held, held));
}

/* Phases are named by their callers for as long as they run, learn.K on their stack. */
static void tell_watch(const char *phase) {
    static char names[2][32]; /* the other may be being read */
    static int at;
    at = !at;
    snprintf(names[at], sizeof names[at], "%s", phase);
    watch_phase(names[at]);
}

void quantize_tell_plan(const quantize_run *q) {
    if (!q->events || !q->plan) return;
    json_t *phases = json_array();
    for (int i = 0; i < q->plan->n_phases; i++) {
        const plan_phase *f = &q->plan->phases[i];
        json_array_append_new(phases, json_pack("{s:s, s:f, s:I, s:I}", "phase", f->name, "seconds",
                                                f->seconds, "units", (json_int_t)f->units, "bytes",
                                                (json_int_t)memory_plan_total(&f->memory)));
    }
    events_add(q->events, "load", "plan", json_pack("{s:o}", "phases", phases));
}

void quantize_phase_start(quantize_run *q, const char *phase) {
    tell_watch(phase);
    q->phase_start_s = clock_now_s();
    machine_used(&q->phase_start_use);
    q->phase_start_sent = comm_sent_bytes();
    q->phase_start_network = comm_network_bytes();
    mem_begin_phase();
    q->phase_start_held = mem_rss_bytes();
    events_add(q->events, phase, "start", NULL);
}

/* What all ranks took in a phase. */
typedef struct phase_use {
    int64_t read_bytes, written_bytes, sent_bytes, network_bytes, cpu_ms, threads;
} phase_use;
enum { USES = sizeof(phase_use) / sizeof(int64_t) };

/* Collective on q->c. */
static phase_use use_of_all(const quantize_run *q, uint64_t sent, uint64_t network) {
    const machine_use *from = &q->phase_start_use;
    machine_use now;
    machine_used(&now);
    phase_use u = {.read_bytes = (int64_t)(now.read_bytes - from->read_bytes),
                   .written_bytes = (int64_t)(now.written_bytes - from->written_bytes),
                   .sent_bytes = (int64_t)sent,
                   .network_bytes = (int64_t)network,
                   .cpu_ms = (int64_t)(1e3 * (now.cpu_s - from->cpu_s)),
                   .threads = gemm_threads()};
    comm_sum_i64(q->c, (int64_t *)&u, USES);
    return u;
}

/* Threads that wait for MPI work in the eyes of the system, so the share is of those that sleep. */
static void note_use(json_t *event, const phase_use *u, double seconds) {
    const double all = seconds * (double)u->threads;
    json_object_set_new(event, "read_bytes", json_integer(u->read_bytes));
    json_object_set_new(event, "written_bytes", json_integer(u->written_bytes));
    json_object_set_new(event, "sent_bytes", json_integer(u->sent_bytes));
    json_object_set_new(event, "network_bytes", json_integer(u->network_bytes));
    json_object_set_new(event, "cpu_seconds", json_real(1e-3 * (double)u->cpu_ms));
    if (all > 0) json_object_set_new(event, "busy", json_real(1e-3 * (double)u->cpu_ms / all));
}

/* Collective on q->c. A number of each rank, in rank order; NULL on others than the first. */
static json_t *by_rank(const quantize_run *q, uint64_t mine) {
    const int size = comm_size(q->c);
    uint64_t *all = calloc((size_t)size, sizeof *all);
    json_t *list = q->events ? json_array() : NULL;
    if (!all) abort();
    comm_gather(q->c, &mine, sizeof mine, all, 0);
    for (int r = 0; r < size && list; r++)
        json_array_append_new(list, json_integer((json_int_t)all[r]));
    free(all);
    return list;
}

void quantize_phase_end(quantize_run *q, const char *phase, json_t *more) {
    double seconds = clock_now_s() - q->phase_start_s;
    const uint64_t peak = mem_peak_rss_bytes();
    phase_memory took = {(int64_t)peak, (int64_t)q->phase_start_held};
    comm_max_i64(q->c, (int64_t *)&took, sizeof took / sizeof(int64_t));
    const uint64_t sent = comm_sent_bytes() - q->phase_start_sent,
                   network = comm_network_bytes() - q->phase_start_network;
    const phase_use use = use_of_all(q, sent, network);
    json_t *sent_by_rank = by_rank(q, sent), *peaks = by_rank(q, peak);
    tell_phase(q, phase, seconds, &took);
    if (!q->events) {
        json_decref(more);
        return;
    }
    if (!more) more = json_object();
    json_object_set_new(more, "seconds", json_real(seconds));
    json_object_set_new(more, "peak_rss_bytes", json_integer(took.peak));
    json_object_set_new(more, "start_rss_bytes", json_integer(took.held));
    note_use(more, &use, seconds);
    json_object_set_new(more, "sent_bytes_by_rank", sent_by_rank);
    json_object_set_new(more, "peak_rss_bytes_by_rank", peaks);
    const plan_phase *planned = planned_of(q, phase);
    if (planned) {
        json_object_set_new(more, "planned_seconds", json_real(planned->seconds));
        json_object_set_new(more, "planned_seconds_low", json_real(plan_low(q->plan, planned)));
        json_object_set_new(more, "planned_seconds_high", json_real(plan_high(q->plan, planned)));
        if (planned->passes)
            json_object_set_new(more, "planned_passes", json_integer((json_int_t)planned->passes));
        json_object_set_new(more, "planned_bytes",
                            json_integer((json_int_t)memory_plan_total(&planned->memory)));
        json_object_set_new(more, "planned_sent_bytes", json_integer((json_int_t)planned->sent));
        json_object_set_new(more, "planned_network_bytes",
                            json_integer((json_int_t)planned->network));
    }
    events_add(q->events, phase, "end", more);
}
