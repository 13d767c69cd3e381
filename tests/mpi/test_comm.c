/* Ranks: agreement, exchange, integer sums, on 1 to 4 ranks, on one node and dealt over pretended
 * nodes in every way that matters: even and uneven ones, neighbours apart, a node of one rank; and
 * what is counted, between ranks and between nodes. A failed check ends with nonzero. */
#include "base/mem.h"
#include "tests/mpi/on_ranks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void errors_are_agreed(const comm *c) {
    int rank = comm_rank(c), size = comm_size(c), others = -1;
    check(!comm_agree(c, err_none(), "nothing", &others).code && others == 0,
          "success stays success");
    /* The last rank fails with a larger code than the first: the smaller code wins. */
    err e = err_none();
    if (rank == size - 1) e = err_make(ERR_SPACE, "disk", "h", "late");
    if (rank == 0 && size > 1) e = err_make(ERR_INPUT, "", NULL, "early");
    e = comm_agree(c, e, "phase", &others);
    check(e.code == (size > 1 ? ERR_INPUT : ERR_SPACE), "smallest nonzero code wins");
    check(e.rank == 0, "the rank is filled in");
    check(!strcmp(e.where, size > 1 ? "phase" : "disk"), "an empty where becomes the phase");
    check(others == (size > 1 ? 1 : 0), "the others are counted");
    bool told = strstr(e.what, "other ranks") != NULL;
    check(told == (size > 2), "others are told unless every rank failed");
    /* Agreed on again, as by a phase that a part of the ranks ran: who failed stays known. */
    e = comm_agree(c, rank == size - 1 ? err_make(ERR_INPUT, "w", NULL, "once") : err_none(),
                   "inner", NULL);
    for (int again = 0; again < 2; again++) {
        if (again && rank == 0 && size > 2) e = err_none(); /* those outside had no error */
        e = comm_agree(c, e, "outer", NULL);
        check(e.rank == size - 1, "the rank that failed is kept");
        check(!strcmp(e.what, "once"), "nothing is added to a message that was agreed on");
    }
    /* Equal codes: the lowest rank speaks. */
    e = comm_agree(c, err_make(ERR_INPUT, "w", NULL, "rank %d", rank), "phase", NULL);
    check(e.rank == 0 && !strncmp(e.what, "rank 0", 6), "lowest rank of equal codes");
}

static void bytes_go_round(const comm *c, int N) {
    int rank = comm_rank(c), size = comm_size(c);
    char *data = malloc((size_t)N);
    if (!data) abort();
    for (int i = 0; i < N; i++) data[i] = (char)(rank == 0 ? i * 7 : 0);
    comm_bcast(c, data, (uint64_t)N, 0);
    bool same = true;
    for (int i = 0; i < N; i++) same &= data[i] == (char)(i * 7);
    check(same, "broadcast in pieces");
    if (size > 1) { /* a ring, half of it without waiting */
        int next = (rank + 1) % size, before = (rank + size - 1) % size;
        char *in = calloc(1, (size_t)N);
        if (!in) abort();
        data[N - 1] = (char)rank;
        comm_request *r = comm_isend(c, data, (uint64_t)N, next, TAG_ACTIVATIONS);
        comm_recv(c, in, (uint64_t)N, before, TAG_ACTIVATIONS);
        comm_wait(&r);
        check(in[N - 1] == (char)before && in[N / 2] == (char)((N / 2) * 7), "ring");
        check(r == NULL, "a request is gone after waiting");
        free(in);
    }
    free(data);
    char hello[] = "hello";
    void *blob = rank == size - 1 ? hello : NULL;
    size_t len = rank == size - 1 ? 5 : 0;
    comm_bcast_blob(c, &blob, &len, size - 1);
    check(len == 5 && !memcmp(blob, "hello", 5), "blob");
    if (rank != size - 1) free(blob);
}

