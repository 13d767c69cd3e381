/* run_owner - one writer a run folder. The file `owner` is made with O_EXCL, which network file
 * systems keep, and holds host, pid, job, a number drawn for this owner alone and a beat that a
 * thread counts up. Not a lock of the kernel: flock is not reliable across nodes. */
#ifndef SPINSHARD_IO_RUN_OWNER_H
#define SPINSHARD_IO_RUN_OWNER_H

#include "base/err.h"

typedef struct run_owner run_owner;

/* Root only. Become the owner of run_dir. An owner that is gone is replaced: a pid of this host
 * that is gone, an earlier life of the same Slurm job, a job or step of this cluster of which Slurm
 * lists nothing and that misses three beats (it may be hidden); where nobody knows, one whose beat
 * stands still for RUN_OWNER_QUIET_S by the clock of this host; or any owner with `take_over`:
 * somebody vouches for it. Else ERR_MISMATCH, naming the owner. Caller owns *out
 * (run_owner_give_back). */
enum { RUN_OWNER_QUIET_S = 60 };
err run_owner_take(const char *run_dir, bool take_over, run_owner **out);
void run_owner_give_back(run_owner **o); /* root only; NULL is fine; removes the file; sets NULL */

/* Root only. ERR_MISMATCH, naming the new owner, where the folder was taken over: whoever writes
 * asks first. */
err run_owner_check(run_owner *o);
void run_owner_heartbeat(run_owner *o); /* root only; cheap; at most one write a second */

/* Local. Watches the file; true where it is gone or its beat was seen not to move for so many
 * seconds. Seconds in which it could not be looked at do not count, and false where there were too
 * many. For tests. */
bool run_owner_is_quiet(const char *run_dir, double seconds);

/* Local. The owner in one line for people; empty where there is none. True where it may be alive:
 * it is not known to be gone in the sense above, and where nobody knows it is taken to be there. */
bool run_owner_describe(const char *run_dir, char text[256]);

#endif
