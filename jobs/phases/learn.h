/* learn - the phases learn.k of quantize: what they share on a rank, and the steps between them.
 * Private to jobs/phases/. */
#ifndef SPINSHARD_JOBS_PHASES_LEARN_H
#define SPINSHARD_JOBS_PHASES_LEARN_H

#include "jobs/run/quantize_run.h"
#include "mpi/dealt_rows.h"
#include "pipeline/learn/learn_range.h"
#include "pipeline/learn/row_pool.h"
#include "pipeline/learn/scale_closed.h"
#include "pipeline/learn/scale_smooth.h"
#include "pipeline/learn/weight_rows.h"
#include "pipeline/plan/memory_plan.h"
#include "pipeline/stages/load_stage.h"
#include "pipeline/stages/partition.h"

/* What learning holds on a rank. */
typedef struct learner {
    quantize_run *q;
    comm *stages; /* ranks with layers; NULL: all of them */
    int n_stages;
    stage_range range; /* layers of this rank */
    row_pool pool;
    llama_stage stage;       /* weights of the layers, while their rows are samples */
    weight_moments *moments; /* of the same layers; NULL: not needed */
    int64_t r2_heads;        /* R2 of a layer */
    dealt_rows *R1;          /* [hidden, hidden], rows dealt over the ranks; NULL: not rotated */
    double *R2;              /* [layers, r2_heads, d, d] of the whole model, on every rank */
    uint32_t scale_kinds;    /* bit 1 << scale_kind: the recipe asks for it, and it helps */
    double *scales;          /* [0] 1 once they are known; then each kind [layers, length]; on every
                                rank; NULL: none asked for */
    int64_t n_scales;
    scale_moments *scale_moments; /* of the rank's layers; NULL: not needed */
    scale_peaks *scale_peaks;     /* the same for scale.start: smooth */
} learner;

/* Local. */
static inline const llama_config *learner_cfg(const learner *l) {
    return &l->q->source.cfg;
}
/* Local. Doubles of the R2 of one layer. */
static inline int64_t learner_r2_entries(const learner *l) {
    return l->r2_heads * learner_cfg(l)->head_dim * learner_cfg(l)->head_dim;
}

/* Scales (scale.start: closed, smooth), found after the phases `range` and before all others.
 * Local: what the recipe asks for, into scale_kinds, scales. */
err learn_scales_init(learner *l);
bool learn_scales_done(const learner *l);           /* local; also where none are asked for */
bool learn_scales_need_gradients(const learner *l); /* local; of the rows of the pool */
/* Local. What the capture pass has to sum, into l->scale_moments or l->scale_peaks (NULL: nothing);
 * its bytes. */
err learn_scales_moments(learner *l);
uint64_t learn_scales_moments_bytes(const learner *l);
/* Collective. From the moments and the pool, with R1 as it is; then into the set of q. */
err learn_scales(learner *l);
/* Collective. Scales that are known into the set of q, for sites and fusion. */
err learn_scales_adopt(learner *l);

/* Local. Layers of the phases before those end to end: contiguous stages of the ranks, ranges
 * [ranks], cut by the work and the memory of the capture, as planned. Looks at the recipe, the
 * model, the scales that are asked for and q->calib_windows: the same on every rank. */
void learn_cut(const learner *l, int ranks, stage_range *ranges, int *n_stages);
/* Local. True where phase `first` or a later one takes rows, or, at a fresh start, the start. */
bool learn_needs_rows(const quantize_run *q, int64_t first, bool fresh);

/* Local. Tokens of each site in the pool; what a rank loads for the capture. */
int64_t learn_pool_tokens(const quantize_run *q);
load_options learn_capture_load(const learner *l, int rank, const embed_rows *rows);
bool learn_weights_stay(const learner *l); /* local; weights of layers after the capture */

/* Local. Large buffers of a rank with layers, for plans and runs alike, added to *p: of the
 * capture; what it leaves until the last phase `range` is done; of a phase `range` beside that
 * (cell: the rank is one of the grid of R1); of the scales. They look at the recipe, the model,
 * l->range, l->n_stages and q->calib_windows, and not at what is there already. */
void learn_capture_memory(const learner *l, const load_options *lo, memory_plan *p);
void learn_kept_memory(const learner *l, memory_plan *p);
err learn_range_memory(const learner *l, const json_t *phase, int ranks, bool cell, memory_plan *p);
void learn_scales_memory(const learner *l, memory_plan *p);

/* Collective. The rank's layers into l->stage; calibration windows forward and backward: rows into
 * l->pool, moments into l->moments. Weights stay where phases or the start point need them. */
err learn_capture_rows(learner *l);

