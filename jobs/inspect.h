/* inspect - the command: what is inside an archive, a model or a file of tensors. */
#ifndef SPINSHARD_JOBS_INSPECT_H
#define SPINSHARD_JOBS_INSPECT_H

#include "base/err.h"
#include "jobs/setup/options.h"
#include "mpi/comm.h"

/* Results go to stdout (one JSON object with --json), the log to stderr. */
err job_inspect(const comm *c, const options *o); /* root only; c has one rank */

#endif
