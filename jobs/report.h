/* report - the command: a page about a run, or its numbers. */
#ifndef SPINSHARD_JOBS_REPORT_H
#define SPINSHARD_JOBS_REPORT_H

#include "base/err.h"
#include "jobs/setup/options.h"
#include "mpi/comm.h"

/* Writes a page (--html, by default OUT/report.html) and the card with figures (--card), or prints
 * one JSON object (--json). */
err job_report(const comm *c, const options *o); /* local */

#endif
