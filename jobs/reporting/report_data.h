/* report_data - what is known of a run, from the files of its output folder, as one JSON object:
 * what `report --json` prints and the page draws. Works on a run that goes on, was interrupted, or
 * is complete. Nothing is computed from weights. */
#ifndef SPINSHARD_JOBS_REPORTING_REPORT_DATA_H
#define SPINSHARD_JOBS_REPORTING_REPORT_DATA_H

#include "base/err.h"
#include "base/json.h"

/* Local. {"out", "state": complete, running or unfinished, "summary", "learning": [phases],
 * "sites": [layers], "noise": [layers], "weights": [{"item", "layer", "relative_error",
 * "linears"}], "gptq": [layers], "accuracy": [what eval --json printed], "run": {"phases",
 * "slices"}}; docs/FORMATS.md has the keys. evals [n_evals]: files that eval --json wrote. Caller
 * owns *out. Fails with ERR_INPUT where the folder is no output folder, or a file of evals is not
 * what eval prints. */
err report_collect(const char *out_dir, const char *const *evals, int n_evals, json_t **out);

#endif
