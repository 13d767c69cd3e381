/* verify_source - an archive against the checkpoint it was made from: values, and the function.
 * Private to jobs/verify*.c. */
#ifndef SPINSHARD_JOBS_VERIFY_SOURCE_H
#define SPINSHARD_JOBS_VERIFY_SOURCE_H

#include "base/err.h"
#include "jobs/setup/source.h"
#include "mpi/comm.h"
#include "rotations/rotation_set.h"

typedef struct verify_values {
    int64_t linears;       /* dequantized and compared */
    double relative_error; /* sqrt(sum (dq - w)^2 / sum w^2) over all linears */
    double worst_relative; /* of one linear */
    char worst[96];        /* its name */
    double worst_step;     /* largest |dq - w| in steps (scales) of its group, over all linears */
} verify_values;

/* Collective on c. Fuse every tensor of `from` with the rotations and compare with the archive:
 * tensors at 16 bit equal within one rounding, linears within what their quantizer allows
 * (quant/rounding_bounds.h has the bounds, with proof). Same result on every rank. ERR_VERIFY names
 * the tensor. */
err verify_values_against(const comm *c, const source *ar, const source *from,
                          rotation_set *rotations, verify_values *out);

/* Collective on c. Logits of `from` as it is and with gains and rotations folded in, in fp32, on
 * seeded random tokens: *relative = max over positions of |a - b|_2 / |a|_2. Same on every rank. */
err verify_equivalence(const comm *c, const source *from, rotation_set *rotations,
                       double *relative);

#endif
