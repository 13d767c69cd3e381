/* run_progress - how far a run is, from its events.jsonl alone: what each start planned, what it
 * did, how it ended. Read while the run writes; a line that is still being written is left out. */
#ifndef SPINSHARD_JOBS_RUN_RUN_PROGRESS_H
#define SPINSHARD_JOBS_RUN_RUN_PROGRESS_H

#include "base/json.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct run_progress {
    json_t *last;         /* the last event; NULL: there is none */
    json_t *plan;         /* of the last start that told one: {phases}; or NULL */
    char phase[32];       /* of the plan, the one that runs; "" before the first */
    int phase_number;     /* from 1; 0 before the first */
    int phases;           /* of the plan; 0: not told */
    int64_t done, total;  /* units of the phase; total 0: not told */
    double loss;          /* of the last step; below 0: none */
    double phase_left_s;  /* by its pace in this start, else by the plan; below 0: not known */
    double run_left_s;    /* with the phases behind it, by the plan; below 0: not known */
    char last_commit[32]; /* wall clock; "": none */
    double seconds;       /* of all starts, one after the other */
    double node_hours;    /* of all starts */
    int64_t starts;       /* that wrote events */
    int64_t deaths;       /* starts at the end that ended without a word and without a commit */
    bool told;            /* the last start said how it ended: exit_code */
    int64_t exit_code;
} run_progress;

/* Local. In which phase the last start ended without a word, and what that was planned to take, for
 * who wonders about memory; to be shown where there is a last event and !told. */
const char *run_progress_death(const run_progress *p, char text[256]);

/* Local. A folder without events gives a progress of nothing. Caller clears it. */
run_progress run_progress_read(const char *out_dir);
void run_progress_clear(run_progress *p); /* local */

#endif
