/* learn_e2e - a phase of learning end to end: cross entropy (`ce`, SpinQuant) or the divergence to
 * the full-precision model (`kl-top`, OSTQuant) through the whole quantized model, over replicas x
 * stages. A step takes a batch of windows forward and backward (pipeline/learn/e2e_pass.h), sums
 * the gradients exactly over layers, windows, slices and ranks, and moves R1
 * (rotations/cayley_dist.h), R2 (pipeline/learn/r2_part.h) and scales
 * (pipeline/learn/scale_part.h). Not the layer-local objective
 * (pipeline/learn/learn_range.h). On the way: loss -> gradient of R at each site -> sum over
 * layers, samples and ranks -> Cayley step.
 *
 * The loss of a step is the mean over its batch of the mean over a window's predictions. Everything
 * is the same bit for bit on any number of ranks, replicas, stages and threads, with and without
 * recompute, and over restarts. */
#ifndef SPINSHARD_PIPELINE_LEARN_LEARN_E2E_H
#define SPINSHARD_PIPELINE_LEARN_LEARN_E2E_H

#include "mpi/dealt_rows.h"
#include "pipeline/learn/e2e_layout.h"
#include "pipeline/learn/learn_report.h"
#include "pipeline/learn/learn_verdict.h"
#include "rotations/cayley_dist.h"

typedef struct learn_e2e_options {
    int64_t steps;
    optimizer_kind kind;
    lr_schedule schedule;
    double lr_r1, lr_r2;
    uint64_t seed;
    grid_shape grid;
    int blas_threads;
    bool r1;                   /* learn R1 */
    int64_t r2_heads;          /* R2 of a layer: 0, 1, or one a KV head */
    uint32_t scales;           /* bit 1 << scale_kind: learn these, which sites.scales then are */
    double lr_scale;           /* of Adam on their logarithms */
    const double *scale_start; /* [layers, scale_sizes_at of scales]; borrowed by create */
    const wquant *weights;     /* in the loop (model/weight_site.h); NULL: as they are; borrowed */
    llama_sites sites;         /* R1, R2, learned scales are put in; the rest is borrowed */
    const int32_t *ids;        /* borrowed; [n_windows, length], on every rank */
    int64_t n_windows, length; /* of the calibration text; a window is cut into length / window */
    bool measure;              /* the product peak, for the reports */
} learn_e2e_options;

typedef struct learn_e2e learn_e2e;

/* Local. Bytes of rotations, their optimisers and sums on a rank, for the wish's fixed_bytes. */
uint64_t learn_e2e_fixed_bytes(const llama_config *cfg, const learn_e2e_options *o);

/* Local. Find out what can be learned under these options, into shape->r1, ->r2 and ->scales.
 * ERR_USAGE if nothing can, or if a window is longer than those of the calibration text. */
err learn_e2e_check(const learn_e2e_options *o, llama_pass_shape *shape);

/* Collective on c. w and l: as chosen, the same on every rank. stage: this rank's layers, loaded by
 * e2e_layout_load; NULL on idle ranks. R1 [hidden, hidden] dealt over c, R2 [layers, r2_heads,
 * head_dim, head_dim] of the whole model: start points, copied. All but R1 and R2 is borrowed.
 * Caller owns *out. Fails, agreed, with ERR_NOFIT. */
err learn_e2e_create(const comm *c, const learn_e2e_options *o, const e2e_wish *w,
                     const e2e_layout *l, const llama_stage *stage, const dealt_rows *R1,
                     const double *R2, learn_e2e **out);
void learn_e2e_destroy(learn_e2e **l); /* collective; NULL is fine; sets NULL */

/* Collective. One step. Fails, agreed, with ERR_NUMERICS naming step, layer and sequence; R1, R2
 * and the state are then as before it. */
err learn_e2e_step(learn_e2e *l, learn_report *report);

/* Collective. The loss of a batch of windows that no step draws (one in eight of them; of one
 * window alone that one) with R1 and R2 as they are, which are then remembered or taken back
 * together (pipeline/learn/learn_judge.h). Costs a step. To be called where learn_judge_due says
 * so. Fails as learn_e2e_step. */
enum { E2E_JUDGE_EVERY = 16 };
err learn_e2e_judge(learn_e2e *l, learn_verdict *v);

/* Collective. R1 as it is into `to`, where it is learned; R2 of all layers into R2 on every rank.
 */
void learn_e2e_take(learn_e2e *l, dealt_rows *to, double *R2);
/* Collective. Scales of all layers, as scale_start, on every rank; nothing where none are learned.
 */
void learn_e2e_take_scales(learn_e2e *l, double *scales);

/* Local. For mpi/replicas.h: a fixed random row times this rank's R1, which any changed bit of it
 * changes; NULL where R1 is not learned, or the rank is idle; returns its bytes. Borrowed until the
 * next call of this module. */
uint64_t learn_e2e_replica(learn_e2e *l, const void **data);

/* Local. Number of passes over a batch since it was created: one for each step and each judgement,
 * one more for the first step, which finds the exponents of the sums, and for steps that were
 * repeated. What was done before a restart does not count. */
int64_t learn_e2e_passes(const learn_e2e *l);

#endif
