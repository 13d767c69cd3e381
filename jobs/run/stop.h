/* stop - polite ends: SIGTERM, SIGUSR1, SIGXCPU or the wall clock of the job ask for a stop at a
 * commit. Correctness never needs this: a kill at any instant is safe too; a stop only saves work.
 */
#ifndef SPINSHARD_JOBS_RUN_STOP_H
#define SPINSHARD_JOBS_RUN_STOP_H

#include "base/err.h"
#include "mpi/comm.h"

/* Local. Catch SIGTERM, SIGUSR1 and SIGXCPU. before: text of --stop-before or NULL; the job's end
 * is taken from SLURM_JOB_END_TIME. Fails with ERR_USAGE where that is not known. */
err stop_setup(const char *before);

/* Collective on c. True, on every rank alike, once a rank was asked to stop. */
bool stop_agreed(const comm *c);

/* Local. The error that ends a run at a commit: exit code 75. */
err stop_error(const char *where);

#endif
