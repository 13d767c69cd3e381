/* Ranks in the order of their nodes, each with the one that stands half of all further on: of nodes
 * with equally many ranks every pair is on two. */
#include "mpi/link.h"

#include "base/clock.h"
#include "base/err.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BYTES = 4 << 20, TIMES = 8, SHORT_TIMES = 200 };

/* Where a rank is: its node is the first rank with the same host. */
typedef struct place {
    char host[64];
    int rank, node;
} place;

static int by_node(const void *a, const void *b) {
    const place *x = a, *y = b;
    return x->node != y->node ? (x->node > y->node) - (x->node < y->node)
                              : (x->rank > y->rank) - (x->rank < y->rank);
}

/* All ranks by node; caller frees. */
static place *places_of(const comm *c, int *nodes) {
    const int size = comm_size(c);
    place mine = {.rank = comm_rank(c)}, *all = calloc((size_t)size, sizeof *all);
    if (!all) comm_abort(ERR_NOFIT, "no memory to measure links");
    strncpy(mine.host, comm_host(), sizeof mine.host - 1);
    comm_gather(c, &mine, sizeof mine, all, 0);
    comm_bcast(c, all, (uint64_t)size * sizeof *all, 0);
    *nodes = 0;
    for (int r = 0; r < size; r++) {
        all[r].node = 0;
        while (strcmp(all[all[r].node].host, all[r].host) != 0) all[r].node++;
        *nodes += all[r].node == r;
    }
    qsort(all, (size_t)size, sizeof *all, by_node);
    return all;
}

/* The other rank of this one's pair, -1: none; the pairs, and the two of the first one. */
static int partner_of(const comm *c, const place *all, int nodes, int *pairs, int first[2]) {
    const int half = comm_size(c) / 2;
    int mine = -1;
    *pairs = 0;
    for (int i = 0; i < half; i++) {
        const place *a = &all[i], *b = &all[i + half];
        if (nodes > 1 && a->node == b->node) continue;
        if (!(*pairs)++) {
            first[0] = a->rank;
            first[1] = b->rank;
        }
        if (a->rank == comm_rank(c)) mine = b->rank;
        if (b->rank == comm_rank(c)) mine = a->rank;
    }
    return mine;
}

/* Seconds of a short message one way, at the first of the pair; 0 elsewhere. The fastest of many:
 * others that run on the node only make it longer. */
static double ping(const comm *c, const int pair[2]) {
    char byte = 0;
    double least = HUGE_VAL;
    const int me = comm_rank(c);
    if (me != pair[0] && me != pair[1]) return 0;
    for (int i = 0; i < SHORT_TIMES; i++) {
        const double start = clock_now_s();
        if (me == pair[0]) comm_send(c, &byte, 1, pair[1], TAG_RESULT);
        comm_recv(c, &byte, 1, me == pair[0] ? pair[1] : pair[0], TAG_RESULT);
        if (me == pair[1]) comm_send(c, &byte, 1, pair[0], TAG_RESULT);
        least = fmin(least, clock_now_s() - start);
    }
    return me == pair[0] ? least / 2 : 0;
}

/* Seconds in which this rank sends and gets BYTES so many times. */
static double exchange(const comm *c, int partner, char *out, char *in) {
    double start = 0;
    for (int i = -1; i < TIMES && partner >= 0; i++) {
        if (i == 0) start = clock_now_s();
        comm_request *sent = comm_isend(c, out, BYTES, partner, TAG_BLOB);
        comm_recv(c, in, BYTES, partner, TAG_BLOB);
        comm_wait(&sent);
    }
    return partner >= 0 ? clock_now_s() - start : 0;
}

link_rate link_measure(const comm *c) {
    link_rate r = {.nodes = 1};
    int first[2];
    if (comm_size(c) == 1) return r;
    place *all = places_of(c, &r.nodes);
    const int partner = partner_of(c, all, r.nodes, &r.pairs, first);
    free(all);
    if (!r.pairs) return r;
    char *room = calloc(2, BYTES);
    if (!room) comm_abort(ERR_NOFIT, "no memory to measure links");
    double seconds[2] = {ping(c, first)};
    comm_barrier(c);
    seconds[1] = exchange(c, partner, room, room + BYTES);
    free(room);
    comm_max_f64(c, seconds, 2);
    r.latency_s = seconds[0];
    r.node_bytes_s = 2.0 * r.pairs * TIMES * BYTES / r.nodes / seconds[1];
    return r;
}
