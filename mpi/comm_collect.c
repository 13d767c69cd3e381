/* What all ranks do together with large data. Where nodes have several ranks it goes in two levels:
 * within a node, and between the leaders of the nodes, so that nothing crosses the network twice.
 * Where each rank wants its own part of a sum, ranks exchange parts pairwise and add them piece by
 * piece. Sums are of integers, so their order changes nothing. */
#include "base/size.h"
#include "mpi/comm_internal.h"

#include <stdlib.h>
#include <string.h>

/* Sums go in pieces that stay in cache, and whose copies inside MPI cost no fresh pages. */
enum { SUM_PIECE = 1 << 17 }; /* numbers */

static bool leads(const comm *c) {
    return c->local[c->rank] == 0;
}

/* From its root to the root's node, from there to the leaders, and on to their nodes. */
static void bcast_levels(const comm *c, void *data, int n, int root) {
    const int node = c->node_of[root];
    const bool here = c->node_of[c->rank] == node;
    if (here) MPI_Bcast(data, n, MPI_BYTE, c->local[root], c->within);
    if (leads(c)) MPI_Bcast(data, n, MPI_BYTE, node, c->leads);
    if (!here) MPI_Bcast(data, n, MPI_BYTE, 0, c->within);
}

void comm_bcast(const comm *c, void *data, uint64_t n, int root) {
    char *p = data;
    if (c->size == 1) return;
    if (c->rank == root) comm_count_to_all(c, n);
    for (uint64_t at = 0; at < n; at += COMM_PIECE) {
        if (c->two_levels)
            bcast_levels(c, p + at, comm_piece(n - at), root);
        else
            MPI_Bcast(p + at, comm_piece(n - at), MPI_BYTE, root, c->handle);
    }
}

/* Leaders are the first ranks of `within`: MPICH 4.0 crashes where a root that is not rank 0 names
 * MPI_IN_PLACE. */
static void reduce_levels(const comm *c, void *v, int n, MPI_Datatype type, MPI_Op op) {
    MPI_Reduce(leads(c) ? MPI_IN_PLACE : v, v, n, type, op, 0, c->within);
    if (leads(c)) MPI_Allreduce(MPI_IN_PLACE, v, n, type, op, c->leads);
    MPI_Bcast(v, n, type, 0, c->within);
}

static void reduce_in_place(const comm *c, void *v, int64_t n, MPI_Datatype type, MPI_Op op) {
    char *p = v;
    if (c->size == 1) return;
    comm_count_sum(c, n);
    for (int64_t at = 0; at < n; at += SUM_PIECE) {
        const int piece = (int)size_min(SUM_PIECE, n - at);
        if (c->two_levels)
            reduce_levels(c, p + at * 8, piece, type, op);
        else
            MPI_Allreduce(MPI_IN_PLACE, p + at * 8, piece, type, op, c->handle);
    }
}

void comm_sum_i64(const comm *c, int64_t *v, int64_t n) {
    reduce_in_place(c, v, n, MPI_INT64_T, MPI_SUM);
}

void comm_max_i64(const comm *c, int64_t *v, int64_t n) {
    reduce_in_place(c, v, n, MPI_INT64_T, MPI_MAX);
}

void comm_max_f64(const comm *c, double *v, int64_t n) {
    reduce_in_place(c, v, n, MPI_DOUBLE, MPI_MAX);
}

/* The other nodes sum each for itself, their leaders to that of the root's node, which gives it
 * with its own to the sum of that node. node, all: room for a piece each. */
static void sum_to_levels(const comm *c, const int64_t *v, int n, int root, int64_t *node,
                          int64_t *all, int64_t *sums) {
    const bool here = c->node_of[c->rank] == c->node_of[root], mine = leads(c);
    if (!here) MPI_Reduce(v, node, n, MPI_INT64_T, MPI_SUM, 0, c->within);
    if (mine) MPI_Reduce(here ? v : node, all, n, MPI_INT64_T, MPI_SUM, c->node_of[root], c->leads);
    if (here) MPI_Reduce(mine ? all : v, sums, n, MPI_INT64_T, MPI_SUM, c->local[root], c->within);
}

static void count_sum_to(const comm *c, int64_t n, int root) {
    const uint64_t bytes = 8 * (uint64_t)n;
    if (c->rank == root) return;
    if (!comm_together(c, c->rank, root) && c->local[c->rank] == 0)
        comm_count(c, bytes, root);
    else
        comm_count(c, bytes, c->rank);
}

