/* status - the command: how far a run is. */
#ifndef SPINSHARD_JOBS_STATUS_H
#define SPINSHARD_JOBS_STATUS_H

#include "base/err.h"
#include "jobs/setup/options.h"
#include "mpi/comm.h"

/* Results go to stdout (one JSON object with --json), the log to stderr. */
err job_status(const comm *c, const options *o); /* root only; c has one rank */

#endif
