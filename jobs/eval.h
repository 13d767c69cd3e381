/* eval - the command: perplexity of texts and accuracy of tasks. */
#ifndef SPINSHARD_JOBS_EVAL_H
#define SPINSHARD_JOBS_EVAL_H

#include "base/err.h"
#include "base/json.h"
#include "jobs/setup/options.h"
#include "mpi/comm.h"

/* Results go to stdout (one JSON object with --json), the log to stderr. */
err job_eval(const comm *c, const options *o); /* collective on c */

/* Collective on c. As job_eval, but what --json would print is given back: *told at root, where the
 * caller owns it (json_decref); NULL on the other ranks and after an error. told NULL: as job_eval.
 */
err eval_measure(const comm *c, const options *o, json_t **told);

#endif
