/* What the recipe leaves at "auto" becomes what the unfinished run has, else the best for this size
 * and these ranks, and is written into the recipe. */
#include "jobs/run/quantize_numerics.h"

#include "base/gemm.h"
#include "base/log.h"
#include "base/size.h"
#include "jobs/run/saved_fingerprint.h"
#include "jobs/setup/recipe_asks.h"
#include "mpi/grid_shape.h"
#include "pipeline/learn/e2e_layout.h"
#include "rotations/cayley_dist.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* What the run in the output folder goes by, or went by. */
typedef struct numerics {
    char grid[24]; /* "": unknown */
    char gptq_grid[24];
    int64_t threads; /* 0: unknown */
} numerics;

static void take_grid(const json_t *v, char grid[24]) {
    const char *text = json_string_value(v);
    if (text && strcmp(text, "auto") != 0 && strlen(text) < 24)
        memcpy(grid, text, strlen(text) + 1);
}

/* Root only. An unreadable state tells nothing here; opening it says what is wrong with it. */
static numerics read_saved(const char *out_dir) {
    numerics saved = {.threads = 0};
    json_t *fingerprint = saved_fingerprint(out_dir);
    const json_t *v = json_object_get(json_object_get(fingerprint, "recipe"), "numerics");
    take_grid(json_object_get(v, "grid"), saved.grid);
    take_grid(json_object_get(v, "gptq_grid"), saved.gptq_grid);
    saved.threads = json_integer_value(json_object_get(v, "threads")); /* 0 where it is "auto" */
    json_decref(fingerprint);
    return saved;
}

static void tell(const quantize_run *q, grid_shape grid) {
    cayley_dist_options o = {.n = q->source.cfg.hidden, .grid = grid};
    char shape[24], cell[32], alone[32];
    const int cells = grid.rows * grid.cols;
    size_text(cayley_dist_plan_bytes(&o), cell);
    o.grid = (grid_shape){1, 1};
    size_text(cayley_dist_plan_bytes(&o), alone);
    if (cells > 1)
        log_line(LOG_RUN,
                 "numerics: R1 on a grid of %s, %" PRId64
                 " BLAS threads each: %s on a cell, where one rank alone would hold %s",
                 grid_text(grid, shape), q->set->numerics.threads, cell, alone);
}

/* Bits of the phases ce and kl-top depend on the cut of a window into slices: one number for all
 * layouts. Others leave "auto". */
void quantize_resolve_slices(quantize_run *q) {
    bool wanted = false;
    for (int64_t k = 0; k < q->set->n_learn; k++) wanted |= learn_e2e_is(&q->set->learn[k]);
    if (wanted && !q->set->numerics.slice_tokens)
        recipe_put(q->recipe, "numerics.slice_tokens",
                   json_integer(e2e_slice_tokens(q->source.cfg.hidden)));
}

/* On one cell bits do not depend on threads: "auto" stays. */
static void resolve_threads(quantize_run *q, grid_shape grid, const numerics *saved) {
    if (grid.rows * grid.cols > 1 && !q->set->numerics.threads)
        recipe_put(q->recipe, "numerics.threads",
                   json_integer(saved->threads > 0 ? saved->threads : gemm_threads()));
}

/* A grid key that is "auto" becomes that of the unfinished run, or the best for order n. */
static err resolve_grid(quantize_run *q, const char *key, const word_or_text *now,
                        const char *saved, int64_t n, grid_shape *grid) {
    char text[24];
    const char *asked = now->word == WORD_AUTO && saved[0] ? saved : now->text;
    err e = grid_resolve(key, asked, n, comm_size(q->c), grid);
    if (!e.code) recipe_put(q->recipe, key, json_string(grid_text(*grid, text)));
    return e;
}

/* The widest inputs of linears decide; narrow ones stay on one rank all the same. */
static err resolve_gptq(quantize_run *q, const numerics *saved) {
    const llama_config *c = &q->source.cfg;
    const int64_t from = q->set->numerics.gptq_grid_from,
                  n = size_max(c->intermediate, size_max(c->hidden, c->heads * c->head_dim));
    grid_shape grid;
    char text[24];
    if (n < from) return err_none();
    err e = resolve_grid(q, "numerics.gptq_grid", &q->set->numerics.gptq_grid, saved->gptq_grid,
                         size_max(n, GRID_MIN_ORDER), &grid);
    if (e.code) return e;
    resolve_threads(q, grid, saved);
    if (grid.rows * grid.cols > 1)
        log_line(LOG_RUN, "numerics: Hessians of %" PRId64 " columns and more on a grid of %s",
                 from, grid_text(grid, text));
    return e;
}

err quantize_resolve_numerics(quantize_run *q) {
    const bool learns = quantize_learns(q->set) && q->set->rotate.r1,
               gptq = quantize_uses_gptq(q->set);
    numerics saved = {.threads = 0};
    grid_shape grid;
    quantize_resolve_slices(q);
    if (!learns && !gptq)
        return err_none(); /* nothing is factored over ranks, and no byte depends on these */
    if (comm_rank(q->c) == 0 && !options_has(q->o, OPT_FORCE)) saved = read_saved(q->out);
    comm_bcast(q->c, &saved, sizeof saved, 0);
    err e = err_none();
    if (learns) {
        e = resolve_grid(q, "numerics.grid", &q->set->numerics.grid, saved.grid,
                         q->source.cfg.hidden, &grid);
        if (e.code) return e;
        resolve_threads(q, grid, &saved);
        tell(q, grid);
    }
    return gptq ? resolve_gptq(q, &saved) : e;
}

void quantize_choose_gptq_grid(quantize_run *q, int ranks) {
    const llama_config *c = &q->source.cfg;
    const int64_t n = size_max(c->intermediate, size_max(c->hidden, c->heads * c->head_dim));
    char text[24];
    if (!quantize_uses_gptq(q->set) || q->set->numerics.gptq_grid.word != WORD_AUTO ||
        n < q->set->numerics.gptq_grid_from)
        return;
    const grid_shape g = grid_choose(size_max(n, GRID_MIN_ORDER), ranks);
    recipe_put(q->recipe, "numerics.gptq_grid", json_string(grid_text(g, text)));
}
