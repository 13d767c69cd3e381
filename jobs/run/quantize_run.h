/* quantize_run - the state of one quantize command: what was opened, what is done, where it goes.
 * Private to jobs/quantize.c and its rooms. */
#ifndef SPINSHARD_JOBS_RUN_QUANTIZE_RUN_H
#define SPINSHARD_JOBS_RUN_QUANTIZE_RUN_H

#include "io/events.h"
#include "io/run_state.h"
#include "jobs/setup/options.h"
#include "jobs/setup/recipe.h"
#include "jobs/setup/source.h"
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
    source source;
    rotation_set *rotations;
    layout *layout;
    quantize_job job;
    int64_t n_items, n_units;
    int *owner;       /* [n_items] rank of an item */
    unit_done *units; /* [n_units], same on every rank */
    run_state *state; /* root only */
    events *events;   /* root only */
    json_t *fingerprint;
    int32_t
        *calib_ids; /* [calib_windows * calib.window], on every rank; NULL where none is needed */
    int64_t calib_windows;
    double error_sq, weight_sq; /* root: sums of the linears done in this slice */
    bool complete;              /* an earlier life published the archive; only cleaning was left */
    double start_s, phase_start_s;
    struct run_plan *plan; /* root only; what the phases are held against (jobs/planning/plan.h) */
    uint64_t base_bytes;   /* resident before anything was loaded: the program and its libraries */
    uint64_t limit;        /* --mem; 0: a rank's share of its node */
} quantize_run;

/* Local. True where the recipe needs calibration text: what learns does, and GPTQ. */
bool quantize_needs_calibration(const recipe *r);
/* Local. True where it learns from that text: phases, or a start from activations. */
bool quantize_learns(const recipe *r);
bool quantize_uses_gptq(const recipe *r); /* local; weights.method is gptq or gptaq */
/* Local. Free what it holds; q itself is the caller's. */
void quantize_clear(quantize_run *q);
/* Local. From recipe, source and rotations: name, layout of the archive, job, n_items, n_units.
 * Fails with ERR_USAGE, ERR_INPUT. */
err quantize_describe(quantize_run *q);
/* Local. Items to so many ranks, into q->owner; makes q->units. Fails with ERR_NOFIT. */
err quantize_deal(quantize_run *q, int ranks);
/* Local. The items of a rank that it rounds to nearest and that are not done, in the order in which
 * it does them. Caller frees (free). */
int64_t *quantize_items_of(const quantize_run *q, int rank, int64_t *n);
/* Local. Large buffers of a rank while it rounds its items to nearest, added to *p. True: it reads
 * tensors ahead, since the plan then has at most `limit` bytes (0: unknown). */
bool quantize_items_memory(const quantize_run *q, int rank, uint64_t limit, memory_plan *p);

/* What GPTQ does to take less memory. */
typedef struct gptq_thrift {
    bool scratch;    /* activations go to files */
    int64_t batches; /* parts in which a rank rounds its rows (pipeline/gptq/gptq_layer.h) */
} gptq_thrift;

/* Local. The dearest way, as --scratch allows; then the next one down. False: there is none. */
gptq_thrift quantize_gptq_thrift(const quantize_run *q);
bool quantize_gptq_thriftier(const quantize_run *q, int ranks, gptq_thrift *t);
const char *quantize_gptq_thrift_text(const gptq_thrift *t, char buf[96]); /* local; may be "" */

/* Local. Large buffers of GPTQ on one of so many ranks, added to *p. Not looked at: q->c;
 * q->calib_ids may be NULL. Fails with ERR_USAGE, ERR_MISMATCH. */
err quantize_gptq_memory(const quantize_run *q, int ranks, int rank, const gptq_thrift *t,
                         memory_plan *p);

/* Collective. Read --calib or --calib-ids into q->calib_ids. */
err quantize_read_calibration(quantize_run *q);
/* Collective. numerics.grid and .threads in the recipe become those of this run, or of the
 * unfinished run that it goes on with; left at auto where no byte depends on them. Fails with
 * ERR_MISMATCH where the ranks are fewer than the cells. */
err quantize_resolve_numerics(quantize_run *q);
/* Local. numerics.slice_tokens of phases end to end becomes a number. */
void quantize_resolve_slices(quantize_run *q);
/* Collective. How the ranks will share the phases ce and kl-top, told; refuses what cannot be. */
err learn_e2e_plan(const quantize_run *q);
/* Collective. Phases learn.k: the rotations of q become the learned ones. */
err quantize_learn(quantize_run *q);

/* Collective. The phases, in order; each returns the same error on every rank. */
err quantize_open_output(quantize_run *q); /* run folder, state, what is done already */
err quantize_gptq(quantize_run *q);        /* phase gptq: layers by GPTQ, where it is asked for */
err quantize_do_items(quantize_run *q);    /* phase gptq: other items to objects */
err quantize_pack(quantize_run *q);        /* phase pack and verify: objects to tars, manifest */
err quantize_finish(quantize_run *q);      /* phase done: reports, remove the run folder */

/* Local. True where all units of an item are objects of the run state. */
bool quantize_item_done(const quantize_run *q, int64_t item);

/* Collective. Start and end of a phase in the log and events; more is taken over (root; or NULL).
 */
void quantize_phase_start(quantize_run *q, const char *phase);
void quantize_phase_end(quantize_run *q, const char *phase, json_t *more);

#endif
