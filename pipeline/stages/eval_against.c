/* Two relays, and the head of both on the rows that predict, LOGIT_ROWS at a time. */
#include "pipeline/stages/eval_against.h"

#include "base/gemm.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/size.h"
#include "pipeline/stages/stage_relay.h"

#include <string.h>

enum { LOGIT_ROWS = 32 };

/* One rank's part. */
typedef struct runner {
    eval_side side[2]; /* p, q */
    stage_relay *relay[2];
    double *logits[2];  /* [LOGIT_ROWS, vocab]; last stage */
    divergence *tokens; /* [n, length - 1]; last stage and root */
    double *nll;        /* [n] of q; last stage and root */
} runner;

uint64_t eval_against_bytes(const llama_config *p, const llama_config *q, compute_type compute,
                            const eval_windows *w, bool last) {
    const llama_sites plain = llama_sites_none();
    const uint64_t tokens = (uint64_t)w->n * (uint64_t)(w->length - 1) * sizeof(divergence);
    return llama_scratch_bytes(p, &plain, compute, w->length, gemm_threads()) +
           stage_relay_bytes(p, compute, w->length) + tokens +
           (last ? 2 * LOGIT_ROWS * (uint64_t)q->vocab * sizeof(double) : 0);
}

static err runner_init(const comm *c, runner *r, compute_type compute, const embed_rows *rows,
                       const eval_windows *w) {
    const bool last = comm_rank(c) == comm_size(c) - 1;
    const int64_t vocab = r->side[0].stage->cfg->vocab;
    err e = err_none();
    for (int i = 0; i < 2 && !e.code; i++) {
        e = stage_relay_create(c, r->side[i].stage, r->side[i].sites, compute, rows, w->length,
                               &r->relay[i]);
        if (!e.code && last) e = MEM_NEW(&r->logits[i], LOGIT_ROWS * vocab, "logits");
    }
    if (!e.code && (last || comm_rank(c) == 0)) {
        e = MEM_NEW(&r->tokens, w->n * (w->length - 1), "distances");
        if (!e.code) e = MEM_NEW(&r->nll, w->n, "losses");
    }
    return e;
}

static void runner_clear(runner *r) {
    for (int i = 0; i < 2; i++) {
        stage_relay_destroy(&r->relay[i]);
        mem_free(r->logits[i]);
    }
    mem_free(r->tokens);
    mem_free(r->nll);
}

/* Last stage: the predictions of window i, from the rows x that left each model. */
static err compare(runner *r, const eval_windows *w, int64_t i, void *const x[2]) {
    const int64_t rows = w->length - 1, vocab = r->side[0].stage->cfg->vocab;
    const int32_t *ids = w->ids[i];
    err e = llama_head_nll(r->side[1].stage, w->length, x[1], ids, stage_relay_scratch(r->relay[1]),
                           &r->nll[i], NULL);
    for (int64_t t = 0; t < rows && !e.code; t += LOGIT_ROWS) {
        const int64_t n = size_min(LOGIT_ROWS, rows - t);
        for (int k = 0; k < 2 && !e.code; k++) {
            const llama_stage *s = r->side[k].stage;
            const char *from = (const char *)x[k] + (size_t)t * stage_relay_row_bytes(r->relay[k]);
            e = llama_head_logits(s, n, from, stage_relay_scratch(r->relay[k]), r->logits[k]);
        }
        if (!e.code)
            divergence_rows(r->logits[0], r->logits[1], n, vocab, ids + t + 1,
                            r->tokens + i * rows + t);
    }
    return e;
}

err eval_against(const comm *c, const eval_side *p, const eval_side *q, compute_type compute,
                 const embed_rows *rows, const eval_windows *w, divergence *out, double *nll) {
    const bool last = comm_rank(c) == comm_size(c) - 1;
    const uint64_t tokens = (uint64_t)(w->n * (w->length - 1)) * sizeof *out,
                   losses = (uint64_t)w->n * sizeof *nll;
    runner r = {.side = {*p, *q}};
    err e = comm_agree(c, runner_init(c, &r, compute, rows, w), "preparing the evaluation", NULL);
    const bool ready = !e.code;
    for (int64_t i = 0; ready && i < w->n; i++) {
        void *x[2];
        for (int k = 0; k < 2; k++) x[k] = stage_relay_pass(r.relay[k], w->ids[i], w->length, &e);
        if (last && !e.code) e = compare(&r, w, i, x);
        log_progress("eval", i + 1, w->n);
    }
    e = comm_agree(c, e, "evaluating", NULL);
    for (int k = 0; k < 2; k++) stage_relay_destroy(&r.relay[k]);
    if (!e.code) {
        stage_relay_results(c, r.tokens, tokens);
        stage_relay_results(c, r.nll, losses);
    }
    if (!e.code && out) memcpy(out, r.tokens, tokens);
    if (!e.code && nll) memcpy(nll, r.nll, losses);
    runner_clear(&r);
    return e;
}
