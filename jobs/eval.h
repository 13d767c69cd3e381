/* eval - the command: perplexity of texts and accuracy of tasks. */
#ifndef SPINSHARD_JOBS_EVAL_H
#define SPINSHARD_JOBS_EVAL_H

#include "base/err.h"
#include "jobs/setup/options.h"
#include "mpi/comm.h"

/* Results go to stdout (one JSON object with --json), the log to stderr. */
err job_eval(const comm *c, const options *o); /* collective on c */

#endif
