/* A partition may be named by other means than --partition (a flag of --sbatch, the site's choice),
 * so the default one is only a guess. */
#include "jobs/planning/plan_nodes.h"

#include "base/log.h"
#include "base/size.h"
#include "io/slurm_nodes.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

/* What the job asks for that the partition does not have; "" where it has all. */
static const char *missing(const run_plan *p, const plan_job *job, const slurm_nodes *n,
                           int64_t cpus, uint64_t memory, char text[400]) {
    char has[32], want[32], most[32];
    text[0] = 0;
    if (n->enough < p->place.nodes)
        snprintf(text, 400,
                 "partition %s has %" PRId64 " nodes with %" PRId64 " CPUs and %s, of %" PRId64
                 " (the largest: %" PRId64 " CPUs, %s); the plan takes %d",
                 n->partition, n->enough, cpus, size_text(memory, want), n->all, n->most_cpus,
                 size_text(n->most_memory, most), p->place.nodes);
    else if (n->limit_s > 0 && job->limit_s > n->limit_s)
        snprintf(text, 400, "jobs of partition %s end after %s, and --time is %s", n->partition,
                 size_seconds_text(n->limit_s, has), size_seconds_text(job->limit_s, want));
    return text;
}

err plan_check_nodes(const run_plan *p, const plan_job *job) {
    const plan_place *at = &p->place;
    const char *partition = options_str(job->o, OPT_PARTITION);
    const int64_t cpus = at->ranks_per_node * (int64_t)fmax(1, floor(at->cores_per_rank));
    const uint64_t memory =
        memory_plan_total(&plan_largest(p)->memory) * (uint64_t)at->ranks_per_node;
    slurm_nodes n;
    char text[400];
    switch (slurm_nodes_ask(partition, cpus, memory, &n)) {
    case SLURM_SILENT:
        return err_none();
    case SLURM_GONE:
        return err_make(ERR_USAGE, "--partition", "`sinfo -s` lists them",
                        "Slurm has no partition %s here", partition);
    case SLURM_THERE:
        break;
    }
    if (!*missing(p, job, &n, cpus, memory, text)) return err_none();
    if (partition)
        return err_make(ERR_NOFIT, "--partition",
                        "take another partition, other --nodes, --ranks-per-node or --time", "%s",
                        text);
    log_line(LOG_WARN, "%s; another partition: --partition", text);
    return err_none();
}
