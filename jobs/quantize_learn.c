/* Phases learn.k of quantize: rows of calibration text, start points, the objective `range`, and
 * the rotations that come out. Progress is one object of doubles; a restart captures the rows again
 * and goes on from the last commit. */
#include "jobs/quantize_run.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/gemm.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/size.h"
#include "jobs/setup.h"
#include "jobs/stop.h"
#include "pipeline/capture_run.h"
#include "pipeline/learn_range.h"
#include "pipeline/memory_plan.h"
#include "pipeline/partition.h"
#include "rotations/start.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { POOL_TOKENS = 4096, COMMIT_STEPS = 20 };
#define COMMIT_SECONDS 60.0

/* What learning holds on a rank. */
typedef struct learner {
    quantize_run *q;
    comm *stages; /* ranks with layers; NULL: all of them */
    int n_stages;
    stage_range range;
    row_pool pool;
    int64_t r2_heads;
    double *R1; /* [hidden, hidden]; NULL: not rotated */
    double *R2; /* [layers, r2_heads, d, d] of the whole model, on every rank */
} learner;

static const llama_config *cfg_of(const learner *l) {
    return &l->q->source.cfg;
}

static int64_t r2_entries(const learner *l) {
    return l->r2_heads * cfg_of(l)->head_dim * cfg_of(l)->head_dim;
}

/* ---- rows ---- */

static err capture_rows(learner *l) {
    quantize_run *q = l->q;
    const llama_config *cfg = cfg_of(l);
    int rank = comm_rank(q->c);
    int64_t window = recipe_int(q->recipe, "calib.window"), n = q->calib_windows;
    int64_t tokens = size_max(1, POOL_TOKENS / n) * n;
    if (tokens > n * window) tokens = n * window;
    embed_rows rows;
    err e = comm_agree(q->c, embed_rows_init(q->calib_ids, n * window, cfg->vocab, &rows), "tokens",
                       NULL);
    if (e.code) return e;
    load_options lo = {.checkpoint = q->source.ck,
                       .cfg = cfg,
                       .embed = rank == 0 ? &rows : NULL,
                       .head = rank == l->n_stages - 1,
                       .range = l->range,
                       .compute = COMPUTE_BF16};
    memory_plan p = {.n = 0};
    bool active = rank < l->n_stages;
    if (active) {
        memory_plan_add(&p, "weights", load_stage_bytes(&lo));
        memory_plan_add(&p, "passes",
                        capture_bytes(cfg, COMPUTE_BF16, l->range.n, window, l->n_stages, lo.head));
        memory_plan_add(&p, "sampled rows", row_pool_bytes(cfg, l->range.n, tokens));
    }
    e = memory_plan_check(q->c, &p, "learn", 0);
    llama_stage stage = {.cfg = cfg};
    if (!e.code) e = row_pool_init(cfg, l->range.first, l->range.n, tokens, &l->pool);
    if (!e.code && active) e = load_stage(&lo, &stage);
    e = comm_agree(q->c, e, "loading the weights", NULL);
    double nll = 0;
    if (!e.code && active) {
        const int32_t **starts = calloc((size_t)n, sizeof *starts);
        if (!starts) abort();
        for (int64_t i = 0; i < n; i++) starts[i] = q->calib_ids + i * window;
        eval_windows w = {.ids = starts, .n = n, .length = window};
        e = capture_run(l->stages ? l->stages : q->c, &stage, COMPUTE_BF16, &rows, &w, &l->pool,
                        &nll);
        free(starts);
    }
    llama_stage_clear(&stage);
    embed_rows_clear(&rows);
    e = comm_agree(q->c, e, "capturing activations", NULL);
    if (!e.code)
        log_line(LOG_PHASE, "captured %" PRId64 " tokens of every site; text at %.4f nats a token",
                 tokens, nll);
    for (int k = 0; k < POOL_KINDS && !e.code; k++) {
        e = comm_agree(q->c, row_pool_finish(q->c, &l->pool, (pool_kind)k), "sensitivities", NULL);
        if (k != POOL_R1) row_pool_normalise(&l->pool, (pool_kind)k);
    }
    return e;
}

/* ---- start points ---- */

static err start_r2_pca(learner *l) {
    int64_t d = cfg_of(l)->head_dim, dd = d * d;
    double *C = malloc((size_t)dd * sizeof *C);
    if (!C) abort();
    err e = err_none();
    for (int64_t i = 0; i < l->range.n && !e.code; i++) {
        for (int64_t h = 0; h < l->r2_heads && !e.code; h++) {
            int64_t layer = l->range.first + i;
            e = row_pool_moment_r2(&l->pool, layer, l->r2_heads > 1 ? h : -1, C);
            if (!e.code) e = start_pca(d, C, l->R2 + layer * r2_entries(l) + h * dd, NULL);
        }
    }
    free(C);
    return e;
}

