/* A list of names and bytes, a total, and a comparison with the limit of the rank. */
#include "pipeline/plan/memory_plan.h"

#include "base/log.h"
#include "base/machine.h"
#include "base/size.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void memory_plan_add(memory_plan *p, const char *name, uint64_t bytes) {
    if (!bytes) return;
    if (p->n == MEMORY_PLAN_MAX) abort(); /* a plan with more lines nobody reads */
    snprintf(p->buffers[p->n].name, sizeof p->buffers[p->n].name, "%s", name);
    p->buffers[p->n++].bytes = bytes;
}

uint64_t memory_plan_total(const memory_plan *p) {
    uint64_t total = 0;
    for (int i = 0; i < p->n; i++) total += p->buffers[i].bytes;
    return total;
}

static void print_plan(const memory_plan *p, int rank, const char *phase) {
    char total[32], line[1024] = "", one[32];
    for (int i = 0; i < p->n; i++) {
        size_t used = strlen(line);
        snprintf(line + used, sizeof line - used, "%s%s %s", i ? ", " : "", p->buffers[i].name,
                 size_text(p->buffers[i].bytes, one));
    }
    log_line(LOG_PHASE, "%s: memory planned on the largest rank (%d): %s = %s", phase, rank,
             size_text(memory_plan_total(p), total), line);
}

uint64_t memory_plan_program(uint64_t resident_bytes, double threads, bool products) {
    enum { LIBRARIES = 2 << 20, PRODUCTS = 5 << 20, THREAD = 2 << 20 }; /* but the first thread */
    return resident_bytes + LIBRARIES + (products ? PRODUCTS : 0) +
           (uint64_t)(fmax(0, ceil(threads) - 1) * THREAD);
}

uint64_t memory_plan_limit(uint64_t asked) {
    return asked ? asked : machine_memory_bytes() / (uint64_t)comm_node_size();
}

err memory_plan_check(const comm *c, const memory_plan *p, const char *phase, uint64_t limit) {
    uint64_t total = memory_plan_total(p);
    int64_t key[2] = {(int64_t)total, 0};
    comm_max_i64(c, key, 1);
    /* The lowest rank with the largest total tells its plan. */
    int64_t who = (int64_t)total == key[0] ? -comm_rank(c) : INT64_MIN;
    comm_max_i64(c, &who, 1);
    memory_plan largest = *p;
    comm_bcast(c, &largest, sizeof largest, (int)-who);
    if (comm_rank(c) == 0) print_plan(&largest, (int)-who, phase);
    err e = err_none();
    limit = memory_plan_limit(limit);
    char need[32], have[32];
    if (limit && total > limit)
        e = err_make(ERR_NOFIT, phase, "use more ranks on more nodes, or allow more with --mem",
                     "needs %s on a rank, %s are there", size_text(total, need),
                     size_text(limit, have));
    return comm_agree(c, e, phase, NULL);
}