/* Local. True where rows of weights are samples of this phase, or of any. */
bool learn_weights_count(const recipe *r, const json_t *phase);
bool learn_weights_needed(const learner *l);
weight_rows_options learn_weights_options(const learner *l, const json_t *phase); /* local */

/* Collective. The rows of weights of a phase; *out NULL where it takes none. Caller owns *out. */
err learn_weights_create(const learner *l, const json_t *phase, weight_rows **out);

/* Collective. R1 and R2 become the start points of the recipe. */
err learn_start(learner *l);

/* Collective. Every rank has its own layers' R2; after this all ranks have all. */
void learn_share_r2(learner *l);

/* Collective. R1 whole on every rank, for those who need it so: *out [hidden, hidden], NULL where
 * R1 is NULL; caller frees (mem_free). Fails, agreed, with ERR_NOFIT. */
err learn_r1_whole(const learner *l, double **out);

/* The state of a phase: `common` of the whole run, `cell` what one rank alone has (a cell of the
 * grid of R1). Kept by learn_keep: common as root has it, cells as their ranks have them; given
 * back by learn_recall: common on every rank, a cell to the rank of its number. */
typedef struct learn_kept {
    double *common, *cell; /* NULL: none; learn_kept_clear */
    int64_t n_common, n_cell;
    int64_t phase; /* k of learn.k */
} learn_kept;
void learn_kept_clear(learn_kept *k); /* local */

/* Collective. The state of a phase to objects and their names into the work tree; the state before
 * it stays, the one before that goes with the next learn_commit. Fails, agreed. */
err learn_keep(quantize_run *q, const learn_kept *k);

/* Collective. What learn_keep kept last, or where that is damaged (said) what it kept before; with
 * neither *out is empty, and the phase begins anew. Fails, agreed, with ERR_NOFIT. */
err learn_recall(quantize_run *q, learn_kept *out);

/* Root only. Commit; then the objects that nothing names any more are removed. */
err learn_commit(quantize_run *q, const char *phase);

/* Collective. Rotations, and how many phases are behind them, into a commit. */
err learn_keep_rotations(learner *l, int64_t phases_done);
/* Collective. The same back; *phases_done -1 where there are none, or where they are damaged (said:
 * those before them are taken, if they are whole). */
err learn_recall_rotations(learner *l, int64_t *phases_done);

/* A phase as the loop of steps sees it: the functions of pipeline/learn/learn_*.h with their
 * object. */
typedef struct learn_phase {
    void *self;
    int64_t number; /* k of learn.k */
    int64_t steps;
    int64_t commit_steps; /* a commit after so many steps at most (and each 60 s) */
    err (*step)(void *self, learn_report *report);
    /* Doubles of the state, as learn_kept has them: local; and into it: collective, common at root.
     */
    void (*state_counts)(void *self, int64_t *common, int64_t *cell);
    err (*state_save)(void *self, double *common, double *cell);
    /* What is the same on every rank that has it; returns its bytes: local. */
    uint64_t (*replica)(void *self, const void **data);
} learn_phase;

/* Collective. Steps done + 1 .. p->steps with their events, commits, and stops (ERR_STOPPED). */
err learn_run_steps(learner *l, const learn_phase *p, int64_t done);

/* Local. True where `saved` is a state of phase k of these sizes on this rank. */
bool learn_state_fits(const learn_kept *saved, int64_t k, int64_t n_common, int64_t n_cell);

/* Collective. Phase k with the objective range, from `saved` if it is a state of it. */
err learn_range_phase(learner *l, int64_t k, const learn_kept *saved);

/* Local. True where the objective of a phase stands at the end of the model: ce, kl-top. */
bool learn_e2e_is(const json_t *phase);
/* Local. How `ranks` ranks would share phase k with such an objective, the first stage holding
 * rows->n rows of the embedding: the plan of its largest stage, and what its time depends on. Flags
 * of the layout and --mem in q->o count; limit: bytes of a rank where --mem is not given. */
typedef struct learn_e2e_estimate {
    memory_plan memory;
    int rank; /* number of that stage */
    int replicas, stages;
    double idle; /* share of the time of replicas * stages ranks */
    int64_t steps, tokens, slice, window;
    bool recompute, through, kl, weights;
    grid_shape grid;
} learn_e2e_estimate;
err learn_e2e_estimate_phase(const quantize_run *q, int64_t k, int ranks, bool one_machine,
                             const embed_rows *rows, uint64_t limit, learn_e2e_estimate *out);

/* Collective. The same with such an objective; loads its own weights. */
err learn_e2e_phase(learner *l, int64_t k, const learn_kept *saved);

#endif
