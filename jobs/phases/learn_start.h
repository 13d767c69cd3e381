/* learn_start - start points of R1 and R2: those of the recipe's set, or eigenvectors of
 * activations (pca) or of weights (womi). */
#ifndef SPINSHARD_JOBS_PHASES_LEARN_START_H
#define SPINSHARD_JOBS_PHASES_LEARN_START_H

#include "jobs/phases/learner.h"

/* Collective. R1 and R2 become the start points of the recipe. */
err learn_start(learner *l);

/* Collective. Every rank has its own layers' R2; after this all ranks have all. */
void learn_share_r2(learner *l);

#endif
