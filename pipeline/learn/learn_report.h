/* learn_report - what one step of learning did: what every phase of learning tells the loop of
 * steps (jobs/phases/learn_steps.c), whatever its objective. A plain value. */
#ifndef SPINSHARD_PIPELINE_LEARN_LEARN_REPORT_H
#define SPINSHARD_PIPELINE_LEARN_LEARN_REPORT_H

#include <stdint.h>

/* Equal on every rank, except tokens_per_s and peak_share, which each rank measures by its clock.
 */
typedef struct learn_report {
    int64_t step; /* done so far */
    double loss, loss_r2;
    double angle_r1, angle_r2; /* the largest angle of the step, radians */
    double promise;       /* of R1's step: share of the loss that it takes away to first order */
    double orthogonality; /* probe of R1 */
    double condition;     /* greatest over least scale of a vector, where they are learned */
    double tokens_per_s;  /* of the objective range: rows of R1 a second */
    double peak_share;    /* of the measured product peak of all ranks; 0: not known */
} learn_report;

#endif
