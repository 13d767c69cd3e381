/* scale_part - scales of the layers of one rank with their optimiser, for the phases that learn end
 * to end: log s by Adam (OSTQuant). They never leave the rank but for the run state. Not the
 * gradient (model/site_scale.h). Beside pipeline/learn/r2_part.h, which has R2.
 *
 * Channels that share a scale (the two of a RoPE pair; with norms of heads all KV heads, see
 * rotations/scale_set.h) share the sum of their gradients, so they start equal and stay equal.
 * After each step a vector is divided by its geometric mean, which changes no function, and clamped
 * to 1/64..64 (scale_settle): its condition is 4096 at most. Where the set can only hold some
 * numbers (gains of norms in bf16, powers of two) the model runs with the nearest of these, and the
 * step is of what was not rounded. */
#ifndef SPINSHARD_PIPELINE_LEARN_SCALE_PART_H
#define SPINSHARD_PIPELINE_LEARN_SCALE_PART_H

#include "mpi/comm.h"
#include "rotations/scale_set.h"

typedef struct scale_part scale_part;

/* Local. Bytes of all layers of the model. */
uint64_t scale_part_bytes(const scale_sizes *sizes, uint32_t kinds);

/* Local. The scales of `kinds` (bits 1 << scale_kind) of layers [first, first + count), from start
 * [count, scale_sizes_at(SCALE_KINDS)], positive numbers, copied. Caller owns *out. Fails with
 * ERR_NOFIT, ERR_INPUT. */
err scale_part_create(const scale_sizes *sizes, uint32_t kinds, int64_t first, int64_t count,
                      const double *start, scale_part **out);
void scale_part_destroy(scale_part **p); /* local; NULL is fine; sets NULL */

/* Local. What the sites use: of all kinds, those of the layers at hand, others ones. Borrowed; its
 * numbers change with a step. */
const scale_set *scale_part_set(const scale_part *p);

/* Local. Scales of all layers at hand, not rounded, in the layout of `start`. */
void scale_part_take(const scale_part *p, double *out);

/* Local. One step down G = dL / d log s of each channel, in the layout of start; overwritten. Fails
 * with ERR_NUMERICS where one is not finite; all is then as before. */
err scale_part_step(scale_part *p, double lr, double *G);

/* Local. The greatest scale of a vector over its least, of the worst vector as the sites use it. */
double scale_part_condition(const scale_part *p);

/* Local. The scales are remembered as they are; they become what was remembered last, and the
 * optimiser forgets what led away from there. */
void scale_part_snapshot(scale_part *p);
void scale_part_restore(scale_part *p);
int64_t scale_part_steps_done(const scale_part *p); /* local; since it forgot; 0 without any */

/* Local. Doubles of a layer in a state: log s, what is remembered of it, both moments. A state is
 * `steps` (scale_part_steps_done) and the layers of the model in their order. */
int64_t scale_part_state_each(const scale_sizes *sizes, uint32_t kinds);

/* Collective on c. Layers of the ranks with `give` in rank order, which is that of their numbers,
 * into out [all layers, each] at root (elsewhere not touched). */
void scale_part_state_save(const scale_part *p, const comm *c, bool give, double *out);
/* Local. From the whole list, after `steps` steps. Fails with ERR_INPUT (what is no scale). */
err scale_part_state_load(scale_part *p, int64_t steps, const double *in);

#endif
