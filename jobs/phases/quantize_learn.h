/* quantize_learn - learning in quantize: start points, then the phases learn.k of the recipe in
 * order, then the rotations that come out take their place in the set that fusion uses. A restart
 * captures rows again and goes on from the last commit. */
#ifndef SPINSHARD_JOBS_PHASES_QUANTIZE_LEARN_H
#define SPINSHARD_JOBS_PHASES_QUANTIZE_LEARN_H

#include "jobs/phases/learner.h"
#include "jobs/run/phase.h"

bool quantize_learn_wanted(const quantize_run *q);
err quantize_learn_plan(plan_maker *m);
err quantize_learn(quantize_run *q); /* collective; the rotations of q become the learned ones */

/* Local. Bytes of what learning leaves on every rank until the archive is packed: R1, R2, R3 and
 * scales, as fusion and the stream of GPTQ take them. */
uint64_t quantize_learned_bytes(const quantize_run *q);

/* Local. How the layers would be cut over so many ranks: ranges [ranks], as learn_cut. */
err quantize_learn_cut(quantize_run *q, int ranks, stage_range *ranges, int *n_stages);

#endif
