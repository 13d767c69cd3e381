/* Every rank hashes what it holds and all gather the digests; the value that most ranks have is
 * taken for right, and the first rank that differs is named. */
#include "mpi/replicas.h"

#include "base/fault.h"
#include "base/sha256.h"

#include <stdlib.h>
#include <string.h>

typedef char digest[SHA256_HEX];

/* How many ranks have the digest of rank r. */
static int votes(const digest *all, int n, int stride, int r) {
    int sum = 0;
    for (int k = 0; k < n; k++) sum += !strcmp(all[k * stride], all[r * stride]);
    return sum;
}

/* The first rank that differs from most, or -1. */
static int odd_one(const digest *all, int n, int stride) {
    int best = -1, most = 0;
    for (int r = 0; r < n; r++) {
        if (!all[r * stride][0]) continue; /* no copy */
        int have = votes(all, n, stride, r);
        if (have > most) {
            most = have;
            best = r;
        }
    }
    for (int r = 0; r < n && best >= 0; r++)
        if (all[r * stride][0] && strcmp(all[r * stride], all[best * stride])) return r;
    return -1;
}

static err compare(const digest *all, int ranks, const replica *parts, int n, const char *phase) {
    for (int i = 0; i < n; i++) {
        int odd = odd_one(all + i, ranks, n);
        if (odd >= 0)
            return err_make(ERR_NUMERICS, phase,
                            "the memory of its node may be faulty: leave it out; the same command "
                            "goes on from the last commit",
                            "rank %d holds another %s than the other ranks", odd, parts[i].what);
    }
    return err_none();
}

err replicas_check(const comm *c, const replica *parts, int n, const char *phase) {
    const int ranks = comm_size(c);
    digest *mine = calloc((size_t)n, sizeof *mine), *all = calloc((size_t)(n * ranks), sizeof *all);
    if (!mine || !all) abort();
    for (int i = 0; i < n; i++) {
        if (parts[i].bytes) sha256_of(parts[i].data, parts[i].bytes, mine[i]);
        if (parts[i].bytes && fault_hit("state")) mine[i][0] ^= 1; /* as one lost bit would */
    }
    comm_gather(c, mine, (uint64_t)n * sizeof *mine, all, 0);
    err e = comm_rank(c) == 0 ? compare(all, ranks, parts, n, phase) : err_none();
    free(mine);
    free(all);
    return comm_agree(c, e, phase, NULL);
}
