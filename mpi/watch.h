/* watch - a thread on every rank that says once a second, by TCP and beside MPI, that its process
 * runs. A rank that was stopped, or whose node hangs, says nothing, and MPI would wait for it for
 * ever: the first rank names it and ends the run with ERR_RANK. How fast a rank works is not
 * looked at. Where ranks cannot reach the first one by TCP, they are not watched, and it is said.
 */
#ifndef SPINSHARD_MPI_WATCH_H
#define SPINSHARD_MPI_WATCH_H

#include "mpi/comm.h"

typedef struct watch watch;

/* Collective on c. A rank that says nothing for lost_s seconds ends the run; 0, or a world of one:
 * nobody is watched, *out NULL. Time in which the watching process was itself stopped does not
 * count: a job that is suspended whole goes on. Caller owns *out (watch_stop). */
err watch_start(const comm *c, double lost_s, watch **out);
void watch_stop(watch **w); /* local; before MPI ends; NULL is fine; sets NULL */

/* Local. What the ranks are at, for the message; a text that stays. */
void watch_phase(const char *phase);

#endif
