/* plan - the command: what quantize will take on a cluster, from config.json and headers alone; and
 * a script for it. */
#ifndef SPINSHARD_JOBS_PLAN_H
#define SPINSHARD_JOBS_PLAN_H

#include "base/err.h"
#include "jobs/setup/options.h"
#include "mpi/comm.h"

/* Results go to stdout (one JSON object with --json), the log to stderr. */
err job_plan(const comm *c, const options *o); /* root only; c has one rank */

#endif
