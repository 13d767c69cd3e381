/* events - OUT/events.jsonl: one JSON object a line for machines, appended over restarts.
 * Not the log for people (base/log.h). Written by the root rank only. */
#ifndef SPINSHARD_IO_EVENTS_H
#define SPINSHARD_IO_EVENTS_H

#include "base/err.h"
#include "base/json.h"

typedef struct events events;

/* Root only. Open for appending; slice: how many times this run was restarted. A line that a crash
 * left unfinished is ended first. Caller owns *out. */
err events_open(const char *path, int slice, events **out);
void events_close(events **ev); /* local; NULL is fine; sets NULL */

/* Root only. Append {"t": s since this start, "wall": ISO time, "slice", "phase", "event",
 * ...more}. Takes over `more` (an object, or NULL). A failed write is a warning, once: the log of a
 * run is never worth the run. ev NULL: does nothing, so ranks without one may call. */
void events_add(events *ev, const char *phase, const char *event, json_t *more);

#endif