static void results_are_gathered(const comm *c) {
    int rank = comm_rank(c), size = comm_size(c);
    char mine[8], *all = NULL, want[64] = "";
    size_t lens[8] = {0};
    snprintf(mine, sizeof mine, "%.*s", rank, "abcdef");
    comm_gather_blobs(c, mine, (size_t)rank, (void **)&all, lens, 0);
    for (int r = 0; r < size; r++) strncat(want, "abcdef", (size_t)r);
    if (rank == 0) {
        check(!strcmp(all, want), "blobs in rank order");
        for (int r = 0; r < size; r++) check(lens[r] == (size_t)r, "length of a blob");
        free(all);
    }
    int64_t v[3] = {rank, 1, -rank}, one = (int64_t)1 << 61;
    comm_sum_i64(c, v, 3);
    check(v[0] == size * (size - 1) / 2 && v[1] == size && v[2] == -v[0], "integer sum");
    if (size <= 3) {
        comm_sum_i64(c, &one, 1);
        check(one == ((int64_t)1 << 61) * size, "large integers are exact");
    }
    double m[2] = {rank * 0.5, -rank};
    comm_max_f64(c, m, 2);
    check(m[0] == (size - 1) * 0.5 && m[1] == 0, "maximum");
}

/* Sums of several pieces and a bit, of both signs, each at its rank; the second rank's part is
 * empty. The largest are just below 2^55, so that seven bytes hold them and six would not. */
static void sums_go_to_parts(const comm *c, int bytes) {
    enum { MANY = 3 * 131072 + 5, HIGH = 51 };
    const int rank = comm_rank(c), size = comm_size(c);
    int64_t from[16] = {0}, *v;
    void *room;
    for (int r = 0; r < size; r++) from[r + 1] = from[r] + (r == 1 ? 0 : MANY - 1000 * r);
    check(!mem_alloc(from[size], sizeof *v, "test", &room).code, "room");
    v = room;
    for (int64_t i = 0; i < from[size]; i++) {
        const int64_t sign = i % 2 ? -1 : 1;
        v[i] = sign * ((rank + 1) * ((int64_t)1 << HIGH) + i * rank);
    }
    comm_sum_i64_parts(c, v, from, bytes);
    bool right = true;
    for (int64_t i = 0; i < from[size]; i++) {
        const int64_t pairs = (int64_t)size * (size + 1) / 2, sign = i % 2 ? -1 : 1,
                      sum = sign * (pairs * ((int64_t)1 << HIGH) + i * (pairs - size)),
                      own = sign * ((rank + 1) * ((int64_t)1 << HIGH) + i * rank);
        const bool mine = i >= from[rank] && i < from[rank + 1];
        if (!mine && comm_nodes(c) > 1) continue;
        right = right && v[i] == (mine ? sum : own);
    }
    check(right, "sums by parts");
    mem_free(room);
}

static void ranks_are_split(const comm *c) {
    comm *half = NULL;
    int rank = comm_rank(c), size = comm_size(c);
    err e = comm_split(c, rank == size - 1 && size > 1 ? -1 : 0, "all but the last", &half);
    check(!e.code, "split");
    check((half == NULL) == (rank == size - 1 && size > 1), "color -1 gets none");
    if (half)
        check(comm_rank(half) == rank && comm_size(half) == (size > 1 ? size - 1 : 1),
              "ranks keep their order");
    comm_destroy(&half);
}

/* From and to every rank in turn. */
static void every_rank_is_a_root(const comm *c) {
    enum { N = 131072 + 3 };
    const int rank = comm_rank(c), size = comm_size(c);
    int64_t *v = malloc(N * sizeof *v);
    float each[8] = {0};
    int64_t from[9] = {0};
    if (!v) abort();
    for (int root = 0; root < size; root++) {
        bool right = true;
        for (int64_t i = 0; i < N; i++) v[i] = rank == root ? root * i + 1 : -1;
        comm_bcast(c, v, N * sizeof *v, root);
        for (int64_t i = 0; i < N; i++) right = right && v[i] == root * i + 1;
        check(right, "broadcast from any rank");
        for (int64_t i = 0; i < N; i++) v[i] = rank * i - 5;
        comm_sum_i64_to(c, v, N, root);
        for (int64_t i = 0; i < N; i++)
            right = right &&
                    v[i] == (rank == root ? size * (size - 1) / 2 * i - 5 * size : rank * i - 5);
        check(right, "sum at any rank");
    }
    for (int r = 0; r < size; r++) from[r + 1] = from[r] + (r == 2 ? 0 : 2);
    for (int64_t i = from[rank]; i < from[rank + 1]; i++) each[i] = (float)(10 * rank + i);
    comm_share_f32(c, each, from);
    for (int r = 0; r < size; r++)
        for (int64_t i = from[r]; i < from[r + 1]; i++)
            check(each[i] == (float)(10 * r + i), "parts are shared");
    free(v);
}

