/* run_owner - one writer a run folder. The file `owner` is made with O_EXCL, which network file
 * systems keep, and holds host, pid, job and a heartbeat. Not a lock of the kernel: flock is not
 * reliable across nodes. */
#ifndef SPINSHARD_IO_RUN_OWNER_H
#define SPINSHARD_IO_RUN_OWNER_H

#include "base/err.h"

typedef struct run_owner run_owner;

/* Root only. Become the owner of run_dir. An owner that is surely dead is replaced: a pid of this
 * host that is gone, an earlier life of the same Slurm job, or no heartbeat for ten minutes. Else
 * ERR_MISMATCH, naming the owner. Caller owns *out (run_owner_give_back). */
err run_owner_take(const char *run_dir, run_owner **out);
void run_owner_give_back(run_owner **o); /* root only; NULL is fine; removes the file; sets NULL */
void run_owner_heartbeat(run_owner *o);  /* root only; cheap; at most one write a second */

/* Local. The owner in one line for people; empty where there is none. True where it may be alive:
 * not surely dead in the sense above. */
bool run_owner_describe(const char *run_dir, char text[256]);

#endif
