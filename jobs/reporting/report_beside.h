/* report_beside - several runs of one model in one section: a table of what each took and gave, and
 * their curves in the same charts. Not the report of one run (report_page.h). */
#ifndef SPINSHARD_JOBS_REPORTING_REPORT_BESIDE_H
#define SPINSHARD_JOBS_REPORTING_REPORT_BESIDE_H

#include "base/json.h"
#include "jobs/reporting/svg.h"

#include <stdio.h>

enum {
    BESIDE_MOST = SVG_SERIES - 1
}; /* other runs with curves: lines that can be told apart without colour */

/* Local. The report of a run, with "beside": [reports] in it, of which the first BESIDE_MOST have
 * curves and all a row; nothing where it has none. */
void report_beside(FILE *f, const json_t *report);

/* Local. A number as a cell of a table of the page, "-" for NaN. */
void report_cell(FILE *f, const char *form, double v);

/* Local. A number of o with its standard error as such a cell, by report_figure. */
void report_figure_cell(FILE *f, const json_t *o, const char *key, double times, int digits);

#endif
