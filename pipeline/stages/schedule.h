/* schedule - who computes what when: for each stage of a replica an ordered list of operations on
 * slices of windows. Pure data: no ranks, no weights, no clock. It can be printed, checked without
 * MPI, and simulated for any number of stages, slices, windows and costs. Stands between the
 * partition of the layers and the passes that carry it out (pipeline/learn/e2e_pass.h).
 *
 * Forward of a slice needs the slice before on the same stage (attention looks back) and the same
 * slice on the stage before; backward needs the slice after on the same stage (gradients of keys
 * and values come back) and the same slice on the stage after. A stage takes windows in order, and
 * all slices of one before another:
 *     forward of its first k windows; then in turn backward of a window, forward of the next.
 * k is what the stage keeps in flight; it falls from stage to stage, so no stage waits for one that
 * waits for it. With P stages, W windows and S slices of equal cost the stages are idle for
 * (P - 1) / (W S + P - 1) of the time where k is large enough; the smallest such k are found by
 * simulation. With recompute a stage has room for the saved activations of one window, whatever k
 * is, and runs forward again (OP_AGAIN) from the inputs that it kept, where another window came
 * between. */
#ifndef SPINSHARD_PIPELINE_STAGES_SCHEDULE_H
#define SPINSHARD_PIPELINE_STAGES_SCHEDULE_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

typedef enum op_kind { OP_FORWARD, OP_AGAIN, OP_BACKWARD } op_kind;

typedef struct schedule_op {
    op_kind kind;
    int64_t window, slice;
} schedule_op;

typedef struct schedule_shape {
    int stages;
    int64_t windows, slices; /* windows of one replica; 0 windows: nothing to do */
    int64_t max_in_flight;   /* windows that a stage may keep at most; 0: no bound */
    bool recompute;
} schedule_shape;

/* Time of one slice, in any unit. layers [stages] (borrowed; NULL: one each) multiply forward and
 * backward; the head comes on top of the last stage's forward; send is the way between stages. */
typedef struct schedule_costs {
    double forward, backward, head, send;
    const int64_t *layers;
} schedule_costs;

typedef struct schedule schedule;

/* Local. The order that simulation with `costs` finds fastest, and of those within a hundredth the
 * one with fewest windows in flight. Deterministic. Caller owns *out. Fails with ERR_NOFIT, and
 * ERR_BUG for an impossible shape. */
err schedule_create(const schedule_shape *shape, const schedule_costs *costs, schedule **out);
void schedule_destroy(schedule **s); /* local; NULL is fine; sets NULL */

const schedule_shape *schedule_get_shape(const schedule *s);               /* local; borrowed */
const schedule_op *schedule_ops(const schedule *s, int stage, int64_t *n); /* local; borrowed */
int64_t schedule_in_flight(const schedule *s, int stage); /* local; windows, the bound k */

/* Local. Held against the rules above, from the lists alone: every operation once and in order,
 * both ends of a way in the same order, no deadlock with receives that block and sends that do not,
 * and never more saved slices than schedule_in_flight windows (one with recompute) have. Fails
 * with ERR_BUG naming stage and operation. */
err schedule_check(const schedule *s);

/* Local. The most slices whose saved activations a stage holds at one time. For tests. */
int64_t schedule_saved_slices(const schedule *s, int stage);

/* Local. Time until the last stage is done, and the share of it that stages wait, on average.
 * False on a deadlock. */
bool schedule_simulate(const schedule *s, const schedule_costs *costs, double *finish,
                       double *idle);

/* Local. One line a stage: F0.3 is forward of window 0, slice 3; A again; B backward. Caller frees
 * (free). For tests. */
char *schedule_text(const schedule *s);

#endif
