/* learn_start - start points of R1 and R2: those of the recipe's set, or eigenvectors of
 * activations (pca) or of weights (womi). */
#ifndef SPINSHARD_JOBS_PHASES_LEARN_START_H
#define SPINSHARD_JOBS_PHASES_LEARN_START_H

#include "jobs/phases/learner.h"

/* Collective. R1 and R2 become the start points of the recipe. */
err learn_start(learner *l);

/* Collective. Every rank has its own layers' part of v [layers, n]; after this all have all. */
void learn_share_layers(const learner *l, double *v, int64_t n);
/* Collective. Layers of the rank that has most: all come to the end of so many units. */
int64_t learn_most_layers(const learner *l);

#endif
