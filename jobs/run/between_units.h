/* between_units - what stands between two units of a phase whose results are not kept one by one:
 * windows of the capture, start points, scales, finished layers that the streams pass again. Who
 * waits for a run sees how far it is, and a stop that was asked for comes soon. Steps of learning,
 * layers of GPTQ and items commit between units, and have this within their loops. */
#ifndef SPINSHARD_JOBS_RUN_BETWEEN_UNITS_H
#define SPINSHARD_JOBS_RUN_BETWEEN_UNITS_H

#include "jobs/run/quantize_run.h"

/* Collective on c, which has rank 0 of the run; each of its ranks calls it after the same units.
 * Heart, log and events say that `done` of `total` units are done. ERR_STOPPED, the same on every
 * rank of c, where a stop was asked for before the last of them. */
err between_units(quantize_run *q, const comm *c, const char *phase, int64_t done, int64_t total);

#endif
