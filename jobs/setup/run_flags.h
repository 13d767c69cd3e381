/* run_flags - flags of quantize and plan that are no names of files to read alone: how much memory
 * a rank may take, and how phases end to end are laid out. None changes a byte of the output. */
#ifndef SPINSHARD_JOBS_SETUP_RUN_FLAGS_H
#define SPINSHARD_JOBS_SETUP_RUN_FLAGS_H

#include "base/err.h"
#include "jobs/setup/options.h"
#include "pipeline/learn/e2e_layout.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct run_flags {
    uint64_t limit;           /* --mem; 0: a rank's share of its node */
    const char *scratch;      /* --scratch; NULL: none. Borrowed */
    int64_t replicas, stages; /* 0: chosen */
    recompute_wish recompute;
    bool report; /* --report: look at what passes, and write a report at the end */
} run_flags;

/* Local. Fails with ERR_USAGE. */
err run_flags_read(const options *o, run_flags *out);

#endif
