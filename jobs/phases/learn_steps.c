/* Steps until all are done; a commit when it is due by steps, by the clock of any rank, or before a
 * stop. */
#include "jobs/phases/learn_steps.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "jobs/phases/learn_state.h"
#include "jobs/run/stop.h"
#include "mpi/replicas.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define COMMIT_SECONDS 60.0

/* Collective. */
static err phase_state(const learner *l, const learn_phase *p, learn_kept *k) {
    void *common = NULL, *cell = NULL;
    *k = (learn_kept){.phase = p->number};
    p->state_counts(p->self, &k->n_common, &k->n_cell);
    err e = err_none();
    if (l->q->state) e = mem_alloc(k->n_common, sizeof(double), "state of learning", &common);
    if (!e.code) e = mem_alloc(k->n_cell, sizeof(double), "state of R1", &cell);
    k->common = common;
    k->cell = cell;
    e = comm_agree(l->q->c, e, "keeping the state of learning", NULL);
    return e.code ? e : p->state_save(p->self, k->common, k->cell);
}

/* Collective. A commit must not make durable what ranks do not agree on. */
static err check_replicas(const learner *l, const learn_phase *p, const char *name) {
    const void *data;
    const uint64_t bytes = p->replica(p->self, &data);
    const replica parts[] = {{"R1", data, bytes}};
    return replicas_check(l->q->c, parts, 1, name);
}

static err commit_phase(learner *l, const learn_phase *p, const learn_report *report) {
    quantize_run *q = l->q;
    learn_kept k;
    char name[32];
    snprintf(name, sizeof name, "learn.%" PRId64, p->number);
    err e = check_replicas(l, p, name);
    if (e.code) return e;
    e = phase_state(l, p, &k);
    if (!e.code) e = learn_keep(q, &k);
    if (q->state && !e.code) e = learn_commit(q, name);
    learn_kept_clear(&k);
    e = comm_agree(q->c, e, "committing", NULL);
    if (!e.code)
        events_add(q->events, name, "commit", json_pack("{s:I}", "step", (json_int_t)report->step));
    return e;
}

static void tell_step(const learner *l, const char *name, const learn_report *r, int64_t steps,
                      double seconds) {
    log_progress(name, r->step, steps);
    if (!l->q->events) return;
    json_t *more = json_pack("{s:I, s:f, s:f, s:f, s:f, s:f, s:f}", "step", (json_int_t)r->step,
                             "loss", r->loss, "loss_r2", r->loss_r2, "angle_r1", r->angle_r1,
                             "angle_r2", r->angle_r2, "orth", r->orthogonality, "seconds", seconds);
    if (r->tokens_per_s > 0) json_object_set_new(more, "tokens_per_s", json_real(r->tokens_per_s));
    if (r->peak_share > 0) json_object_set_new(more, "peak_share", json_real(r->peak_share));
    events_add(l->q->events, name, "step", more);
}

err learn_run_steps(learner *l, const learn_phase *p, int64_t done) {
    quantize_run *q = l->q;
    char name[32];
    snprintf(name, sizeof name, "learn.%" PRId64, p->number);
    double start = clock_now_s(), committed = start;
    learn_report report = {.step = done}, first = {0};
    err e = err_none();
    while (report.step < p->steps && !e.code) {
        e = p->step(p->self, &report);
        if (e.code) return err_at(e, name);
        if (!first.step) first = report;
        double now = clock_now_s();
        tell_step(l, name, &report, p->steps, now - start);
        int64_t due = now - committed > COMMIT_SECONDS;
        comm_max_i64(q->c, &due, 1); /* clocks differ between ranks */
        bool stop = stop_agreed(q->c);
        if (due || stop || report.step % p->commit_steps == 0 || report.step == p->steps) {
            e = commit_phase(l, p, &report);
            committed = clock_now_s();
        }
        if (q->state) run_state_heartbeat(q->state);
        if (stop && !e.code && report.step < p->steps)
            return comm_agree(q->c, stop_error(q->out), "stopping", NULL);
    }
    if (!e.code && first.step)
        log_line(LOG_PHASE,
                 "%s: %" PRId64
                 " steps in %.1f s, loss %.5g -> %.5g (R2 %.5g -> %.5g), |R^T R - I| about %.1g",
                 name, report.step - done, clock_now_s() - start, first.loss, report.loss,
                 first.loss_r2, report.loss_r2, report.orthogonality);
    return e;
}