/* Every rank has its own layers' R2; all ranks get all. Ranks own layers in rank order. */
static void share_r2(learner *l) {
    const comm *c = l->q->c;
    size_t each = (size_t)r2_entries(l) * sizeof(double),
           *lens = calloc((size_t)comm_size(c), sizeof *lens);
    size_t total = (size_t)cfg_of(l)->layers * each;
    void *all = NULL;
    if (!lens) abort();
    comm_gather_blobs(c, l->R2 + l->range.first * r2_entries(l), (size_t)l->range.n * each, &all,
                      lens, 0);
    if (comm_rank(c) == 0) memcpy(l->R2, all, total);
    comm_bcast(c, l->R2, total, 0);
    free(all);
    free(lens);
}

static err start_from_activations(learner *l) {
    int64_t n = cfg_of(l)->hidden;
    void *C = NULL;
    err e = err_none();
    if (l->R1) {
        e = mem_alloc(n * n, sizeof(double), "second moment", &C);
        e = comm_agree(l->q->c, e, "start points", NULL);
        if (!e.code) e = row_pool_moment_r1(l->q->c, &l->pool, C);
        if (!e.code) e = start_pca(n, C, l->R1, NULL);
        mem_free(C);
    }
    if (!e.code && l->r2_heads) e = start_r2_pca(l);
    e = comm_agree(l->q->c, e, "start points", NULL);
    if (!e.code && l->r2_heads) share_r2(l);
    return e;
}

/* The rotations that the recipe starts from, dense. */
static err start_from_set(learner *l) {
    rotation_set *set = l->q->rotations;
    int64_t dd = cfg_of(l)->head_dim * cfg_of(l)->head_dim;
    err e = err_none();
    if (l->R1) e = rotation_to_dense(rotation_set_r1(set), l->R1);
    for (int64_t i = 0; l->r2_heads && i < cfg_of(l)->layers && !e.code; i++) {
        e = rotation_set_prepare_r2(set, i);
        for (int64_t h = 0; h < l->r2_heads && !e.code; h++)
            e = rotation_to_dense(rotation_set_r2(set, i, h), l->R2 + i * r2_entries(l) + h * dd);
    }
    return comm_agree(l->q->c, e, "start points", NULL);
}

/* ---- state ---- */

