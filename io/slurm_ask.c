/* A job that waits in the queue (again) has no process. An id that Slurm no longer knows is of a
 * job that ended; any other failure of squeue says nothing. */
#include "io/slurm_ask.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

/* Ids go into a command line: digits alone, or array tasks and parts of jobs (12_3, 12+1). */
static bool is_id(const char *s) {
    return *s && strlen(s) < 32 && strspn(s, "0123456789_+") == strlen(s);
}

slurm_word slurm_ask(const char *job, const char *step) {
    char command[160], text[256], part[40] = "";
    if (!is_id(job) || (*step && !is_id(step))) return SLURM_SILENT;
    if (*step) snprintf(part, sizeof part, ".%s", step);
    snprintf(command, sizeof command, "timeout 10 squeue -h -j %s -o %%T 2>&1", job);
    if (*step)
        snprintf(command, sizeof command, "timeout 10 squeue -h -s %s%s -o %%i 2>&1", job, part);
    FILE *f = popen(command, "r");
    if (!f) return SLURM_SILENT;
    const size_t n = fread(text, 1, sizeof text - 1, f);
    const int status = pclose(f);
    text[n] = 0;
    if (strstr(text, "Invalid job id") || strstr(text, "Invalid job step")) return SLURM_GONE;
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) return SLURM_SILENT;
    if (*step) return strstr(text, part) ? SLURM_THERE : SLURM_GONE;
    return !*text || strstr(text, "PENDING") || strstr(text, "REQUEUE") ? SLURM_GONE : SLURM_THERE;
}

/* Of Slurm itself, once: no process changes its cluster. */
static void ask_cluster(char name[64]) {
    char line[512];
    FILE *f = popen("timeout 10 scontrol show config 2>/dev/null", "r");
    while (f &&
           fgets(line, sizeof line, f)) /* to its end: scontrol is not to die of a closed pipe */
        (void)sscanf(line, "ClusterName = %63s", name);
    if (f) pclose(f);
}

void slurm_cluster(char name[64]) {
    static char said[64];
    static bool asked;
    const char *known = getenv("SLURM_CLUSTER_NAME");
    if ((!known || !*known) && !asked) ask_cluster(said);
    asked = true;
    snprintf(name, 64, "%s", known && *known ? known : said);
}
