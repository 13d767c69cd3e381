/* From a phase of the recipe to the rows of weights that it draws. */
#include "jobs/phases/learn_weights.h"

#include "base/log.h"
#include "jobs/setup/recipe_asks.h"

#include <inttypes.h>

weight_rows_options learn_weights_options(const learner *l, const learn_settings *phase) {
    return (weight_rows_options){
        .how = l->q->job.how,
        .r1 = rotation_set_r1(l->q->rotations) != NULL,
        .r2_heads = l->r2_heads,
        .R4 = rotation_set_r4(l->q->rotations),
        .rows = phase->rows,
        .layers = learner_cfg(l)->layers,
        .seed = (uint64_t)l->q->set->seed,
    };
}

err learn_weights_create(const learner *l, const learn_settings *phase, weight_rows **out) {
    *out = NULL;
    if (!learn_weights_count(l->q->set, phase)) return err_none();
    weight_rows_options o = learn_weights_options(l, phase);
    err e = weight_rows_create(l->q->c, &o, &l->stage, l->moments, out);
    if (!e.code)
        log_line(LOG_PHASE, "%" PRId64 " rows of weights a step; a loss of 1 is %.3g nats a token",
                 weight_rows_samples(*out), weight_rows_unit(*out) * (double)o.rows);
    return e;
}
