/* Rates are measured where the run is long enough to be worth it, and averaged over the ranks;
 * memory is that of the rank with least. */
#include "jobs/planning/quantize_plan.h"

#include "base/gemm.h"
#include "base/log.h"
#include "base/machine.h"
#include "base/mem.h"
#include "base/size.h"
#include "jobs/planning/plan_make.h"
#include "jobs/planning/plan_print.h"
#include "jobs/setup/recipe_asks.h"
#include "model/tensors.h"
#include "pipeline/stages/load_stage.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Below so many parameters rounding takes seconds, and rates are not measured for it; nor for a toy
 * that learns. */
enum { WORTH_MEASURING = 1000000000, WORTH_IT_LEARNING = 50000000 };

static bool worth_measuring(const quantize_run *q) {
    return llama_params(&q->source.cfg) >=
           (quantize_needs_calibration(q->set) ? WORTH_IT_LEARNING : WORTH_MEASURING);
}

/* Collective. Rates of the mean rank. */
static err agree_rates(const comm *c, bool measure, plan_rates *r) {
    err e = measure ? plan_rates_measure(r) : plan_rates_of("auto", r);
    e = comm_agree(c, e, "measuring rates", NULL);
    if (e.code) return e;
    double *rates[] = {&r->bf16, &r->f32, &r->f64, &r->search, &r->vector, &r->hash};
    enum { N = sizeof rates / sizeof *rates };
    int64_t kilo[N];
    for (int i = 0; i < N; i++) kilo[i] = (int64_t)(*rates[i] / 1e3);
    comm_sum_i64(c, kilo, N);
    for (int i = 0; i < N; i++) *rates[i] = 1e3 * (double)kilo[i] / comm_size(c);
    return e;
}

/* Collective. Memory of the rank with least, program of the largest. */
static void find_place(const quantize_run *q, plan_place *p) {
    const int nodes = comm_nodes(q->c), size = comm_size(q->c);
    int64_t most[] = {-(int64_t)memory_plan_limit(q->flags.limit), (int64_t)q->base_bytes};
    comm_max_i64(q->c, most, 2);
    *p = (plan_place){.nodes = nodes,
                      .ranks_per_node = (int)size_ceil_div(size, nodes),
                      .ranks = size,
                      .cores_per_rank =
                          fmin(gemm_threads(), (double)machine_cores() / comm_core_sharers()),
                      .limit = (uint64_t)-most[0],
                      .base_bytes = (uint64_t)most[1]};
    snprintf(p->limit_from, sizeof p->limit_from, "%s",
             q->flags.limit ? "--mem" : "its share of the node or cgroup");
}

/* Root only. Rows of the embedding that the calibration text uses. */
static int64_t count_rows(const quantize_run *q) {
    const int64_t n = q->calib_windows * q->set->calib.window;
    embed_rows rows;
    if (!q->calib_ids || embed_rows_init(q->calib_ids, n, q->source.cfg.vocab, &rows).code)
        return 1;
    const int64_t used = rows.n;
    embed_rows_clear(&rows);
    return used;
}

err quantize_plan(quantize_run *q, const phase_table *phases) {
    plan_rates rates;
    plan_place place;
    err e = agree_rates(q->c, worth_measuring(q), &rates);
    if (e.code) return e;
    find_place(q, &place);
    if (comm_rank(q->c) == 0) {
        q->plan = calloc(1, sizeof *q->plan);
        if (!q->plan) abort();
        e = plan_make(phases, q, &place, &rates, count_rows(q), q->plan);
        if (!e.code) plan_log(q->plan);
        if (!e.code)
            e = plan_refuse(q->plan, "use more ranks on more nodes, or allow more with --mem; "
                                     "`spinshard plan` finds the smallest layout");
    }
    return comm_agree(q->c, e, "planning", NULL);
}
