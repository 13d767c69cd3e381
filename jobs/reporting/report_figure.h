/* report_figure - a measured number with its error, as pages and cards say it. */
#ifndef SPINSHARD_JOBS_REPORTING_REPORT_FIGURE_H
#define SPINSHARD_JOBS_REPORTING_REPORT_FIGURE_H

#include "base/json.h"

#include <stdio.h>

/* Local. Of o the number `key`, times `times`, and where it is there "KEY_stderr" behind a plus and
 * minus, both to so many digits: "12.34 ± 0.56"; "-" where nothing was measured. */
void report_figure(FILE *f, const json_t *o, const char *key, double times, int digits);

#endif
