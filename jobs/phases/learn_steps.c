/* Steps until all are done; a commit when it is due by steps, by the clock of any rank, or before a
 * stop. */
#include "jobs/phases/learn_steps.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "jobs/run/stop.h"
#include "mpi/replicas.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

/* Collective. */
static err phase_state(const learner *l, const learn_phase *p, learn_saved *k) {
    *k = (learn_saved){.phase = p->number, .n_common = p->state_count(p->self)};
    err e = err_none();
    if (l->q->state) e = MEM_NEW(&k->common, k->n_common, "state of learning");
    e = comm_agree(l->q->c, e, "keeping the state of learning", NULL);
    return e.code ? e : p->state_save(p->self, k->common);
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
    learn_saved k;
    char name[32];
    snprintf(name, sizeof name, "learn.%" PRId64, p->number);
    err e = check_replicas(l, p, name);
    if (e.code) return e;
    e = phase_state(l, p, &k);
    byte_piece cell[CAYLEY_STATE_PIECES];
    const int pieces = p->state_cell(p->self, cell);
    if (!e.code) e = learn_save(q, &k, cell, pieces);
    if (q->state && !e.code) e = learn_commit(q, name);
    learn_saved_clear(&k);
    e = comm_agree(q->c, e, "committing", NULL);
    if (!e.code)
        events_add(q->events, name, "commit", json_pack("{s:I}", "step", (json_int_t)report->step));
    return e;
}

static void tell_step(const learner *l, const char *name, const learn_report *r, int64_t steps,
                      double seconds) {
    log_progress(name, r->step, steps);
    if (!l->q->events) return;
    json_t *more =
        json_pack("{s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "step", (json_int_t)r->step, "loss",
                  r->loss, "loss_r2", r->loss_r2, "angle_r1", r->angle_r1, "angle_r2", r->angle_r2,
                  "promise", r->promise, "orth", r->orthogonality, "seconds", seconds);
    if (r->tokens_per_s > 0) json_object_set_new(more, "tokens_per_s", json_real(r->tokens_per_s));
    if (r->condition > 0) json_object_set_new(more, "condition", json_real(r->condition));
    if (r->peak_share > 0) json_object_set_new(more, "peak_share", json_real(r->peak_share));
    events_add(l->q->events, name, "step", more);
}

static const char *what_became(judge_word word) {
    return word == JUDGE_SNAPSHOT ? "best"
           : word == JUDGE_GO_ON  ? "close to the best"
                                  : "taken back";
}

/* The measure, and who pushes R1 how much. */
static void tell_verdict(const learner *l, const char *name, const learn_verdict *v) {
    if (!l->q->events) return;
    json_t *more = json_pack("{s:I, s:f}", "step", (json_int_t)v->step, "held", v->loss);
    if (v->r1) {
        json_object_set_new(more, "r1", json_string(what_became(v->word)));
        json_object_set_new(more, "rate", json_real(v->j.rate));
    }
    if (v->r2) {
        json_object_set_new(more, "held_r2", json_real(v->loss_r2));
        json_object_set_new(more, "r2", json_string(what_became(v->word_r2)));
        json_object_set_new(more, "rate_r2", json_real(v->j_r2.rate));
    }
    if (v->push_site > 0)
        json_object_update_new(
            more, json_pack("{s:f, s:f, s:s, s:I, s:f}", "push_attn", v->push_attn, "push_site",
                            v->push_site, "site", v->heaviest_site % 2 ? "mlp" : "attn", "layer",
                            (json_int_t)(v->heaviest_site / 2), "push_row", v->push_row));
    events_add(l->q->events, name, "held", more);
}

/* Said at the first time; events have them all. At the end the closing lines tell it. */
static void tell_taken_back(const char *name, const learn_verdict *v, const char *which,
                            judge_word word, double loss, const learn_judge *j, int64_t steps) {
    if (word != JUDGE_RESTORE || j->taken_back > 1 || v->step == steps) return;
    log_line(LOG_PHASE,
             "%s: %s of step %" PRId64 " was worse on held-out rows than that of step %" PRId64
             " (%.5g, %.5g): taken back, and its rate is halved, as it will be if it happens again",
             name, which, v->step, j->best_step, loss, j->best);
}

