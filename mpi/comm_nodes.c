/* Ranks say which host they are on; nodes are numbered in the order of their first ranks. */
#include "mpi/comm_internal.h"

#include <stdlib.h>

static void fill_members(comm *c) {
    c->first = calloc((size_t)c->n_nodes + 1, sizeof *c->first);
    if (!c->first) comm_abort(ERR_NOFIT, "no memory for a communicator");
    for (int node = 0, at = 0; node < c->n_nodes; node++) {
        for (int r = 0; r < c->size; r++) {
            if (c->node_of[r] != node) continue;
            c->local[r] = at - c->first[node];
            c->members[at++] = r;
        }
        c->first[node + 1] = at;
    }
}

void comm_nodes_learn(comm *c, int host) {
    int *room = calloc(3 * (size_t)c->size, sizeof *room), *hosts = room + 2 * c->size;
    if (!room) comm_abort(ERR_NOFIT, "no memory for a communicator");
    c->n_nodes = 0;
    c->within = c->leads = MPI_COMM_NULL;
    MPI_Allgather(&host, 1, MPI_INT, hosts, 1, MPI_INT, c->handle);
    for (int r = 0; r < c->size; r++) {
        int same = 0;
        while (hosts[same] != hosts[r]) same++;
        room[r] = same == r ? c->n_nodes++ : room[same];
    }
    if (c->n_nodes == 1) {
        free(room);
        return;
    }
    c->node_of = room;
    c->local = room + c->size;
    c->members = hosts;
    fill_members(c);
    c->two_levels = c->n_nodes < c->size;
    if (!c->two_levels) return;
    const int node = c->node_of[c->rank], leads = c->local[c->rank] == 0;
    MPI_Comm_split(c->handle, node, c->rank, &c->within);
    MPI_Comm_split(c->handle, leads ? 0 : MPI_UNDEFINED, c->rank, &c->leads);
}

void comm_nodes_clear(comm *c) {
    if (c->two_levels) MPI_Comm_free(&c->within);
    if (c->two_levels && c->leads != MPI_COMM_NULL) MPI_Comm_free(&c->leads);
    free(c->node_of);
    free(c->first);
    c->node_of = c->first = NULL;
    c->two_levels = false;
}

int comm_nodes(const comm *c) {
    return c->n_nodes;
}

/* Bytes that this rank has handed to others: to those of its node, and of other nodes. Calls come
 * from one thread. */
static uint64_t inside, between;

uint64_t comm_sent_bytes(void) {
    return inside + between;
}

uint64_t comm_network_bytes(void) {
    return between;
}

void comm_count(const comm *c, uint64_t n, int to) {
    *(comm_together(c, c->rank, to) ? &inside : &between) += n;
}

void comm_count_to_all(const comm *c, uint64_t n) {
    between += n * (uint64_t)(c->n_nodes - 1);
    inside += n * (uint64_t)(c->size - c->n_nodes);
}

/* Of k that sum n numbers each sends 2 (k - 1)/k n; a rank that leaves it to its leader sends n and
 * is sent n. */
void comm_count_sum(const comm *c, int64_t n) {
    const uint64_t whole = 16 * (uint64_t)n, nodes = (uint64_t)c->n_nodes;
    if (c->n_nodes == 1)
        inside += whole * (uint64_t)(c->size - 1) / (uint64_t)c->size;
    else if (c->local[c->rank] == 0)
        between += whole * (nodes - 1) / nodes;
    else
        inside += whole;
}
