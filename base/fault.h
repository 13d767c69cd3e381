/* fault - failures on demand, for tests. SPINSHARD_FAULT=KIND:N[:RANK][:ACTION] makes the N-th call
 * (from 1) of fault_hit(KIND) on that rank fail with EIO, or ENOSPC for ACTION enospc, or raise
 * SIGKILL for ACTION kill, or for ACTION stop wait there for SIGCONT and then go on, so that a test
 * can act at a known place of the run, or for ACTION term get SIGTERM and go on. Kinds: open, read,
 * write, fsync, rename, close, unlink, mkdir; malloc (large buffers, base/mem.h); code, fuse, state
 * (a bit of a result is flipped, where the program must notice); commit; unit (between units of
 * any phase, jobs/run/stop.h). KIND "any" counts the calls of the file system alone. N may be
 * SEED/MOST: a number in 1..MOST drawn from the seed, so that a script samples by counting seeds.
 * Unset: one load and a branch. */
#ifndef SPINSHARD_BASE_FAULT_H
#define SPINSHARD_BASE_FAULT_H

#include <stdbool.h>

/* Local. True, with errno set, where the call must fail now. */
bool fault_hit(const char *kind);

/* Local. Tell the injector which rank this is; before that RANK matches nothing but absence. */
void fault_set_rank(int rank);

/* Local. Arm with a text of the form above in place of the environment's; counting starts anew. A
 * text that is not of the form disarms. */
void fault_arm(const char *spec);
bool fault_armed(void); /* local: the failure has not come yet */

#endif