/* Collective. */
static err judge_phase(const learner *l, const learn_phase *p, const char *name,
                       learn_verdict *last) {
    learn_verdict v;
    err e = p->judge(p->self, &v);
    if (e.code) return err_at(e, name);
    tell_verdict(l, name, &v);
    if (v.r1) tell_taken_back(name, &v, "R1", v.word, v.loss, &v.j, p->steps);
    if (v.r2 && v.loss_r2 > 0)
        tell_taken_back(name, &v, "R2", v.word_r2, v.loss_r2, &v.j_r2, p->steps);
    *last = v;
    return e;
}

/* The measure at the start and as it is left: what was measured last, or the best where that was
 * taken back. */
static void tell_held(const char *name, const char *which, const learn_judge *j, judge_word word,
                      double loss) {
    const bool restored = word == JUDGE_RESTORE;
    log_line(LOG_PHASE, "%s: %s on held-out rows %.5g -> %.5g%s", name, which, j->start,
             restored ? j->best : loss,
             !restored          ? ""
             : j->best_step > 0 ? ", taken back to the best"
                                : ": learning found nothing better, the start is kept");
}

static void tell_end(const char *name, const learn_phase *p, const learn_verdict *v) {
    if (!p->judge) return;
    if (v->r1) tell_held(name, "R1", &v->j, v->word, v->loss);
    if (v->r2 && v->loss_r2 > 0) tell_held(name, "R2", &v->j_r2, v->word_r2, v->loss_r2);
}

/* Collective. A state of this phase and of these sizes on every rank is taken over. */
static err go_on(const learner *l, const learn_phase *p, const learn_saved *saved, int64_t *done) {
    byte_piece cell[CAYLEY_STATE_PIECES];
    const int pieces = p->state_cell(p->self, cell);
    int64_t misfits = !learn_state_fits(saved, p->number, p->state_count(p->self), cell, pieces);
    comm_max_i64(l->q->c, &misfits, 1);
    *done = 0;
    if (misfits) return err_none();
    *done = (int64_t)saved->common[0];
    log_line(LOG_RUN, "learn.%" PRId64 " goes on after step %" PRId64, p->number, *done);
    err e = learn_recall_cell(l->q, saved, cell, pieces);
    return e.code ? e : p->state_load(p->self, saved->common);
}

err learn_run_steps(learner *l, const learn_phase *p, const learn_saved *saved) {
    quantize_run *q = l->q;
    int64_t done;
    err e = go_on(l, p, saved, &done);
    if (e.code) return e;
    char name[32];
    snprintf(name, sizeof name, "learn.%" PRId64, p->number);
    double start = clock_now_s(), committed = start;
    learn_report report = {.step = done}, first = {0};
    learn_verdict verdict = {0};
    if (p->judge && done == 0) e = judge_phase(l, p, name, &verdict);
    while (report.step < p->steps && !e.code) {
        e = p->step(p->self, &report);
        if (e.code) return err_at(e, name);
        if (!first.step) first = report;
        double now = clock_now_s();
        tell_step(l, name, &report, p->steps, now - start);
        if (p->judge && learn_judge_due(report.step, p->steps, p->judge_every))
            e = judge_phase(l, p, name, &verdict);
        if (e.code) return e;
        int64_t due = now - committed > LEARN_COMMIT_SECONDS;
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
    if (!e.code && first.step) {
        log_line(LOG_PHASE,
                 "%s: %" PRId64
                 " steps in %.1f s, loss %.5g -> %.5g (R2 %.5g -> %.5g), |R^T R - I| about %.1g",
                 name, report.step - done, clock_now_s() - start, first.loss, report.loss,
                 first.loss_r2, report.loss_r2, report.orthogonality);
        if (report.condition > 0)
            log_line(LOG_PHASE, "%s: scales: greatest over least of a vector %.3g at most", name,
                     report.condition);
        tell_end(name, p, &verdict);
    }
    return e;
}
