/* plan - what a run of quantize will take on given ranks, before it starts: memory of each phase by
 * buffer, time, bytes. Made from the recipe, config.json and headers; never from weights. The same
 * functions say what the phases allocate, so that plan and run cannot drift apart. `spinshard plan`
 * prints it for any cluster; quantize prints it for the ranks it has and holds each phase against
 * it. First arrow of the way: options -> plan. */
#ifndef SPINSHARD_JOBS_PLANNING_PLAN_H
#define SPINSHARD_JOBS_PLANNING_PLAN_H

#include "jobs/run/quantize_run.h"
#include "pipeline/plan/plan_rates.h"

/* Where it runs. */
typedef struct plan_place {
    int nodes, ranks_per_node;
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
    double busy;      /* share of the time that the ranks work, on average */
    uint64_t network; /* bytes that ranks send, all together */
    char note[96];    /* "2 replicas x 4 stages"; "" where there is nothing to say */
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

/* Local. q has recipe, source, rotations and quantize_describe behind it; its calibration windows
 * count and are not read; its dealing of items is made anew. used_rows: rows of the embedding that
 * the calibration text uses; 0: guessed. Fails with ERR_USAGE, ERR_NOFIT (not: too small). */
err plan_make(quantize_run *q, const plan_place *place, const plan_rates *rates, int64_t used_rows,
              run_plan *out);

/* Local. The phase with the largest rank; the phase of a name, NULL where there is none. */
const plan_phase *plan_largest(const run_plan *p);
const plan_phase *plan_find(const run_plan *p, const char *name);
double plan_seconds(const run_plan *p); /* local; of all phases */
bool plan_fits(const run_plan *p);      /* local */

/* Local. ERR_NOFIT naming phase, buffer and what there is; `hint` tells the way out. */
err plan_refuse(const run_plan *p, const char *hint);

/* Local. For people on stdout; as JSON, new reference. */
void plan_print(const run_plan *p);
json_t *plan_json(const run_plan *p);
/* Local. The same in a few lines of the log. */
void plan_log(const run_plan *p);

/* Collective on q->c. The plan of this run into q->plan, told; ERR_NOFIT, agreed, where a phase
 * does not fit. */
err quantize_plan(quantize_run *q);
/* Local. A phase of it; NULL on other ranks than the first, and for phases without a plan. */
const plan_phase *quantize_planned(const quantize_run *q, const char *phase);
/* Local. The line at the end of a phase: what it took, and what was planned. */
void quantize_tell_phase(const quantize_run *q, const char *phase, double seconds, uint64_t peak);

/* Local. A Slurm script that runs quantize as planned; published whole. */
typedef struct plan_job {
    const options *o; /* borrowed: model, recipe and the flags that quantize takes too */
    const char *out;
    double limit_s; /* wall clock of a job; 0: not given */
} plan_job;
err plan_write_script(const char *path, const run_plan *p, const plan_job *job);

#endif
