/* numerics.grid and numerics.threads of a run: chosen once, kept by every restart. */
#include "jobs/learn.h"

#include "base/gemm.h"
#include "base/log.h"
#include "base/size.h"
#include "mpi/grid_shape.h"
#include "pipeline/e2e_layout.h"
#include "rotations/cayley_dist.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* What the unfinished run in the output folder goes by. */
typedef struct numerics {
    char grid[24];   /* "": unknown */
    int64_t threads; /* 0: unknown */
} numerics;

/* Root only. An unreadable state tells nothing here; opening it says what is wrong with it. */
static numerics read_kept(const char *out_dir) {
    numerics kept = {.threads = 0};
    json_t *state;
    if (run_state_peek(out_dir, &state).code) return kept;
    const json_t *made = json_object_get(json_object_get(state, "fingerprint"), "recipe"),
                 *v = json_object_get(made, "numerics");
    const char *grid = json_string_value(json_object_get(v, "grid"));
    if (grid && strcmp(grid, "auto") != 0 && strlen(grid) < sizeof kept.grid)
        memcpy(kept.grid, grid, strlen(grid) + 1);
    kept.threads = json_integer_value(json_object_get(v, "threads")); /* 0 where it is "auto" */
    json_decref(state);
    return kept;
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
                 grid_text(grid, shape), recipe_int(q->recipe, "numerics.threads"), cell, alone);
}

/* Bits of the phases ce and kl-top depend on the cut of a window into slices: one number for all
 * layouts. Others leave "auto". */
void quantize_resolve_slices(quantize_run *q) {
    const json_t *phases = recipe_get(q->recipe, "learn");
    bool wanted = false;
    for (size_t k = 0; k < json_array_size(phases); k++)
        wanted |= learn_e2e_is(json_array_get(phases, k));
    if (wanted && !json_is_integer(recipe_get(q->recipe, "numerics.slice_tokens")))
        recipe_put(q->recipe, "numerics.slice_tokens", json_integer(E2E_SLICE_TOKENS));
}

err quantize_resolve_numerics(quantize_run *q) {
    const int64_t n = q->source.cfg.hidden;
    numerics kept = {.threads = 0};
    grid_shape grid;
    char text[24];
    quantize_resolve_slices(q);
    if (!quantize_needs_calibration(q->recipe) || !recipe_bool(q->recipe, "rotate.r1"))
        return err_none(); /* nothing is factored over ranks, and no byte depends on these */
    if (comm_rank(q->c) == 0 && !options_has(q->o, OPT_FORCE)) kept = read_kept(q->out);
    comm_bcast(q->c, &kept, sizeof kept, 0);
    const bool choose = recipe_is(q->recipe, "numerics.grid", "auto");
    const char *asked = choose && kept.grid[0] ? kept.grid : recipe_str(q->recipe, "numerics.grid");
    err e = grid_resolve(asked, n, comm_size(q->c), &grid);
    if (e.code) return e;
    recipe_put(q->recipe, "numerics.grid", json_string(grid_text(grid, text)));
    /* On one cell bits do not depend on threads: "auto" stays. */
    if (grid.rows * grid.cols > 1 && !json_is_integer(recipe_get(q->recipe, "numerics.threads")))
        recipe_put(q->recipe, "numerics.threads",
                   json_integer(kept.threads > 0 ? kept.threads : gemm_threads()));
    tell(q, grid);
    return e;
}