/* Counted since `before` by all ranks: so many numbers of 8 bytes for each rank but one, and for
 * each node but one; shares of ranks are rounded down. */
static void check_counts(const comm *c, const uint64_t before[2], int64_t numbers,
                         const char *what) {
    int64_t now[2] = {(int64_t)(comm_sent_bytes() - before[0]),
                      (int64_t)(comm_network_bytes() - before[1])};
    comm_sum_i64(c, now, 2);
    const int64_t want[2] = {8 * numbers * (comm_size(c) - 1), 8 * numbers * (comm_nodes(c) - 1)};
    for (int i = 0; i < 2; i++) check(now[i] <= want[i] && now[i] > want[i] - comm_size(c), what);
}

static void bytes_are_counted(const comm *c) {
    enum { N = 1000 };
    const int size = comm_size(c);
    int64_t v[N] = {0}, from[9] = {0};
    for (int root = 0; root < size; root++) {
        uint64_t at[2] = {comm_sent_bytes(), comm_network_bytes()};
        comm_bcast(c, v, sizeof v, root);
        check_counts(c, at, N, "bytes of a broadcast");
        at[0] = comm_sent_bytes(), at[1] = comm_network_bytes();
        comm_sum_i64_to(c, v, N, root);
        check_counts(c, at, N, "bytes of a sum at one rank");
    }
    uint64_t at[2] = {comm_sent_bytes(), comm_network_bytes()};
    comm_sum_i64(c, v, N);
    check_counts(c, at, 2 * N, "bytes of a sum");
    for (int r = 0; r < size; r++) from[r + 1] = N * (r + 1) / size;
    at[0] = comm_sent_bytes(), at[1] = comm_network_bytes();
    comm_sum_i64_parts(c, v, from, 8);
    check_counts(c, at, N, "bytes of a sum by parts");
    at[0] = comm_sent_bytes(), at[1] = comm_network_bytes();
    comm_share_f64(c, (double *)v, from);
    check_counts(c, at, N, "bytes of parts that are shared");
    at[0] = comm_sent_bytes(), at[1] = comm_network_bytes();
    if (size > 1 && comm_rank(c) == 0) comm_send(c, v, 8, size - 1, TAG_RESULT);
    if (size > 1 && comm_rank(c) == size - 1) comm_recv(c, v, 8, 0, TAG_RESULT);
    if (comm_rank(c) == 0)
        check(comm_sent_bytes() - at[0] == (size > 1 ? 8 : 0), "bytes of a message");
}

/* bytes: of the largest message. */
static void everything(const comm *c, int bytes) {
    errors_are_agreed(c);
    bytes_go_round(c, bytes);
    results_are_gathered(c);
    sums_go_to_parts(c, 8);
    sums_go_to_parts(c, 7);
    every_rank_is_a_root(c);
    bytes_are_counted(c);
    ranks_are_split(c);
}

int main(int argc, char **argv) {
    static const char *const shapes[] = {"0,0,1,1", "0,1,0,1", "0,1,1,0", "0,1,1,1",
                                         "0,0,0,1", "1,0,2,2", "3,2,1,0"};
    static const int nodes[][4] = {{1, 1, 2, 2}, {1, 2, 2, 2}, {1, 2, 2, 2}, {1, 2, 2, 2},
                                   {1, 1, 1, 2}, {1, 2, 3, 3}, {1, 2, 3, 4}};
    const comm *c = ranks_start(&argc, &argv);
    check(comm_nodes(c) == 1, "one host");
    enum { PIECES = (40 << 20) + 17, FEW = 1000 }; /* several pieces and a rest */
    everything(c, PIECES);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes && comm_size(c) > 1; i++) {
        comm *dealt;
        setenv("SPINSHARD_TEST_NODES", shapes[i], 1);
        check_ok(comm_split(c, 0, "pretended nodes", &dealt), "split");
        check(comm_nodes(dealt) == nodes[i][comm_size(c) - 1], "nodes");
        everything(dealt, i ? FEW : PIECES);
        comm_destroy(&dealt);
    }
    return ranks_end();
}
