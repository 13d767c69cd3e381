/* Rows of calibration text for the layer-local objectives. */
#include "jobs/learn.h"

#include "base/log.h"
#include "base/size.h"
#include "pipeline/capture_run.h"
#include "pipeline/memory_plan.h"

#include <inttypes.h>
#include <stdlib.h>

enum { POOL_TOKENS = 4096 };

err learn_capture_rows(learner *l) {
    quantize_run *q = l->q;
    const llama_config *cfg = learner_cfg(l);
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
                        NULL, &nll);
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
