/* replicas - do all ranks still hold the same of what each has a copy of? A memory that loses a bit
 * on one node would else go into an archive unseen, and only there. Not a repair: the rank is
 * named, the run ends at its last commit. Asked at the commits of learning and of the items. */
#ifndef SPINSHARD_MPI_REPLICAS_H
#define SPINSHARD_MPI_REPLICAS_H

#include "base/err.h"
#include "mpi/comm.h"

#include <stdint.h>

typedef struct replica {
    const char *what; /* "R1", for the message */
    const void *data; /* borrowed */
    uint64_t bytes;   /* 0: this rank holds no copy, and has no say */
} replica;

/* Collective on c; n and the order of the parts must agree. Hashes each part and compares over the
 * ranks. Same result on every rank. Fails with ERR_NUMERICS, naming the part and the first rank
 * that differs from most (from the first, where no majority is). `phase` names the step. */
err replicas_check(const comm *c, const replica *parts, int n, const char *phase);

#endif
