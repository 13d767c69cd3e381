/* e2e_batch - which windows of the calibration text a step takes: seeded permutations, one an
 * epoch, laid end to end and cut into batches. Not the text (io/text.h). Depends on (seed, step)
 * alone. */
#ifndef SPINSHARD_PIPELINE_LEARN_E2E_BATCH_H
#define SPINSHARD_PIPELINE_LEARN_E2E_BATCH_H

#include <stdint.h>

/* Local. pick [batch]: numbers of pieces, 0 .. pieces - 1, of step 0, 1, ...; each occurs once an
 * epoch: sorted by rng_u64(seed, RNG_DATA, epoch * pieces + piece). */
void e2e_batch_draw(uint64_t seed, int64_t step, int64_t batch, int64_t pieces, int64_t *pick);

#endif
