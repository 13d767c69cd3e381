/* quantize_calib - calibration text of a run: windows of tokens on every rank. */
#ifndef SPINSHARD_JOBS_RUN_QUANTIZE_CALIB_H
#define SPINSHARD_JOBS_RUN_QUANTIZE_CALIB_H

#include "jobs/run/quantize_run.h"

/* Root only. The tokenizer, where a text will be tokenized: fails as source_tokenizer does, with
 * the way around it. Where none will be, what is wrong with it is said. */
err quantize_check_tokenizer(const quantize_run *q);

/* Local. Refuses flags that give no calibration text to a recipe that needs one, or two. Fails with
 * ERR_USAGE. */
err quantize_check_calibration(const options *o, const settings *s);

/* Collective on q->c. Read --calib or --calib-ids into q->calib_ids. */
err quantize_read_calibration(quantize_run *q);

#endif
