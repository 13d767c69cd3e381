/* event_table - events.jsonl of an output folder read back: all of it, or one kind of event by
 * layer. Not its writing (io/events.h). */
#ifndef SPINSHARD_JOBS_RUN_EVENT_TABLE_H
#define SPINSHARD_JOBS_RUN_EVENT_TABLE_H

#include "base/err.h"
#include "base/json.h"

#include <stdbool.h>
#include <stdint.h>

/* Which start of a run an event is of. A run that was taken over may go on writing for a while:
 * what is of an older slice than the newest is its late word. But slices may begin again, where
 * somebody removed the state of the run: a start says `plan` and `run` once and first. Begins as
 * {0}. */
typedef struct event_start {
    int64_t slice;
    bool any, plan, run; /* what the start at hand said */
} event_start;

typedef enum event_place { EVENT_LATE, EVENT_OF_START, EVENT_BEGINS_START } event_place;

/* Local. Events in the order of the file. */
event_place event_start_take(event_start *s, const json_t *event);

/* Local. Every event of an output folder in the order of the file, [] where there is none; a line
 * that a crash cut is left out, and so are late words. Caller owns *out. Fails with ERR_INPUT where
 * the file cannot be read. */
err event_table_all(const char *out_dir, json_t **out);

/* Local. The newest event of that name of each layer, by rising layer. As event_table_all. */
err event_table_read(const char *out_dir, const char *event, json_t **out);

/* Local. That list from events that have been read, by the number that `key` names ("layer"); new
 * reference. */
json_t *event_table_by(const json_t *events, const char *event, const char *key);

#endif
