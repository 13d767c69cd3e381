/* comm_internal - what the files of comm share: the communicator, which of its ranks are on one
 * node, and how bytes are counted. mpi/dmat.c asks for the handle, which BLACS needs. Nobody
 * outside mpi/ includes it. */
#ifndef SPINSHARD_MPI_COMM_INTERNAL_H
#define SPINSHARD_MPI_COMM_INTERNAL_H

#include "mpi/comm.h"

#include <mpi.h>

/* Nodes are numbered in the order of their first ranks, which are their leaders: what goes from
 * node to node goes between these alone. */
struct comm {
    MPI_Comm handle;
    int rank, size;
    int n_nodes;
    /* Where there are several nodes; NULL elsewhere: */
    int *node_of;    /* [size] */
    int *local;      /* [size] a rank among those of its node, in rank order */
    int *members;    /* [size] the ranks, node by node */
    int *first;      /* [n_nodes + 1] where those of a node begin among members */
    MPI_Comm within; /* ranks of this rank's node; */
    MPI_Comm leads;  /* leaders, by node; MPI_COMM_NULL on the others */
    bool two_levels; /* several nodes, and several ranks on one of them */
    char name[32];
};

/* Pieces of long messages: below INT_MAX, and small enough to stay in cache on the way. */
enum { COMM_PIECE = 16 << 20 };
static inline int comm_piece(uint64_t left) { /* local */
    return left < COMM_PIECE ? (int)left : COMM_PIECE;
}

/* Local. MPI_Waitall without statuses: MPICH's MPI_STATUSES_IGNORE is an address that gcc takes for
 * an array of no bytes, and warns of. */
static inline void comm_wait_all(int n, MPI_Request *requests) {
    for (int i = 0; i < n; i++) MPI_Wait(&requests[i], MPI_STATUS_IGNORE);
}

/* Local. Borrowed; valid after comm_start. */
MPI_Comm comm_handle(const comm *c);

/* Collective on c, whose handle, rank and size are there. host: the same number on the ranks of one
 * node and no other. */
void comm_nodes_learn(comm *c, int host);
void comm_nodes_clear(comm *c); /* collective */

static inline bool comm_together(const comm *c, int a, int b) { /* local; on one node */
    return c->n_nodes == 1 || c->node_of[a] == c->node_of[b];
}

/* Local. This rank has handed n bytes to another, or to all others. */
void comm_count(const comm *c, uint64_t n, int to);
void comm_count_to_all(const comm *c, uint64_t n);
/* Local, on every rank. All have summed n numbers of 8 bytes: what the best algorithm sends, on one
 * level or on two. */
void comm_count_sum(const comm *c, int64_t n);

#endif