void comm_sum_i64_to(const comm *c, int64_t *v, int64_t n, int root) {
    if (c->size == 1) return;
    /* Through a buffer: MPICH 4.0 crashes where the root, not rank 0, names MPI_IN_PLACE. */
    const bool here = c->rank == root;
    const int64_t most = size_min(SUM_PIECE, n);
    int64_t *sums = malloc((size_t)(c->two_levels ? 3 : 1) * (size_t)most * sizeof *sums);
    if (n && !sums) comm_abort(ERR_NOFIT, "no memory for sums");
    count_sum_to(c, n, root);
    for (int64_t at = 0; at < n; at += SUM_PIECE) {
        const int piece = (int)size_min(SUM_PIECE, n - at);
        if (c->two_levels)
            sum_to_levels(c, v + at, piece, root, sums + most, sums + 2 * most, sums);
        else
            MPI_Reduce(v + at, sums, piece, MPI_INT64_T, MPI_SUM, root, c->handle);
        if (here) memcpy(v + at, sums, (size_t)piece * sizeof *sums);
    }
    free(sums);
}

/* A sum of which each rank gets a part. */
typedef struct parts {
    const comm *c;
    int64_t *v;
    const int64_t *from;
    int bytes;      /* of a number on its way */
    char *out, *in; /* two pieces each: on their way, and coming */
} parts;

/* Where they can be sent from: v itself, where all bytes go, or `to`. */
static const void *pack(const int64_t *v, int64_t n, int bytes, char *to) {
    if (bytes == (int)sizeof *v) return v;
    for (int64_t i = 0; i < n; i++) memcpy(to + i * bytes, v + i, (size_t)bytes);
    return to;
}

/* As unsigned integers: entries left of the diagonal of a Hessian are undefined, and their sums may
 * wrap around without harm. */
static void add_packed(const char *from, int64_t n, int bytes, int64_t *sums) {
    const int shift = 64 - 8 * bytes;
    for (int64_t i = 0; i < n; i++) {
        uint64_t u = 0;
        memcpy(&u, from + i * bytes, (size_t)bytes); /* the lowest bytes stand first */
        const int64_t v = (int64_t)(u << shift) >> shift;
        sums[i] = (int64_t)((uint64_t)sums[i] + (uint64_t)v);
    }
}

/* Send part `out` to one rank and add to part `in` what another rank sends, piece by piece, with
 * the next piece on its way; -1: nothing, to or from none. */
static void exchange_parts(const parts *p, int out, int to, int in, int from) {
    const comm *c = p->c;
    MPI_Request sent[2] = {MPI_REQUEST_NULL, MPI_REQUEST_NULL},
                got[2] = {MPI_REQUEST_NULL, MPI_REQUEST_NULL};
    const int64_t n_out = to < 0 || out < 0 ? 0 : p->from[out + 1] - p->from[out],
                  n_in = from < 0 || in < 0 ? 0 : p->from[in + 1] - p->from[in],
                  outs = size_ceil_div(n_out, SUM_PIECE), ins = size_ceil_div(n_in, SUM_PIECE),
                  room = SUM_PIECE * p->bytes;
    if (n_out) comm_count(c, (uint64_t)(p->bytes * n_out), to);
    for (int64_t i = 0; i <= size_max(outs, ins); i++) {
        char *next = p->out + i % 2 * room, *last = p->in + (i + 1) % 2 * room;
        if (i < outs) {
            const int64_t n = size_min(SUM_PIECE, n_out - i * SUM_PIECE);
            MPI_Wait(&sent[i % 2], MPI_STATUS_IGNORE);
            const void *ready = pack(p->v + p->from[out] + i * SUM_PIECE, n, p->bytes, next);
            MPI_Isend(ready, (int)n * p->bytes, MPI_BYTE, to, TAG_SUM, c->handle, &sent[i % 2]);
        }
        if (i < ins)
            MPI_Irecv(p->in + i % 2 * room,
                      (int)size_min(SUM_PIECE, n_in - i * SUM_PIECE) * p->bytes, MPI_BYTE, from,
                      TAG_SUM, c->handle, &got[i % 2]);
        if (i == 0 || i > ins) continue;
        MPI_Wait(&got[(i + 1) % 2], MPI_STATUS_IGNORE);
        const int64_t at = (i - 1) * SUM_PIECE;
        add_packed(last, size_min(SUM_PIECE, n_in - at), p->bytes, p->v + p->from[in] + at);
    }
    comm_wait_all(2, sent);
}

