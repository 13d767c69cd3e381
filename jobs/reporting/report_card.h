/* report_card - the model card of an archive with what was measured of it. The card within a tar
 * is written before anything can be measured, and hashed; this one takes its place where the folder
 * is published. Not the card itself (shard/small_files.h). */
#ifndef SPINSHARD_JOBS_REPORTING_REPORT_CARD_H
#define SPINSHARD_JOBS_REPORTING_REPORT_CARD_H

#include "base/json.h"

#include <stddef.h>

/* Local. `card`, a text, with a section "Figures" before its recipe: a table of perplexities and
 * one of tasks. evals: a list of what eval --json printed. Caller frees *out (free). */
void report_card(const char *card, const json_t *evals, char **out, size_t *len);

#endif
