/* The phases add their figures in the order of their table; here they are only counted and summed.
 */
#include "jobs/planning/plan_make.h"

#include "base/size.h"
#include "jobs/phases/quantize_learn.h"
#include "jobs/run/quantize_numerics.h"
#include "model/tensors.h"

#include <math.h>
#include <stdlib.h>

/* Distinct tokens of a text of n (Heaps' law, as WikiText has it under vocabularies of 30 to 130
 * thousand: 1.3 thousand of 4 thousand, 20 thousand of 260 thousand). */
static int64_t guess_rows(int64_t vocab, int64_t n) {
    return size_min(vocab, (int64_t)(5.5 * pow((double)n, 0.657)));
}

static void count(plan_maker *m) {
    run_plan *p = m->p;
    const quantize_run *q = m->q;
    p->params = llama_params(plan_config(m));
    p->layers = p->least_layers = plan_config(m)->layers;
    for (int r = 0; r < m->n_stages; r++) {
        p->least_layers = size_min(p->least_layers, m->ranges[r].n);
        p->most_layers = size_max(p->most_layers, m->ranges[r].n);
    }
    p->idle_ranks = m->ranks - (int)size_min(m->ranks, size_max(m->n_stages, q->n_items));
    p->read_bytes = hf_checkpoint_bytes(q->source.ck);
    p->read_files = hf_checkpoint_shards(q->source.ck);
    p->archive_bytes = p->run_bytes = layout_total_bytes(q->layout);
    p->tars = layout_parts(q->layout);
    p->other_files =
        4 + (rotation_set_r1(q->rotations) != NULL); /* manifest, recipe, run, events */
}

/* The run as the plan changes it: its recipe is resolved further, its items are dealt to other
 * ranks. All else is borrowed. */
static quantize_run copy_of(const quantize_run *q) {
    quantize_run own = *q;
    own.recipe = recipe_copy(q->recipe);
    own.set = recipe_settings(own.recipe);
    own.owner = NULL;
    own.units = NULL;
    return own;
}

static void clear_copy(quantize_run *own) {
    free(own->owner);
    free(own->units);
    recipe_destroy(&own->recipe);
}

err plan_make(const phase_table *phases, const quantize_run *q, const plan_place *place,
              const plan_rates *rates, int64_t used_rows, run_plan *out) {
    quantize_run own = copy_of(q);
    *out = (run_plan){.place = *place, .rates = *rates};
    plan_maker m = {.q = &own,
                    .p = out,
                    .ranks = place->ranks ? place->ranks : place->nodes * place->ranks_per_node};
    m.rank = (plan_rank){.rates = &out->rates, .cores = place->cores_per_rank};
    m.rows.n = used_rows;
    if (!m.rows.n)
        m.rows.n = guess_rows(plan_config(&m)->vocab, q->calib_windows * q->set->calib.window);
    m.ranges = calloc((size_t)m.ranks, sizeof *m.ranges);
    if (!m.ranges) abort();
    quantize_resolve_slices(&own);
    quantize_choose_gptq_grid(&own, m.ranks);
    err e = quantize_learn_cut(&own, m.ranks, m.ranges, &m.n_stages);
    if (!e.code) e = quantize_deal(&own, m.ranks);
    if (!e.code) count(&m);
    for (int i = 0; i < phases->n && !e.code; i++)
        if (phase_is_wanted(&phases->phases[i], &own)) e = phases->phases[i].plan(&m);
    for (int i = 0; i < out->n_phases; i++) out->phases[i].seconds += plan_time_fixed();
    /* What is captured goes before the units of the archive come. */
    for (int i = 0; i < out->n_phases; i++)
        if (out->phases[i].saved_bytes > out->run_bytes)
            out->run_bytes = out->phases[i].saved_bytes;
    free(m.ranges);
    clear_copy(&own);
    return e;
}
