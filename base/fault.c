#include "base/fault.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct {
    char kind[16], action[16];
    int rank; /* -1: any */
} plan;
static int my_rank = -1;
static _Atomic long left; /* calls until the failure; 0: not armed */
static pthread_once_t looked = PTHREAD_ONCE_INIT;

void fault_set_rank(int rank) {
    my_rank = rank;
}

void fault_arm(const char *spec) {
    long n = 0;
    strcpy(plan.action, "eio");
    plan.rank = -1;
    int fields = sscanf(spec, "%15[a-z]:%ld:%d:%15[a-z]", plan.kind, &n, &plan.rank, plan.action);
    if (fields == 2) sscanf(spec, "%15[a-z]:%ld:%15[a-z]", plan.kind, &n, plan.action);
    atomic_store(&left, fields >= 2 && n > 0 ? n : 0);
}

static void look(void) {
    const char *spec = getenv("SPINSHARD_FAULT");
    if (spec && !atomic_load(&left)) fault_arm(spec);
}

bool fault_armed(void) {
    return atomic_load(&left) > 0;
}

bool fault_hit(const char *kind) {
    pthread_once(&looked, look);
    if (!fault_armed()) return false;
    if (strcmp(plan.kind, "any") != 0 && strcmp(plan.kind, kind) != 0) return false;
    if (plan.rank >= 0 && plan.rank != my_rank) return false;
    if (atomic_fetch_sub(&left, 1) != 1) return false;
    if (!strcmp(plan.action, "kill")) raise(SIGKILL);
    errno = strcmp(plan.action, "enospc") ? EIO : ENOSPC;
    return true;
}
