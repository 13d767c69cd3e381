/* Sequences are sorted by length and laid into packs, the longest first; each pack is one pass
 * whose attention is bounded by sequence, and scored rows are picked before the head. */
#include "pipeline/stages/task_run.h"

#include "base/log.h"
#include "base/mem.h"
#include "base/size.h"
#include "pipeline/stages/stage_relay.h"

#include <stdlib.h>
#include <string.h>

enum { LOGIT_ROWS = 32 }; /* rows whose logits are held at a time, where they are wanted */

/* ---- packs ---- */

typedef struct length {
    int64_t n, index;
} length;

static int by_falling_length(const void *a, const void *b) {
    const length *x = a, *y = b;
    if (x->n != y->n) return x->n < y->n ? 1 : -1;
    return x->index < y->index ? -1 : x->index > y->index;
}

void task_packs_init(const task_sequence *s, int64_t n, int64_t tokens, task_packs *out) {
    length *by = calloc((size_t)n + 1, sizeof *by);
    *out = (task_packs){.order = calloc((size_t)n + 1, sizeof *out->order),
                        .starts = calloc((size_t)n + 2, sizeof *out->starts)};
    if (!by || !out->order || !out->starts) abort();
    for (int64_t i = 0; i < n; i++) by[i] = (length){s[i].n, i};
    qsort(by, (size_t)n, sizeof *by, by_falling_length);
    int64_t held = 0;
    for (int64_t i = 0; i < n; i++) {
        if (i > 0 && held + by[i].n > tokens) {
            out->starts[++out->n] = i;
            held = 0;
        }
        out->order[i] = by[i].index;
        held += by[i].n;
        out->tokens = size_max(out->tokens, held);
    }
    if (n) out->starts[++out->n] = n;
    free(by);
}

void task_packs_clear(task_packs *p) {
    free(p->order);
    free(p->starts);
    *p = (task_packs){.n = 0};
}

/* ---- passes ---- */

/* One rank's part. */
typedef struct runner {
    const llama_stage *stage;
    compute_type compute;
    const task_sequence *s;
    const task_packs *packs;
    bool exact;
    stage_relay *relay;
    char *picked;                      /* real [tokens, hidden]: rows that predict */
    double *logits, *each;             /* [LOGIT_ROWS, vocab], [tokens] */
    int32_t *ids, *positions, *target; /* [tokens + 1] */
    task_score *scores;                /* [n], last stage */
} runner;

uint64_t task_run_bytes(const llama_config *cfg, compute_type compute, int64_t tokens, bool exact) {
    const uint64_t row = (uint64_t)cfg->hidden * llama_real_bytes(compute);
    return stage_relay_bytes(cfg, compute, tokens + 1) + (uint64_t)(tokens + 1) * row +
           (exact ? LOGIT_ROWS * (uint64_t)cfg->vocab * sizeof(double) : 0);
}

static err runner_init(runner *r) {
    const llama_config *cfg = r->stage->cfg;
    const int64_t room = r->packs->tokens + 1;
    void *rows; /* reals of r->compute */
    err e = mem_alloc(room * cfg->hidden, llama_real_bytes(r->compute), "rows of a pack", &rows);
    r->picked = rows;
    if (!e.code) e = MEM_NEW(&r->ids, room, "tokens of a pack");
    if (!e.code) e = MEM_NEW(&r->positions, room, "tokens of a pack");
    if (!e.code) e = MEM_NEW(&r->target, room, "tokens of a pack");
    if (!e.code) e = MEM_NEW(&r->each, room, "losses of a pack");
    if (!e.code && r->exact && r->stage->final_norm)
        e = MEM_NEW(&r->logits, LOGIT_ROWS * cfg->vocab, "logits");
    return e;
}

static void runner_clear(runner *r) {
    stage_relay_destroy(&r->relay);
    mem_free(r->picked);
    mem_free(r->ids);
    mem_free(r->positions);
    mem_free(r->target);
    mem_free(r->each);
    mem_free(r->logits);
}