/* Root only. Doubles to an object, and its name into the work tree under `key`. */
static err keep(quantize_run *q, const char *key, const double *v, int64_t n, int64_t phase) {
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
static err recall(quantize_run *q, const char *key, double **out, int64_t *n, int64_t *phase) {
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
    int64_t n = cfg_of(l)->hidden;
    if (l->R1) memcpy(to, l->R1, (size_t)(n * n) * sizeof *to);
    if (l->r2_heads)
        memcpy(to + (l->R1 ? n * n : 0), l->R2,
               (size_t)(cfg_of(l)->layers * r2_entries(l)) * sizeof *to);
}

static int64_t rotations_count(const learner *l) {
    int64_t n = cfg_of(l)->hidden;
    return (l->R1 ? n * n : 0) + cfg_of(l)->layers * r2_entries(l);
}

/* ---- one phase ---- */

static err commit_phase(learner *l, learn_range *r, int64_t phase, const learn_report *report) {
    quantize_run *q = l->q;
    int64_t n = learn_range_state_count(r);
    double *state = q->state ? malloc((size_t)n * sizeof *state) : NULL;
    char name[32];
    snprintf(name, sizeof name, "learn.%" PRId64, phase);
    err e = learn_range_state_save(r, state);
    if (q->state && !e.code) e = keep(q, "learning", state, n, phase);
    if (q->state && !e.code) e = run_state_commit(q->state, name);
    events_add(q->events, name, "commit", json_pack("{s:I}", "step", (json_int_t)report->step));
    free(state);
    return comm_agree(q->c, e, "committing", NULL);
}

static void tell_step(const learner *l, const char *name, const learn_report *r, int64_t steps,
                      double seconds) {
    log_progress(name, r->step, steps);
    events_add(l->q->events, name, "step",
               json_pack("{s:I, s:f, s:f, s:f, s:f, s:f, s:f}", "step", (json_int_t)r->step, "loss",
                         r->loss, "loss_r2", r->loss_r2, "angle_r1", r->angle_r1, "angle_r2",
                         r->angle_r2, "orth", r->orthogonality, "seconds", seconds));
}

static err run_steps(learner *l, learn_range *r, int64_t phase, int64_t done, int64_t steps) {
    quantize_run *q = l->q;
    char name[32];
    snprintf(name, sizeof name, "learn.%" PRId64, phase);
    double start = clock_now_s(), committed = start;
    learn_report report = {.step = done}, first = {0};
    err e = err_none();
    while (report.step < steps && !e.code) {
        e = learn_range_step(r, &report);
        if (e.code) return err_at(e, name);
        if (!first.step) first = report;
        double now = clock_now_s();
        tell_step(l, name, &report, steps, now - start);
        int64_t due = now - committed > COMMIT_SECONDS;
        comm_max_i64(q->c, &due, 1); /* clocks differ between ranks */
        bool stop = stop_agreed(q->c);
        if (due || stop || report.step % COMMIT_STEPS == 0 || report.step == steps) {
            e = commit_phase(l, r, phase, &report);
            committed = clock_now_s();
        }
        if (q->state) run_state_heartbeat(q->state);
        if (stop && !e.code && report.step < steps)
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

static err phase_options(const learner *l, const json_t *phase, learn_range_options *o) {
    const recipe *r = l->q->recipe;
    llama_sites sites;
    const rotation **unused;
    err e = setup_sites(r, cfg_of(l), l->q->rotations, true, false, &sites, &unused);
    free(unused);
    if (e.code) return e;
    *o = (learn_range_options){
        .steps = json_integer_value(json_object_get(phase, "steps")),
        .rows = json_integer_value(json_object_get(phase, "rows")),
        .lr_r1 = json_number_value(json_object_get(phase, "lr_r1")),
        .lr_r2 = json_number_value(json_object_get(phase, "lr_r2")),
        .act = sites.act,
        .kv = sites.kv,
        .o_per_head = sites.o_per_head,
        .r1 = l->R1 != NULL,
        .r2_heads = l->r2_heads,
        .layers = cfg_of(l)->layers,
        .seed = (uint64_t)recipe_int(r, "seed"),
        .blas_threads = json_is_integer(recipe_get(r, "numerics.threads"))
                            ? (int)recipe_int(r, "numerics.threads")
                            : 1,
    };
    if (!optimizer_kind_parse(json_string_value(json_object_get(phase, "optimizer")), &o->kind) ||
        !lr_schedule_parse(json_string_value(json_object_get(phase, "schedule")), &o->schedule))
        return err_make(ERR_BUG, "learn", NULL, "unknown optimizer or schedule");
    return grid_resolve(recipe_str(r, "numerics.grid"), cfg_of(l)->hidden, comm_size(l->q->c),
                        &o->grid);
}

/* `saved` (NULL: none) is the state to go on from. */
static err run_phase(learner *l, int64_t phase, const double *saved, int64_t n_saved) {
    quantize_run *q = l->q;
    const json_t *p = json_array_get(recipe_get(q->recipe, "learn"), (size_t)phase);
    learn_range_options o;
    char name[32];
    snprintf(name, sizeof name, "learn.%" PRId64, phase);
    err e = comm_agree(q->c, phase_options(l, p, &o), "learning", NULL);
    if (e.code) return e;
    quantize_phase_start(q, name);
    learn_range *r = NULL;
    const double *R2 = l->r2_heads ? l->R2 + l->range.first * r2_entries(l) : NULL;
    e = learn_range_create(q->c, &o, &l->pool, l->R1, R2, &r);
    int64_t done = 0;
    if (!e.code && saved && n_saved == learn_range_state_count(r)) {
        e = learn_range_state_load(r, saved);
        done = (int64_t)saved[0];
        log_line(LOG_RUN, "%s goes on after step %" PRId64, name, done);
    }
    if (!e.code) e = run_steps(l, r, phase, done, o.steps);
    if (!e.code) {
        int64_t n = cfg_of(l)->hidden;
        if (o.r1 && l->R1) memcpy(l->R1, learn_range_r1(r), (size_t)(n * n) * sizeof(double));
        if (l->r2_heads) {
            memcpy(l->R2 + l->range.first * r2_entries(l), learn_range_r2(r),
                   (size_t)(l->range.n * r2_entries(l)) * sizeof(double));
            share_r2(l);
        }
    }
    learn_range_destroy(&r);
    if (!e.code) quantize_phase_end(q, name, NULL);
    return e;
}

/* Learned matrices take the place of the start points in the set that fusion uses. */
static err adopt(learner *l) {
    rotation_set *set = l->q->rotations;
    int64_t d = cfg_of(l)->head_dim, dd = d * d;
    rotation *r = NULL;
    err e = err_none();
    if (l->R1) e = rotation_create_dense(cfg_of(l)->hidden, l->R1, &r);
    if (!e.code && l->R1) e = rotation_set_put_r1(set, &r);
    for (int64_t i = 0; l->r2_heads && i < cfg_of(l)->layers && !e.code; i++) {
        e = rotation_set_prepare_r2(set, i);
        for (int64_t h = 0; h < l->r2_heads && !e.code; h++) {
            e = rotation_create_dense(d, l->R2 + i * r2_entries(l) + h * dd, &r);
            if (!e.code) e = rotation_set_put_r2(set, i, h, &r);
        }
    }
    rotation_destroy(&r);
    return comm_agree(l->q->c, e, "taking over the rotations", NULL);
}

static err learner_init(learner *l, quantize_run *q) {
    const llama_config *cfg = &q->source.cfg;
    *l = (learner){.q = q, .r2_heads = rotation_set_r2_count(q->rotations)};
    void *r1 = NULL, *r2 = NULL;
    err e = err_none();
    if (rotation_set_r1(q->rotations))
        e = mem_alloc(cfg->hidden * cfg->hidden, sizeof(double), "R1", &r1);
    l->R1 = r1;
    if (!e.code) e = mem_alloc(cfg->layers * r2_entries(l), sizeof(double), "R2", &r2);
    l->R2 = r2;
    stage_range *ranges = calloc((size_t)comm_size(q->c), sizeof *ranges);
    if (!ranges) abort();
    stage_costs costs = partition_costs(cfg, size_min(cfg->vocab, 65536));
    partition_stages(cfg->layers, &costs, comm_size(q->c), ranges, &l->n_stages);
    l->range = ranges[comm_rank(q->c)];
    free(ranges);
    e = comm_agree(q->c, e, "learning", NULL);
    if (!e.code && l->n_stages < comm_size(q->c))
        e = comm_split(q->c, comm_rank(q->c) < l->n_stages ? 0 : -1, "stages", &l->stages);
    return e;
}

static void learner_clear(learner *l) {
    comm_destroy(&l->stages);
    row_pool_clear(&l->pool);
    mem_free(l->R1);
    mem_free(l->R2);
}

/* Root only, with the rest agreeing: rotations and how many phases are behind them. */
static err keep_rotations(learner *l, int64_t phases_done) {
    quantize_run *q = l->q;
    err e = err_none();
    if (q->state) {
        int64_t n = rotations_count(l);
        double *v = malloc((size_t)n * sizeof *v);
        if (!v) abort();
        put_rotations(l, v);
        e = keep(q, "rotations", v, n, phases_done);
        json_object_del(run_state_work(q->state), "learning");
        if (!e.code) e = run_state_commit(q->state, "learn");
        free(v);
    }
    return comm_agree(q->c, e, "committing", NULL);
}

static void take_rotations(learner *l, const double *v) {
    int64_t n = cfg_of(l)->hidden;
    if (l->R1) memcpy(l->R1, v, (size_t)(n * n) * sizeof *v);
    if (l->r2_heads)
        memcpy(l->R2, v + (l->R1 ? n * n : 0),
               (size_t)(cfg_of(l)->layers * r2_entries(l)) * sizeof *v);
}

err quantize_learn(quantize_run *q) {
    int64_t phases = (int64_t)json_array_size(recipe_get(q->recipe, "learn")), first = 0, n = 0,
            n_saved = 0, k = -1;
    double *done = NULL, *saved = NULL;
    learner l;
    if (!q->calib_ids) return err_none();
    err e = learner_init(&l, q);
    if (!e.code) e = recall(q, "rotations", &done, &n, &first);
    if (!e.code) e = recall(q, "learning", &saved, &n_saved, &k);
    bool have = done && n == rotations_count(&l);
    if (!have) first = 0;
    if (!e.code && (first < phases || !have)) e = capture_rows(&l);
    if (!e.code && have)
        take_rotations(&l, done);
    else if (!e.code)
        e = recipe_is(q->recipe, "rotate.start", "pca") ? start_from_activations(&l)
                                                        : start_from_set(&l);
    if (!e.code && !have) e = keep_rotations(&l, 0);
    for (int64_t p = first; p < phases && !e.code; p++) {
        e = run_phase(&l, p, saved && k == p ? saved : NULL, n_saved);
        if (!e.code) e = keep_rotations(&l, p + 1);
    }
    if (!e.code) e = adopt(&l);
    free(done);
    free(saved);
    learner_clear(&l);
    return e;
}
