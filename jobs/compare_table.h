/* compare_table - what compare found, as a table or JSON on stdout and as a page. Not the finding
 * (jobs/compare.h). */
#ifndef SPINSHARD_JOBS_COMPARE_TABLE_H
#define SPINSHARD_JOBS_COMPARE_TABLE_H

#include "base/err.h"
#include "base/json.h"
#include "jobs/setup/options.h"

/* Local. The table, or with --json the rows, on stdout; DIR/report.html of the rows that have a
 * report. results: [{"name", "eval": as eval --json prints, "report": as report --json, "runtimes":
 * [names]} or {"name", "refused": why, "where"}], the model as it is first. Fails as writing does.
 */
err compare_write(const char *dir, const json_t *results, const options *o);

#endif
