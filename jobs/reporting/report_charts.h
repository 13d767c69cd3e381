/* report_charts - the charts of a report, each a figure of the page, from the sections of
 * report_data's JSON. Long series are thinned: a chart has a few hundred pixels. */
#ifndef SPINSHARD_JOBS_REPORTING_REPORT_CHARTS_H
#define SPINSHARD_JOBS_REPORTING_REPORT_CHARTS_H

#include "base/json.h"

#include <stdio.h>

void chart_learning(FILE *f, const json_t *phase);   /* local; a phase with steps and held */
void chart_sites(FILE *f, const json_t *layers);     /* local; with headings, by kind of input */
void chart_noise(FILE *f, const json_t *layers);     /* local; one for each quantizer */
void chart_weights(FILE *f, const json_t *items);    /* local */
void chart_spreads(FILE *f, const json_t *items);    /* local; two for each linear */
void chart_gptq(FILE *f, const json_t *layers);      /* local; one for each linear */
void chart_gptq_rows(FILE *f, const json_t *layers); /* local; fallbacks and damping */
void chart_gptq_time(FILE *f, const json_t *layers); /* local */
void chart_starts(FILE *f, const json_t *spread); /* local; every run a point, by what it varies */
void chart_phases(FILE *f, const json_t *phases); /* local; a timeline */
void chart_memory(FILE *f, const json_t *phases); /* local; of each rank, where there are several */

#endif
