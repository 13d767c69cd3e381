/* Each rank looks at its layers; the first has the events. */
#include "jobs/phases/learn_looks.h"

#include "base/log.h"
#include "jobs/run/site_table.h"
#include "jobs/setup/recipe_asks.h"

#include <stdlib.h>

bool learn_looks_wanted(const quantize_run *q) {
    return q->flags.report && q->calib_windows > 0 && !quantize_uses_gptq(q->set);
}

void learn_looks_memory(const learner *l, memory_plan *p) {
    if (learn_looks_wanted(l->q))
        memory_plan_add(p, "inputs for the report",
                        site_rows_bytes(learner_cfg(l), l->range.first, l->range.n));
}

void learn_looks_room(learner *l) {
    const settings *s = l->q->set;
    int64_t lacks = 0;
    if (learn_looks_wanted(l->q) && l->range.n)
        lacks = site_rows_create(learner_cfg(l), l->range.first, l->range.n, l->q->calib_windows,
                                 s->calib.window, &l->looks)
                    .code != ERR_OK;
    comm_max_i64(l->q->c, &lacks, 1);
    if (lacks) site_rows_destroy(&l->looks);
    if (lacks && comm_rank(l->q->c) == 0)
        log_line(LOG_WARN, "no memory on every rank to keep inputs for the report: it has none");
}

err learn_look(learner *l) {
    const comm *c = l->q->c;
    const int64_t n = l->looks ? l->range.n : 0;
    site_look *mine = calloc((size_t)(n * STEP_COUNT) + 1, sizeof *mine);
    size_t len;
    err e = err_none();
    if (!mine) abort();
    for (int64_t i = 0; i < n * STEP_COUNT && !e.code; i++)
        e = site_rows_look(l->looks, l->q->rotations, l->range.first + i / STEP_COUNT,
                           (llama_step)(i % STEP_COUNT), &mine[i]);
    site_rows_destroy(&l->looks);
    e = comm_agree(c, e, "looking at inputs", NULL);
    site_look *all = comm_gather_joined(c, mine, (size_t)(n * STEP_COUNT) * sizeof *mine, &len);
    const int64_t layers = (int64_t)(len / sizeof *all) / STEP_COUNT; /* all of them, or none */
    for (int64_t i = 0; i < layers && !e.code && l->q->events; i++)
        events_add(l->q->events, "inputs", "sites", site_table_of(i, all + i * STEP_COUNT));
    free(all);
    free(mine);
    return e;
}
