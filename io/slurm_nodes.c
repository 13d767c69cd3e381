/* One line of sinfo for each kind of node of each partition: name (* behind the default one),
 * nodes, CPUs, MiB of memory (+ behind the least of several), longest time. */
#include "io/slurm_nodes.h"

#include "base/size.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

static void take(slurm_nodes *n, int64_t nodes, int64_t cpus, uint64_t mib, const char *limit,
                 int64_t want_cpus, uint64_t want_memory) {
    const uint64_t memory = mib << 20;
    const bool told = mib > 1; /* Slurm's 1 MiB: the site configured none */
    n->all += nodes;
    if (cpus >= want_cpus && (!told || memory >= want_memory)) n->enough += nodes;
    if (cpus > n->most_cpus) n->most_cpus = cpus;
    if (memory > n->most_memory) n->most_memory = memory;
    if (size_parse_slurm_seconds(limit, &n->limit_s).code) n->limit_s = 0; /* "infinite" */
}

slurm_word slurm_nodes_ask(const char *partition, int64_t cpus, uint64_t memory, slurm_nodes *out) {
    char line[256], name[64], limit[32];
    long long nodes, each, mib;
    bool any = false;
    *out = (slurm_nodes){.all = 0};
    if (partition) snprintf(out->partition, sizeof out->partition, "%s", partition);
    if (partition && strchr(partition, ',')) return SLURM_SILENT; /* sbatch takes a list */
    FILE *f = popen("timeout 10 sinfo -a -h -e -o '%P %D %c %m %l' 2>/dev/null", "r");
    if (!f) return SLURM_SILENT;
    while (fgets(line, sizeof line, f)) {
        if (sscanf(line, "%63s %lld %lld%*[+ ]%lld", name, &nodes, &each, &mib) != 4) continue;
        const char *last = strrchr(line, ' ');
        char *star = strchr(name, '*');
        any = true;
        if (star) *star = 0;
        if (partition ? strcmp(name, partition) != 0 : !star) continue;
        snprintf(out->partition, sizeof out->partition, "%s", name);
        snprintf(limit, sizeof limit, "%.*s", (int)strcspn(last + 1, "\n"), last + 1);
        take(out, nodes, each, (uint64_t)mib, limit, cpus, memory);
    }
    const int status = pclose(f);
    if (!any || !WIFEXITED(status) || WEXITSTATUS(status) != 0) return SLURM_SILENT;
    if (out->all) return SLURM_THERE;
    return partition ? SLURM_GONE : SLURM_SILENT;
}