/* ---- parts of a sum, on two levels ----
 * The part of rank t is added up in every node by one of its ranks, the same for all ranks of a
 * node that stand at t's place, counted round where the node has fewer ranks; and goes from there
 * to t. */

static int ranks_of(const comm *c, int node) {
    return c->first[node + 1] - c->first[node];
}

/* Rank number i of a node; -1 behind the last. */
static int member(const comm *c, int node, int i) {
    return i < ranks_of(c, node) ? c->members[c->first[node] + i] : -1;
}

/* The parts of the ranks of a node, each to the rank of this node that adds it up. */
static void sum_within(const parts *p, int node) {
    const comm *c = p->c;
    const int here = c->node_of[c->rank], n = ranks_of(c, here), me = c->local[c->rank];
    for (int at = 0; at < ranks_of(c, node); at += n)
        for (int k = 1; k < n; k++) {
            const int to = (me + k) % n, from = (me + n - k) % n;
            exchange_parts(p, member(c, node, at + to), member(c, here, to),
                           member(c, node, at + me), member(c, here, from));
        }
}

/* Sums of this node to a node further on, and this rank's part from a node further back. No circle
 * waits: whoever sends its first part late to a rank waits itself for one at a lower place. */
static void sum_between(const parts *p, int further) {
    const comm *c = p->c;
    const int here = c->node_of[c->rank], n = ranks_of(c, here), me = c->local[c->rank],
              next = (here + further) % c->n_nodes,
              back = (here + c->n_nodes - further) % c->n_nodes;
    exchange_parts(p, member(c, next, me), member(c, next, me), c->rank,
                   member(c, back, me % ranks_of(c, back)));
    for (int at = n; at < ranks_of(c, next); at += n)
        exchange_parts(p, member(c, next, at + me), member(c, next, at + me), -1, -1);
}

void comm_sum_i64_parts(const comm *c, int64_t *v, const int64_t *from, int bytes) {
    if (c->size == 1) return;
    int64_t most = 0;
    for (int r = 0; r < c->size; r++) most = size_max(most, from[r + 1] - from[r]);
    const size_t room = (most > SUM_PIECE ? 2 * SUM_PIECE : SUM_PIECE) * (size_t)bytes;
    parts p = {.c = c, .v = v, .from = from, .bytes = bytes, .out = malloc(2 * room)};
    if (!p.out) comm_abort(ERR_NOFIT, "no memory for a sum");
    p.in = p.out + room;
    if (c->two_levels) {
        for (int node = 0; node < c->n_nodes; node++) sum_within(&p, node);
        for (int k = 1; k < c->n_nodes; k++) sum_between(&p, k);
    } else {
        for (int k = 1; k < c->size; k++) {
            const int to = (c->rank + k) % c->size;
            exchange_parts(&p, to, to, c->rank, (c->rank + c->size - k) % c->size);
        }
    }
    free(p.out);
}

/* Parts one after the other where there are two levels. */
static void share(const comm *c, void *all, const int64_t *from, MPI_Datatype type) {
    const size_t size = type == MPI_DOUBLE ? sizeof(double) : sizeof(float);
    if (c->size == 1) return;
    if (c->two_levels) {
        for (int r = 0; r < c->size; r++)
            comm_bcast(c, (char *)all + (size_t)from[r] * size,
                       (uint64_t)(from[r + 1] - from[r]) * size, r);
        return;
    }
    comm_count_to_all(c, (uint64_t)(from[c->rank + 1] - from[c->rank]) * size);
    int *counts = malloc(2 * (size_t)c->size * sizeof *counts), *at = counts + c->size;
    if (!counts) comm_abort(ERR_NOFIT, "no memory to share parts");
    for (int r = 0; r < c->size; r++) {
        if (size_to_int(from[r + 1] - from[r], "part", &counts[r]).code ||
            size_to_int(from[r], "part", &at[r]).code)
            comm_abort(ERR_BUG, "parts do not fit an int");
    }
    MPI_Allgatherv(MPI_IN_PLACE, 0, type, all, counts, at, type, c->handle);
    free(counts);
}

void comm_share_f64(const comm *c, double *all, const int64_t *from) {
    share(c, all, from, MPI_DOUBLE);
}

void comm_share_f32(const comm *c, float *all, const int64_t *from) {
    share(c, all, from, MPI_FLOAT);
}
