/* slurm_nodes - what Slurm says of the nodes of a partition, by its command sinfo. Nothing is
 * submitted or changed. */
#ifndef SPINSHARD_IO_SLURM_NODES_H
#define SPINSHARD_IO_SLURM_NODES_H

#include "io/slurm_ask.h"

#include <stdint.h>

typedef struct slurm_nodes {
    char partition[64];
    int64_t all, enough;  /* nodes; those with so many CPUs and so much memory as were asked for */
    int64_t most_cpus;    /* of a node */
    uint64_t most_memory; /* bytes of a node */
    double limit_s;       /* longest time of a job; 0: none */
} slurm_nodes;

/* Local. Of the partition, or where that is NULL of the default one; nodes that are down count, the
 * job may wait for them. SLURM_SILENT: no sinfo here, no answer, or no default; SLURM_GONE: there
 * is no such partition. Takes up to 10 s. */
slurm_word slurm_nodes_ask(const char *partition, int64_t cpus, uint64_t memory, slurm_nodes *out);

#endif
