/* The specification is parsed once. Each place that can fail calls fault_hit, which counts calls
 * by kind and says when the one that was asked for has come. */
#include "base/fault.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
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

/* A number in 1..most, by the finalizer of splitmix64. */
static long draw(unsigned long seed, long most) {
    uint64_t z = seed + 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return most > 0 ? 1 + (long)((z ^ z >> 31) % (uint64_t)most) : 0;
}

void fault_arm(const char *spec) {
    long n = 0;
    int at = 0;
    strcpy(plan.action, "eio");
    plan.rank = -1;
    atomic_store(&left, 0);
    if (sscanf(spec, "%15[a-z]:%ld%n", plan.kind, &n, &at) != 2) return;
    spec += at;
    if (*spec == '/') n = draw((unsigned long)n, strtol(spec + 1, (char **)&spec, 10));
    if (sscanf(spec, ":%d:%15[a-z]", &plan.rank, plan.action) < 1)
        sscanf(spec, ":%15[a-z]", plan.action);
    atomic_store(&left, n > 0 ? n : 0);
}

static void look(void) {
    const char *spec = getenv("SPINSHARD_FAULT");
    if (spec && !atomic_load(&left)) fault_arm(spec);
}

bool fault_armed(void) {
    return atomic_load(&left) > 0;
}

/* What is not a call of the file system has its own count. */
static bool is_file_call(const char *kind) {
    static const char *const others[] = {"malloc", "code", "fuse", "state", "commit", "unit"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (!strcmp(kind, others[i])) return false;
    return true;
}

bool fault_hit(const char *kind) {
    pthread_once(&looked, look);
    if (!fault_armed()) return false;
    if (strcmp(plan.kind, kind) != 0 && (strcmp(plan.kind, "any") != 0 || !is_file_call(kind)))
        return false;
    if (plan.rank >= 0 && plan.rank != my_rank) return false;
    if (atomic_fetch_sub(&left, 1) != 1) return false;
    if (!strcmp(plan.action, "kill")) raise(SIGKILL);
    const bool stop = !strcmp(plan.action, "stop"), term = !strcmp(plan.action, "term");
    if (stop) raise(SIGSTOP); /* until somebody sends SIGCONT; then all goes on */
    if (term) raise(SIGTERM); /* its handler has run when this returns */
    if (stop || term) return false;
    errno = strcmp(plan.action, "enospc") ? EIO : ENOSPC;
    return true;
}
