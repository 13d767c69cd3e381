/* report_page - the page of a report: report_data's JSON as one HTML file with charts, which needs
 * no network and no script. Not the collecting (report_data.h), not the drawing of a chart (svg.h).
 */
#ifndef SPINSHARD_JOBS_REPORTING_REPORT_PAGE_H
#define SPINSHARD_JOBS_REPORTING_REPORT_PAGE_H

#include "base/err.h"
#include "base/json.h"

/* Local. The text of the page; caller frees *text. */
void report_page(const json_t *report, char **text, size_t *len);

/* Local. Collect and write the page of an output folder to a file, whole or not at all. Fails as
 * report_collect, and as writing does. */
err report_write(const char *out_dir, const char *path);

#endif
