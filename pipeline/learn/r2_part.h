/* r2_part - R2 of the layers of one rank with their optimiser: a batch of small matrices that never
 * leaves the rank but for the run state. Not the gradient. Beside rotations/cayley_dist.h, which
 * has R1; used by the phases that learn end to end. */
#ifndef SPINSHARD_PIPELINE_LEARN_R2_PART_H
#define SPINSHARD_PIPELINE_LEARN_R2_PART_H

#include "mpi/comm.h"
#include "rotations/optimizer.h"

typedef struct r2_part r2_part;

/* Local. `count` matrices [d, d] of which the first is number `first` in the model, from R, copied.
 * Caller owns *out. Fails with ERR_NOFIT. */
err r2_part_create(optimizer_kind kind, int64_t d, int64_t first, int64_t count, const double *R,
                   r2_part **out);
void r2_part_destroy(r2_part **p); /* local; NULL is fine; sets NULL */

/* Local. The matrices [count, d, d]; borrowed, they change with a step. */
const double *r2_part_get(const r2_part *p);

/* Local. One step down G = dL/dR [count, d, d], overwritten; loss: L, 0 where it is not known.
 * Fails with ERR_NUMERICS (not finite; all is as before), ERR_NOFIT. */
err r2_part_step(r2_part *p, double lr, double loss, double *G, optimizer_report *report);

/* Local. The matrices are remembered as they are; they become what was remembered last, and their
 * optimiser forgets what led away from there. */
void r2_part_snapshot(r2_part *p);
void r2_part_restore(r2_part *p);
int64_t r2_part_steps_done(const r2_part *p); /* local; as of optimizer_steps_done; 0 without any */

/* Local. Doubles of one matrix in a state: R, what is remembered of it, then for adam v and M. A
 * state is `steps` (r2_part_steps_done) and the
 * matrices of the model in their order, so a restart on other ranks finds those of its layers. */
int64_t r2_part_state_each(optimizer_kind kind, int64_t d);

/* Collective on c. Matrices of the ranks with `give` in rank order, which is that of their numbers,
 * into out [all matrices, each] at root (elsewhere not touched). */
void r2_part_state_save(const r2_part *p, const comm *c, bool give, double *out);
/* Local. From the whole list, after `steps` steps. */
void r2_part_state_load(r2_part *p, int64_t steps, const double *in);

#endif
