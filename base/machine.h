/* machine - what this process may use of the node: cores, memory, and the name of the CPU.
 * The one door to hwloc. Not a scheduler: it binds nothing. Asked once at the start of a run. */
#ifndef SPINSHARD_BASE_MACHINE_H
#define SPINSHARD_BASE_MACHINE_H

#include <stddef.h>
#include <stdint.h>

/* Local. Cores that the affinity mask and the cgroup's CPU quota leave to this process: physical
 * cores, not hardware threads; at least 1. */
int machine_cores(void);

/* Local. A number that is the same for processes of one node that may use the same cores: ranks
 * with equal keys share them. */
uint64_t machine_affinity_key(void);

/* Local. Memory nodes that those cores touch, at least 1. */
int machine_numa_nodes(void);

/* Local. Bytes of memory of the node, without swap, or the least limit of its cgroup (of either
 * version, also one of a group above) or what Slurm gave the job there (SLURM_MEM_PER_NODE,
 * SLURM_MEM_PER_CPU), where that is less. */
uint64_t machine_memory_bytes(void);

/* What this process has taken since it began: bytes by calls that read and write, of files and
 * sockets, from the page cache too; seconds of all its threads. 0 where the system does not tell.
 */
typedef struct machine_use {
    uint64_t read_bytes, written_bytes;
    double cpu_s;
} machine_use;
void machine_used(machine_use *out); /* local */

/* Local. Name of the CPU as its maker gives it; "unknown" where it gives none. Writes into buf and
 * returns it. */
const char *machine_cpu_name(char *buf, size_t size);

#endif
