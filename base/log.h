/* log - lines for people on stderr. Rank 0 speaks; other ranks only warn, with their number in
 * front. Not the result of a command (stdout) and not the machine's log (io/events.h). */
#ifndef SPINSHARD_BASE_LOG_H
#define SPINSHARD_BASE_LOG_H

#include "base/err.h"

/* How often a thing happens: once a run, once a phase, once a unit of work. */
typedef enum log_level { LOG_ERROR, LOG_WARN, LOG_RUN, LOG_PHASE, LOG_STEP } log_level;

void log_set_rank(int rank);         /* local; 0 until told */
void log_set_level(log_level level); /* local; LOG_PHASE until told */

/* Local. One line, written with one system call. Ranks above 0 are silent from LOG_RUN on. */
void log_line(log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Root only. Progress of a phase and the time left at its pace so far: on a terminal one line
 * redrawn, else one line a minute. done == total ends it. */
void log_progress(const char *phase, long done, long total);

/* Local. The one message of a failed run. */
void log_failure(const err *e);

#endif
