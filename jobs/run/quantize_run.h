/* quantize_run - the state of one quantize command: what was opened, what is done, where it goes.
 * The phases share it (jobs/run/phase.h). */
#ifndef SPINSHARD_JOBS_RUN_QUANTIZE_RUN_H
#define SPINSHARD_JOBS_RUN_QUANTIZE_RUN_H

#include "base/machine.h"
#include "io/events.h"
#include "io/run_state.h"
#include "jobs/setup/options.h"
#include "jobs/setup/recipe.h"
#include "jobs/setup/run_flags.h"
#include "jobs/setup/source.h"
#include "mpi/watch.h"
#include "pipeline/plan/memory_plan.h"
#include "pipeline/weights/quantize_item.h"
#include "shard/layout.h"

/* Where a unit of the archive is kept until it is packed. hex "" : not done. */
typedef struct unit_done {
    char hex[SHA256_HEX];
} unit_done;

typedef struct quantize_run {
    const comm *c;
    const options *o;
    const char *out;
    recipe *recipe;
    const settings *set; /* what the recipe says */
    source source;
    rotation_set *rotations;
    layout *layout;
    quantize_job job;
    int64_t n_items, n_units;
    int *owner;       /* [n_items] rank of an item */
    unit_done *units; /* [n_units], same on every rank */
    run_state *state; /* root only */
    events *events;   /* root only */
    json_t *dropped;  /* root only: objects that go after a commit (jobs/phases/learn_state.h) */
    json_t *fingerprint;
    int32_t
        *calib_ids; /* [calib_windows * calib.window], on every rank; NULL where none is needed */
    int64_t calib_windows;
    double error_sq, weight_sq; /* root: sums of the linears done in this slice */
    bool complete; /* an earlier life published the archive; at most cleaning was left */
    double start_s, phase_start_s;
    double unit_told_s;          /* root: when the last event of a unit was written
                                    (jobs/run/between_units.h) */
    machine_use phase_start_use; /* of this rank */
    uint64_t phase_start_held;   /* of this rank, resident */
    uint64_t phase_start_sent, phase_start_network; /* comm_sent_bytes, comm_network_bytes */
    struct run_plan *plan; /* root only; what the phases are held against (jobs/run/run_plan.h) */
    uint64_t base_bytes;   /* resident before the first phase, and what libraries will take */
    run_flags flags;
    watch *watch; /* of the ranks; NULL: one rank, or not wanted */
} quantize_run;

/* Local. Free what it holds; q itself is the caller's. */
void quantize_clear(quantize_run *q);
/* Local. From recipe, source and rotations: name, layout of the archive, job, n_items, n_units.
 * Fails with ERR_USAGE, ERR_INPUT. */
err quantize_describe(quantize_run *q);
/* Local. Items to so many ranks, into q->owner; makes q->units. Fails with ERR_NOFIT. */
err quantize_deal(quantize_run *q, int ranks);
/* Local. Bytes of the R1 that fusion uses, which every rank holds from learning until the archive
 * is packed; 0 where there is none, or only signs of a Hadamard matrix. */
uint64_t quantize_r1_bytes(const quantize_run *q);
/* Local. False where no phase multiplies matrices: weights are rounded as they are, or rotated by a
 * transform. */
bool quantize_multiplies(const quantize_run *q);
/* Local. True where all units of an item are objects of the run state. */
bool quantize_item_done(const quantize_run *q, int64_t item);

#endif
