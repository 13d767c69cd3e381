/* e2e_layout - how the ranks share a learning phase end to end: replicas x stages, which layers a
 * stage has, what is kept and what is computed again. Arithmetic on costs and bytes alone: no
 * ranks, no weights. Stands at "options -> plan", before the stages are loaded.
 *
 * Rank = replica * stages + stage; ranks beyond are idle. Layouts that fit in memory are simulated
 * (pipeline/stages/schedule.h); of those that take at most `slack` times as long as the fastest,
 * the one with the smallest largest rank is taken: memory is what a large model runs out of. */
#ifndef SPINSHARD_PIPELINE_LEARN_E2E_LAYOUT_H
#define SPINSHARD_PIPELINE_LEARN_E2E_LAYOUT_H

#include "pipeline/learn/e2e_objective.h"
#include "pipeline/learn/e2e_pass.h"
#include "pipeline/plan/memory_plan.h"

/* Local. numerics.slice_tokens: auto. The model alone decides, since bits depend on it: a model
 * that fits one rank has no stages to keep busy, and products of more rows are faster. */
enum { E2E_SLICE_TOKENS = 256, E2E_SLICE_TOKENS_SMALL = 512, E2E_SMALL_HIDDEN = 2048 };
static inline int64_t e2e_slice_tokens(int64_t hidden) {
    return hidden <= E2E_SMALL_HIDDEN ? E2E_SLICE_TOKENS_SMALL : E2E_SLICE_TOKENS;
}

typedef enum recompute_wish { RECOMPUTE_AUTO, RECOMPUTE_ON, RECOMPUTE_OFF } recompute_wish;

/* What a phase needs and what the user asked for; all ranks pass equal values. */
typedef struct e2e_wish {
    int ranks;
    int64_t batch;
    int64_t replicas, stages; /* 0: choose */
    recompute_wish recompute;
    uint64_t limit;    /* bytes of a rank; 0: no bound */
    double slack;      /* time that memory may cost, against the fastest; at least 1 */
    load_options load; /* embed: rows of the first stage; head and range are filled in here */
    const llama_sites *sites; /* which act */
    llama_pass_shape shape;
    const e2e_objective *objective;
    int64_t top_k;
    bool weights;         /* in the loop: two more copies of them */
    uint64_t fixed_bytes; /* of every rank beside weights and passes: rotations, sums */
} e2e_wish;

typedef struct e2e_layout {
    int replicas, stages;
    stage_range *ranges; /* owned; [stages] */
    schedule *order;     /* owned; of the first replica: none has more windows */
    double idle;         /* share of all ranks' time, simulated */
    uint64_t bytes;      /* of the largest rank */
} e2e_layout;

/* Local. Choose the layout for a wish; equal wishes give equal layouts, so ranks need not talk.
 * Freed by e2e_layout_clear. Fails with ERR_USAGE where replicas x stages are more than the ranks,
 * or stages than layers; where nothing fits, the layout of least memory is given, for
 * memory_plan_check to refuse. */
err e2e_layout_choose(const e2e_wish *w, e2e_layout *out);
void e2e_layout_clear(e2e_layout *l); /* local */

/* Local. How many windows of a batch a replica gets; they are dealt in turn. */
int64_t e2e_layout_windows(int64_t batch, int replicas, int replica);

/* Local. The order of a replica, which may have one window less than the first. Caller owns *out.
 */
err e2e_layout_order(const e2e_wish *w, const e2e_layout *l, int replica, schedule **out);

/* Local. Costs of a slice on a layer, and of the head, by the model's shape; .layers is not set. */
schedule_costs e2e_layout_costs(const llama_config *cfg, bool through);

/* Local. The options of load_stage for a stage of this layout. */
load_options e2e_layout_load(const e2e_wish *w, const stage_range *ranges, int stages, int stage);

/* Local. The large buffers of a stage by name. */
void e2e_layout_plan(const e2e_wish *w, const e2e_layout *l, int stage, memory_plan *plan);

#endif
