#include "base/fault.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int my_rank = -1;
static _Atomic long calls;

void fault_set_rank(int rank) {
    my_rank = rank;
}

bool fault_hit(const char *kind) {
    static const char *spec;
    static atomic_int looked;
    if (!atomic_load(&looked)) {
        spec = getenv("SPINSHARD_FAULT");
        atomic_store(&looked, 1);
    }
    if (!spec) return false;
    char want[16], action[16] = "eio";
    long n = 0;
    int rank = -1;
    if (sscanf(spec, "%15[a-z]:%ld:%d:%15[a-z]", want, &n, &rank, action) < 2) return false;
    if (sscanf(spec, "%15[a-z]:%ld:%15[a-z]", want, &n, action) == 3) rank = -1;
    if (strcmp(want, "any") != 0 && strcmp(want, kind) != 0) return false;
    if (rank >= 0 && rank != my_rank) return false;
    if (atomic_fetch_add(&calls, 1) + 1 != n) return false;
    if (!strcmp(action, "kill")) raise(SIGKILL);
    errno = strcmp(action, "enospc") ? EIO : ENOSPC;
    return true;
}
