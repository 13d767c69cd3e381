/* quantize_calib - calibration text of a run: windows of tokens on every rank. */
#ifndef SPINSHARD_JOBS_RUN_QUANTIZE_CALIB_H
#define SPINSHARD_JOBS_RUN_QUANTIZE_CALIB_H

#include "jobs/run/quantize_run.h"

/* Collective on q->c. Read --calib or --calib-ids into q->calib_ids. */
err quantize_read_calibration(quantize_run *q);

#endif
