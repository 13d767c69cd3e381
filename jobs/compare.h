/* compare - the command: several recipes on one model. Each is a `quantize` and an `eval` of its
 * archive against the model; one table, one page. Not what a run did (jobs/report.h). */
#ifndef SPINSHARD_JOBS_COMPARE_H
#define SPINSHARD_JOBS_COMPARE_H

#include "base/err.h"
#include "jobs/setup/options.h"
#include "mpi/comm.h"

/* Collective on c. OUT gets a folder and a file of results for each recipe, and report.html. What a
 * recipe cannot do on this model or machine stands in its row; other errors end the command, which
 * goes on from there when it is started again. ERR_MISMATCH where OUT holds results of another
 * model, text or setting. */
err job_compare(const comm *c, const options *o);

#endif
