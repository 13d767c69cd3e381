/* chart_series - numbers out of the JSON of a report as the lines of a chart, and one figure of
 * several lines. Stands between report_data and svg. */
#ifndef SPINSHARD_JOBS_REPORTING_CHART_SERIES_H
#define SPINSHARD_JOBS_REPORTING_CHART_SERIES_H

#include "base/json.h"
#include "jobs/reporting/svg.h"

#include <stdint.h>
#include <stdio.h>

typedef struct series {
    int64_t n;
    double *x, *y; /* owned; NAN where there is no number */
} series;

series series_of(int64_t n); /* local; zeros; caller clears */
void series_clear(series *s);

/* Local. Two numbers of each element of a list, y `times` over; evenly thinned to a few hundred,
 * with the last. Caller clears. */
series series_take(const json_t *list, const char *x, const char *y, double times);

/* Local. Over layers, the number `key` of element k of their list `list`, or of its part `part`
 * (NULL: its own), `times` over; layers without one are left out. Caller clears. */
series series_over_layers(const json_t *layers, const char *list, size_t k, const char *part,
                          const char *key, double times);

/* The unit of a kurtosis, wherever it is drawn. */
#define KURTOSIS "E x\u2074 / (E x\u00b2)\u00b2"

/* Local. A figure of n lines, at most SVG_SERIES, one alone without dashes; names NULL: a legend
 * stands elsewhere; nothing where none has a point. */
void chart_figure(FILE *f, const char *title, svg_axis x, svg_axis y, int n, const series *s,
                  const char *const *names);

#endif