/* Ids and positions of a pack; its tokens. */
static int64_t lay_out(const runner *r, int64_t pack) {
    int64_t at = 0;
    for (int64_t i = r->packs->starts[pack]; i < r->packs->starts[pack + 1]; i++) {
        const task_sequence *q = &r->s[r->packs->order[i]];
        for (int64_t t = 0; t < q->n; t++, at++) {
            r->ids[at] = q->ids[t];
            r->positions[at] = (int32_t)t;
        }
    }
    return at;
}

/* True where the likeliest token of each of n picked rows is its target. Ties: the first counts. */
static err likeliest(const runner *r, int64_t first, int64_t n, bool *all) {
    const int64_t vocab = r->stage->cfg->vocab;
    const size_t row = (size_t)r->stage->cfg->hidden * llama_real_bytes(r->compute);
    *all = true;
    for (int64_t at = 0; at < n && *all; at += LOGIT_ROWS) {
        const int64_t m = size_min(LOGIT_ROWS, n - at);
        err e = llama_head_logits(r->stage, m, r->picked + (size_t)(first + at) * row,
                                  stage_relay_scratch(r->relay), r->logits);
        if (e.code) return e;
        for (int64_t i = 0; i < m; i++) {
            const double *z = r->logits + i * vocab;
            int64_t best = 0;
            for (int64_t j = 1; j < vocab; j++)
                if (z[j] > z[best]) best = j;
            *all &= best == r->target[first + at + i + 1];
        }
    }
    return err_none();
}

/* Rows that predict a scored token, one after the other, and one loss for each: target[k + 1] is
 * what row k predicts. */
static err score(const runner *r, int64_t pack, const char *x) {
    const size_t row = (size_t)r->stage->cfg->hidden * llama_real_bytes(r->compute);
    const int64_t *order = r->packs->order, begin = r->packs->starts[pack],
                  end = r->packs->starts[pack + 1];
    int64_t at = 0, n = 0;
    double sum;
    r->target[0] = r->ids[0];
    for (int64_t i = begin; i < end; at += r->s[order[i++]].n) {
        const task_sequence *q = &r->s[order[i]];
        for (int64_t t = q->first; t < q->n; t++, n++) {
            memcpy(r->picked + (size_t)n * row, x + (size_t)(at + t - 1) * row, row);
            r->target[n + 1] = q->ids[t];
        }
    }
    err e = llama_head_nll(r->stage, n + 1, r->picked, r->target, stage_relay_scratch(r->relay),
                           &sum, r->each);
    n = 0;
    for (int64_t i = begin; i < end && !e.code; i++) {
        const task_sequence *q = &r->s[order[i]];
        task_score *out = &r->scores[order[i]];
        const int64_t m = q->n - q->first;
        bool exact = false;
        for (int64_t k = 0; k < m; k++) out->nll += r->each[n + k];
        if (r->exact) e = likeliest(r, n, m, &exact);
        out->exact = exact;
        n += m;
    }
    return e;
}

err task_run(const comm *c, const llama_stage *stage, const llama_sites *sites,
             compute_type compute, const embed_rows *rows, const task_sequence *s, int64_t n,
             const task_packs *packs, bool exact, task_score *scores) {
    const bool last = comm_rank(c) == comm_size(c) - 1;
    const uint64_t bytes = (uint64_t)n * sizeof *scores;
    runner r = {.stage = stage,
                .compute = compute,
                .s = s,
                .packs = packs,
                .exact = exact,
                .scores = calloc((size_t)n + 1, sizeof *scores)};
    if (!r.scores) abort();
    err e = stage_relay_create(c, stage, sites, compute, rows, packs->tokens + 1, &r.relay);
    if (!e.code) e = runner_init(&r);
    e = comm_agree(c, e, "preparing the tasks", NULL);
    const bool ready = !e.code;
    for (int64_t p = 0; ready && p < packs->n; p++) {
        const int64_t tokens = lay_out(&r, p);
        llama_scratch_pack(stage_relay_scratch(r.relay), r.positions);
        const char *x = stage_relay_pass(r.relay, r.ids, tokens, &e);
        if (last && !e.code) e = score(&r, p, x);
        log_progress("tasks", p + 1, packs->n);
    }
    runner_clear(&r);
    e = comm_agree(c, e, "scoring the tasks", NULL);
    if (!e.code) stage_relay_results(c, r.scores, bytes);
    if (scores) memcpy(scores, r.scores, bytes);
    free(r.scores);
    return e;
}
