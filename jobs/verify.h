/* verify - the command: an archive against its hashes, what loaders demand, and its source. */
#ifndef SPINSHARD_JOBS_VERIFY_H
#define SPINSHARD_JOBS_VERIFY_H

#include "base/err.h"
#include "jobs/setup/options.h"
#include "mpi/comm.h"

/* Results go to stdout (one JSON object with --json), the log to stderr. */
err job_verify(const comm *c, const options *o); /* collective on c */

#endif
