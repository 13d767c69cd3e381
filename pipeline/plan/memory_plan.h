/* memory_plan - every large buffer of a phase by name, before it is allocated. Printed at the start
 * and held against the measured peak at the end. Not an allocator. */
#ifndef SPINSHARD_PIPELINE_PLAN_MEMORY_PLAN_H
#define SPINSHARD_PIPELINE_PLAN_MEMORY_PLAN_H

#include "base/err.h"
#include "mpi/comm.h"

#include <stdbool.h>
#include <stdint.h>

enum { MEMORY_PLAN_MAX = 16 };

typedef struct memory_plan {
    int n;
    struct {
        char name[48];
        uint64_t bytes;
    } buffers[MEMORY_PLAN_MAX];
} memory_plan;

void memory_plan_add(memory_plan *p, const char *name, uint64_t bytes); /* local */
uint64_t memory_plan_total(const memory_plan *p);                       /* local */

/* Local. What a rank with so many threads holds that no phase names: what is resident before the
 * first of them, and what libraries take while they work: their code as it is read and made,
 * buffers of BLAS, oneDNN and MPI, small objects; less where no matrix is multiplied. The latter as
 * measured (docs/MEASUREMENTS.md, Memory of phases). */
uint64_t memory_plan_program(uint64_t resident_bytes, double threads, bool products);

/* Local. Bytes that this rank may take: `asked`, or where that is 0 its share of the node's memory;
 * 0: unknown. */
uint64_t memory_plan_limit(uint64_t asked);

/* Collective on c. Log the plan of the rank with the largest total, and refuse with ERR_NOFIT (the
 * same on every rank) where some rank's total is above memory_plan_limit(limit). */
err memory_plan_check(const comm *c, const memory_plan *p, const char *phase, uint64_t limit);

#endif
