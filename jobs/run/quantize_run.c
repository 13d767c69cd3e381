/* The parts of a run that do not depend on ranks, then the dealing of its items to them by cost. */
#include "jobs/run/quantize_run.h"

#include "jobs/setup/recipe_asks.h"
#include "jobs/setup/setup.h"
#include "jobs/setup/setup_eight.h"
#include "jobs/setup/setup_form.h"
#include "pipeline/stages/partition.h"

#include <stdlib.h>

err quantize_describe(quantize_run *q) {
    const llama_config *cfg = &q->source.cfg;
    if (q->source.linears.form)
        return err_make(ERR_INPUT, q->source.path, "give the checkpoint it was made from",
                        "the weights are quantized already");
    st_dtype store = setup_store_dtype(q->set, &q->source);
    wquant how;
    setup_resolve_rotations(q->recipe, q->rotations);
    err e = setup_weights(q->recipe, cfg, store, &how);
    if (!e.code) e = setup_inputs_group(q->recipe, cfg);
    if (!e.code) e = setup_resolve_eight(q->recipe, cfg);
    if (!e.code) e = setup_form(q->recipe, cfg);
    if (!e.code) e = setup_base_model(q->recipe, q->source.path);
    if (!e.code) e = setup_name(q->recipe, q->source.path, &how);
    if (e.code) return e;
    bool untied = cfg->tied && rotation_set_r1(q->rotations);
    layout_options lo = setup_layout(q->set, &how, store, untied);
    e = layout_create(cfg, &lo, &q->layout);
    if (e.code) return e;
    q->job = (quantize_job){.checkpoint = q->source.ck,
                            .cfg = cfg,
                            .rotations = q->rotations,
                            .how = how,
                            .r1_dense = quantize_r1_bytes(q) > 0,
                            .untied = untied};
    q->n_items = quantize_item_count(&q->job);
    q->n_units = layout_units(q->layout);
    return e;
}

err quantize_deal(quantize_run *q, int ranks) {
    double *cost = calloc((size_t)q->n_items, sizeof *cost);
    free(q->owner);
    free(q->units);
    q->owner = calloc((size_t)q->n_items, sizeof *q->owner);
    q->units = calloc((size_t)q->n_units, sizeof *q->units);
    if (!cost || !q->owner || !q->units) abort();
    for (int64_t i = 0; i < q->n_items; i++) cost[i] = quantize_item_cost(&q->job, i);
    err e = partition_items(cost, q->n_items, ranks, q->owner);
    free(cost);
    return e;
}

uint64_t quantize_r1_bytes(const quantize_run *q) {
    const bool dense = q->set->n_learn || q->set->rotate.start.word != START_POINT_HAD;
    return rotation_set_r1(q->rotations) && dense ? rotation_dense_bytes(q->source.cfg.hidden) : 0;
}

bool quantize_multiplies(const quantize_run *q) {
    return quantize_needs_calibration(q->set) || quantize_r1_bytes(q) > 0;
}

bool quantize_item_done(const quantize_run *q, int64_t item) {
    int64_t units[2];
    int n = quantize_item_units(&q->job, item, units);
    for (int i = 0; i < n; i++)
        if (!q->units[units[i]].hex[0]) return false;
    return true;
}

void quantize_clear(quantize_run *q) {
    json_decref(q->dropped);
    json_decref(q->fingerprint);
    free(q->owner);
    free(q->units);
    free(q->calib_ids);
    free(q->plan);
    layout_destroy(&q->layout);
    rotation_set_destroy(&q->rotations);
    source_close(&q->source);
    recipe_destroy(&q->recipe);
    events_close(&q->events);
}
