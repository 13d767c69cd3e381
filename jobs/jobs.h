/* jobs - the subcommands. Each takes its parsed options and returns what main turns into the exit
 * code. Results go to stdout (one JSON object with --json), the log to stderr. */
#ifndef SPINSHARD_JOBS_JOBS_H
#define SPINSHARD_JOBS_JOBS_H

#include "base/err.h"
#include "jobs/setup/options.h"
#include "mpi/comm.h"

err job_plan(const comm *c, const options *o);     /* root only; c has one rank */
err job_quantize(const comm *c, const options *o); /* collective on c */
err job_eval(const comm *c, const options *o);     /* collective on c */
err job_verify(const comm *c, const options *o);   /* collective on c */
err job_inspect(const comm *c, const options *o);  /* root only; c has one rank */
err job_status(const comm *c, const options *o);   /* root only; c has one rank */

#endif
