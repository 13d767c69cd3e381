/* Each rank looks at its layers; the first has the events. */
#include "jobs/phases/learn_looks.h"

#include "jobs/run/site_table.h"
#include "jobs/setup/recipe_asks.h"

#include <stdlib.h>

bool learn_looks_wanted(const quantize_run *q) {
    return q->flags.report && q->calib_windows > 0 && !quantize_uses_gptq(q->set);
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
