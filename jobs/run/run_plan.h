/* run_plan - what a run of quantize will take on given ranks, before it starts: memory of each
 * phase by buffer, time, bytes. The figures and questions about them; they are made by the phases
 * (jobs/run/phase.h) and put together by jobs/planning/plan_make.h. */
#ifndef SPINSHARD_JOBS_RUN_RUN_PLAN_H
#define SPINSHARD_JOBS_RUN_RUN_PLAN_H

#include "base/err.h"
#include "pipeline/plan/memory_plan.h"
#include "pipeline/plan/plan_rates.h"

#include <stdbool.h>
#include <stdint.h>

/* Where it runs. */
typedef struct plan_place {
    int nodes, ranks_per_node;
    int ranks;             /* in all, where the last node has fewer; 0: none has */
    double cores_per_rank; /* below 1 where ranks share cores */
    uint64_t limit;        /* bytes of a rank; 0: no bound */
    uint64_t base_bytes;   /* the program and its libraries */
    char limit_from[48];   /* for people: where the bound comes from */
} plan_place;

typedef struct plan_phase {
    char name[32];
    memory_plan memory; /* of its largest rank */
    int rank;           /* that one */
    double seconds;
    int64_t passes, looks; /* over a batch, end to end; judgements of what is learned. Else 0 */
    bool disk;             /* what it takes is bytes, whose rates nobody measures */
    double busy;           /* share of the time that the ranks work, on average */
    uint64_t sent;         /* bytes that ranks send, all together; */
    uint64_t network;      /* and those of them that go from node to node */
    /* What a stop keeps of it. */
    int64_t units;  /* equal parts of seconds that are kept one by one; 0: nothing of it is, and
                       later phases need it */
    double again_s; /* what a start does first that begins or goes on with it: nobody kept it */
    double again_unit_s; /* and for each unit that is done already */
    double blind_s;      /* the longest time in which it does not look whether to stop */
    /* Of the capture: what it leaves in the run state for later starts; 0: nothing, a start
     * captures again. And the time in which a start reads it. */
    uint64_t saved_bytes;
    double read_back_s;
    char note[96]; /* "2 replicas x 4 stages"; "" where there is nothing to say */
} plan_phase;

enum { PLAN_MAX_PHASES = 24 };

typedef struct run_plan {
    plan_place place;
    plan_rates rates;
    int64_t params, layers;
    int64_t least_layers, most_layers;             /* of the ranks that have some, while learning */
    int idle_ranks;                                /* without a layer or another piece of work */
    uint64_t read_bytes, run_bytes, archive_bytes; /* sources; objects beside; tars */
    int64_t read_files, tars, other_files;
    int n_phases;
    plan_phase phases[PLAN_MAX_PHASES];
} run_plan;

/* Local. The phase with the largest rank; the phase of a name, NULL where there is none. */
const plan_phase *plan_largest(const run_plan *p);
const plan_phase *plan_find(const run_plan *p, const char *name);
double plan_seconds(const run_plan *p); /* local; of all phases */
/* Local. The ends of the range that the time of a phase is told with. */
double plan_low(const run_plan *p, const plan_phase *f);
double plan_high(const run_plan *p, const plan_phase *f);
bool plan_fits(const run_plan *p); /* local */

/* Local. ERR_NOFIT naming phase, buffer and what there is; `hint` tells the way out. */
err plan_refuse(const run_plan *p, const char *hint);

#endif
