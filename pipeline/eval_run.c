#include "pipeline/eval_run.h"

#include "base/log.h"
#include "base/mem.h"

#include <stdlib.h>

/* One rank's part of a run. Two boundary buffers: one is computed while the other is on its way. */
typedef struct runner {
    const comm *c;
    const llama_stage *stage;
    const llama_sites *sites;
    compute_type compute;
    const embed_rows *rows;
    const eval_windows *w;
    llama_scratch *scratch;
    int32_t *local_ids;
    void *x[2];
    comm_request *sent[2];
} runner;

uint64_t eval_boundary_bytes(const llama_config *cfg, compute_type compute, int64_t length) {
    return 2 * (uint64_t)length * (uint64_t)cfg->hidden * llama_real_bytes(compute);
}

static err runner_init(runner *r) {
    const llama_config *cfg = r->stage->cfg;
    int64_t n = r->w->length * cfg->hidden;
    err e = llama_scratch_create(cfg, r->sites, r->compute, r->w->length, &r->scratch);
    for (int i = 0; i < 2 && !e.code; i++)
        e = mem_alloc(n, llama_real_bytes(r->compute), "residual stream of a window", &r->x[i]);
    r->local_ids = malloc((size_t)r->w->length * sizeof *r->local_ids);
    if (!r->local_ids) abort();
    return e;
}

static void runner_clear(runner *r) {
    for (int i = 0; i < 2; i++) {
        comm_wait(&r->sent[i]);
        mem_free(r->x[i]);
    }
    free(r->local_ids);
    llama_scratch_destroy(&r->scratch);
}

/* One window through this rank. After an error it still passes buffers on: a rank that leaves would
 * hang the others; all agree at the end. */
static void step(runner *r, int64_t window, err *e, void **x_out) {
    int rank = comm_rank(r->c), size = comm_size(r->c), side = (int)(window & 1);
    const int32_t *ids = r->w->ids[window];
    int64_t n = r->w->length;
    uint64_t bytes = (uint64_t)(n * r->stage->cfg->hidden) * llama_real_bytes(r->compute);
    void *x = r->x[side];
    comm_wait(&r->sent[side]);
    if (rank == 0 && !e->code) {
        for (int64_t t = 0; t < n; t++) r->local_ids[t] = r->rows->row[ids[t]];
        *e = llama_embed(r->stage, r->compute, r->local_ids, n, x);
    }
    if (rank > 0) comm_recv(r->c, x, bytes, rank - 1, TAG_ACTIVATIONS);
    if (!e->code) *e = llama_layers_forward(r->stage, r->sites, n, x, r->scratch);
    if (rank + 1 < size) r->sent[side] = comm_isend(r->c, x, bytes, rank + 1, TAG_ACTIVATIONS);
    *x_out = x;
}

err eval_run(const comm *c, const llama_stage *stage, const llama_sites *sites,
             compute_type compute, const embed_rows *rows, const eval_windows *w, double *nll) {
    runner r = {.c = c, .stage = stage, .sites = sites, .compute = compute, .rows = rows, .w = w};
    int last = comm_size(c) - 1;
    double *sums = calloc((size_t)w->n + 1, sizeof *sums);
    if (!sums) abort();
    err e = comm_agree(c, runner_init(&r), "preparing the evaluation", NULL);
    bool ready = !e.code;
    for (int64_t i = 0; ready && i < w->n; i++) {
        void *x;
        step(&r, i, &e, &x);
        if (comm_rank(c) == last && !e.code)
            e = llama_head_nll(stage, w->length, x, w->ids[i], r.scratch, &sums[i], NULL);
        log_progress("eval", i + 1, w->n);
    }
    runner_clear(&r);
    e = comm_agree(c, e, "evaluating", NULL);
    if (!e.code && last > 0) {
        if (comm_rank(c) == last) comm_send(c, sums, (uint64_t)w->n * sizeof *sums, 0, TAG_RESULT);
        if (comm_rank(c) == 0) comm_recv(c, sums, (uint64_t)w->n * sizeof *sums, last, TAG_RESULT);
    }
    for (int64_t i = 0; nll && i < w->n; i++) nll[i] = sums[i];
    free(sums);
    return e;
}

err eval_logits(const comm *c, const llama_stage *stage, const llama_sites *sites,
                compute_type compute, const embed_rows *rows, const eval_windows *w,
                eval_logits_sink take, void *arg) {
    runner r = {.c = c, .stage = stage, .sites = sites, .compute = compute, .rows = rows, .w = w};
    bool last = comm_rank(c) == comm_size(c) - 1;
    void *logits = NULL;
    err e = runner_init(&r);
    if (!e.code && last)
        e = mem_alloc(w->length * stage->cfg->vocab, sizeof(double), "logits", &logits);
    e = comm_agree(c, e, "preparing the evaluation", NULL);
    for (int64_t i = 0; !e.code && i < w->n; i++) {
        void *x;
        step(&r, i, &e, &x);
        if (last && !e.code) e = llama_head_logits(stage, w->length, x, r.scratch, logits);
        if (last && !e.code) e = take(arg, i, logits);
        e = comm_agree(c, e, "evaluating", NULL);
    }
    runner_clear(&r);
    mem_free(logits);
    return e;
}
