/* What learning keeps in the run state: objects of doubles. */
#include "jobs/learn.h"

#include "base/file.h"
#include "base/log.h"

#include <stdlib.h>
#include <string.h>

/* Root only. Doubles to an object, and its name into the work tree under `key`. */
err learn_keep(quantize_run *q, const char *key, const double *v, int64_t n, int64_t phase) {
    run_object *o;
    char hex[SHA256_HEX];
    err e = run_object_create(q->out, (uint64_t)n * sizeof *v, &o);
    if (!e.code) e = run_object_put(o, v, (uint64_t)n * sizeof *v, 0);
    if (!e.code) e = run_object_finish(&o, hex);
    run_object_abandon(&o);
    if (!e.code)
        json_object_set_new(run_state_work(q->state), key,
                            json_pack("{s:s, s:I, s:I}", "object", hex, "doubles", (json_int_t)n,
                                      "phase", (json_int_t)phase));
    return e;
}

/* Collective. What `keep` kept, on every rank; *out NULL where there is none, or where it is
 * damaged (said: that phase is done again). Caller frees (free). */
err learn_recall(quantize_run *q, const char *key, double **out, int64_t *n, int64_t *phase) {
    int64_t head[2] = {0, 0};
    void *blob = NULL;
    size_t len = 0;
    if (q->state) {
        const json_t *v = json_object_get(run_state_work(q->state), key);
        const char *hex = json_string_value(json_object_get(v, "object"));
        head[0] = json_integer_value(json_object_get(v, "doubles"));
        head[1] = json_integer_value(json_object_get(v, "phase"));
        err e = err_none();
        char *text = NULL;
        if (hex && head[0] > 0) {
            char *path = run_object_path(q->out, hex);
            e = run_object_check(q->out, hex, (uint64_t)head[0] * sizeof(double));
            if (!e.code) e = file_read_all(path, (uint64_t)head[0] * sizeof(double), &text, &len);
            free(path);
        }
        if (e.code) log_line(LOG_WARN, "%s: %s; learning starts over", e.where, e.what);
        blob = text;
        if (!text) len = 0;
    }
    comm_bcast(q->c, head, sizeof head, 0);
    comm_bcast_blob(q->c, &blob, &len, 0);
    *out = len ? blob : NULL;
    if (!len) free(blob);
    *n = head[0];
    *phase = head[1];
    return err_none();
}

static void put_rotations(const learner *l, double *to) {
    int64_t n = learner_cfg(l)->hidden;
    if (l->R1) memcpy(to, l->R1, (size_t)(n * n) * sizeof *to);
    if (l->r2_heads)
        memcpy(to + (l->R1 ? n * n : 0), l->R2,
               (size_t)(learner_cfg(l)->layers * learner_r2_entries(l)) * sizeof *to);
}

int64_t learn_rotations_count(const learner *l) {
    int64_t n = learner_cfg(l)->hidden;
    return (l->R1 ? n * n : 0) + learner_cfg(l)->layers * learner_r2_entries(l);
}

/* Root only, with the rest agreeing: rotations and how many phases are behind them. */
err learn_keep_rotations(learner *l, int64_t phases_done) {
    quantize_run *q = l->q;
    err e = err_none();
    if (q->state) {
        int64_t n = learn_rotations_count(l);
        double *v = malloc((size_t)n * sizeof *v);
        if (!v) abort();
        put_rotations(l, v);
        e = learn_keep(q, "rotations", v, n, phases_done);
        json_object_del(run_state_work(q->state), "learning");
        if (!e.code) e = run_state_commit(q->state, "learn");
        free(v);
    }
    return comm_agree(q->c, e, "committing", NULL);
}

void learn_take_rotations(learner *l, const double *v) {
    int64_t n = learner_cfg(l)->hidden;
    if (l->R1) memcpy(l->R1, v, (size_t)(n * n) * sizeof *v);
    if (l->r2_heads)
        memcpy(l->R2, v + (l->R1 ? n * n : 0),
               (size_t)(learner_cfg(l)->layers * learner_r2_entries(l)) * sizeof *v);
}
