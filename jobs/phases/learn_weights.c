/* Rows of weights in the phases of `range`: when they count, and what they need. */
#include "jobs/phases/learn.h"

#include "base/log.h"

#include <inttypes.h>

/* Where neither activations nor the cache are quantized, weights are all there is to learn for. */
bool learn_weights_count(const recipe *r, const json_t *phase) {
    if (strcmp(json_string_value(json_object_get(phase, "objective")), "range")) return false;
    return json_is_true(json_object_get(phase, "weights")) ||
           (recipe_int(r, "activations.bits") >= 16 && recipe_int(r, "kv.bits") >= 16);
}

bool learn_weights_needed(const learner *l) {
    size_t i;
    json_t *phase;
    json_array_foreach(recipe_get(l->q->recipe, "learn"), i, phase) {
        if (learn_weights_count(l->q->recipe, phase)) return true;
    }
    return false;
}

weight_rows_options learn_weights_options(const learner *l, const json_t *phase) {
    const recipe *r = l->q->recipe;
    return (weight_rows_options){
        .how = l->q->job.how,
        .r1 = rotation_set_r1(l->q->rotations) != NULL,
        .r2_heads = l->r2_heads,
        .R4 = rotation_set_r4(l->q->rotations),
        .rows = json_integer_value(json_object_get(phase, "rows")),
        .layers = learner_cfg(l)->layers,
        .seed = (uint64_t)recipe_int(r, "seed"),
    };
}

err learn_weights_create(const learner *l, const json_t *phase, weight_rows **out) {
    *out = NULL;
    if (!learn_weights_count(l->q->recipe, phase)) return err_none();
    weight_rows_options o = learn_weights_options(l, phase);
    err e = weight_rows_create(l->q->c, &o, &l->stage, l->moments, out);
    if (!e.code)
        log_line(LOG_PHASE, "%" PRId64 " rows of weights a step; a loss of 1 is %.3g nats a token",
                 weight_rows_samples(*out), weight_rows_unit(*out) * (double)o.rows);
    return e;
}
