/* link - how fast messages go between ranks now: the time of a short one, and what a node sends
 * while all of its ranks send and receive. Between nodes where there are some, else between the
 * ranks of the one. A measurement of less than a second, not a benchmark. */
#ifndef SPINSHARD_MPI_LINK_H
#define SPINSHARD_MPI_LINK_H

#include "mpi/comm.h"

typedef struct link_rate {
    int nodes;        /* that the ranks are on */
    int pairs;        /* of ranks that were measured, each on two nodes if there are two; 0: none */
    double latency_s; /* of a short message, one way */
    double node_bytes_s; /* what a node sends; of one node, what its ranks send each other */
} link_rate;

/* Collective. Every rank gets the same rates; a single one none. Takes 8 MiB a rank; ends
 * the program where there is no memory. */
link_rate link_measure(const comm *c);

#endif
