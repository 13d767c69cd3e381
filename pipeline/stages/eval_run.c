/* stage_relay moves windows through the stages; the last rank takes the losses, and losses are
 * added in the order of the windows. */
#include "pipeline/stages/eval_run.h"

#include "base/log.h"
#include "base/mem.h"
#include "pipeline/stages/stage_relay.h"

#include <stdlib.h>

err eval_run(const comm *c, const llama_stage *stage, const llama_sites *sites,
             compute_type compute, const embed_rows *rows, const eval_windows *w, double *nll) {
    const bool last = comm_rank(c) == comm_size(c) - 1;
    stage_relay *r;
    double *sums = calloc((size_t)w->n + 1, sizeof *sums);
    if (!sums) abort();
    err e = stage_relay_create(c, stage, sites, compute, rows, w->length, &r);
    e = comm_agree(c, e, "preparing the evaluation", NULL);
    const bool ready = !e.code;
    for (int64_t i = 0; ready && i < w->n; i++) {
        void *x = stage_relay_pass(r, w->ids[i], w->length, &e);
        if (last && !e.code)
            e = llama_head_nll(stage, w->length, x, w->ids[i], stage_relay_scratch(r), &sums[i],
                               NULL);
        log_progress("eval", i + 1, w->n);
    }
    stage_relay_destroy(&r);
    e = comm_agree(c, e, "evaluating", NULL);
    if (!e.code) stage_relay_results(c, sums, (uint64_t)w->n * sizeof *sums);
    for (int64_t i = 0; nll && i < w->n; i++) nll[i] = sums[i];
    free(sums);
    return e;
}

err eval_logits(const comm *c, const llama_stage *stage, const llama_sites *sites,
                compute_type compute, const embed_rows *rows, const eval_windows *w,
                eval_logits_sink take, void *arg) {
    const bool last = comm_rank(c) == comm_size(c) - 1;
    stage_relay *r;
    double *logits = NULL;
    err e = stage_relay_create(c, stage, sites, compute, rows, w->length, &r);
    if (!e.code && last) e = MEM_NEW(&logits, w->length * stage->cfg->vocab, "logits");
    e = comm_agree(c, e, "preparing the evaluation", NULL);
    for (int64_t i = 0; !e.code && i < w->n; i++) {
        void *x = stage_relay_pass(r, w->ids[i], w->length, &e);
        if (last && !e.code)
            e = llama_head_logits(stage, w->length, x, stage_relay_scratch(r), logits);
        if (last && !e.code) e = take(arg, i, logits);
        e = comm_agree(c, e, "evaluating", NULL);
    }
    stage_relay_destroy(&r);
    mem_free(logits);
    return e;
}
