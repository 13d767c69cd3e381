/* event_table - events.jsonl of an output folder read back: all of it, or one kind of event by
 * layer. Not its writing (io/events.h). */
#ifndef SPINSHARD_JOBS_RUN_EVENT_TABLE_H
#define SPINSHARD_JOBS_RUN_EVENT_TABLE_H

#include "base/err.h"
#include "base/json.h"

/* Local. Every event of an output folder in the order of the file, [] where there is none; a line
 * that a crash cut is left out. Caller owns *out. Fails with ERR_INPUT where the file cannot be
 * read. */
err event_table_all(const char *out_dir, json_t **out);

/* Local. The newest event of that name of each layer, by rising layer. As event_table_all. */
err event_table_read(const char *out_dir, const char *event, json_t **out);

/* Local. That list from events that have been read, by the number that `key` names ("layer"); new
 * reference. */
json_t *event_table_by(const json_t *events, const char *event, const char *key);

#endif
