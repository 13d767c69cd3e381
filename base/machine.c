/* Cores: the affinity mask as hwloc sees it, bounded by cpu.max of the control group and of each
 * group above. Memory: the least of the machine's and of memory.max and memory.high of those
 * groups.
 */
#include "base/machine.h"

#include <ctype.h>
#include <hwloc.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* What hwloc says of this process, asked once: the topology takes milliseconds to build. */
typedef struct machine {
    int cores, numa_nodes;
    uint64_t affinity_key;
    char cpu[128];
} machine;

static uint64_t fnv1a(const char *s) {
    uint64_t h = 14695981039346656037u;
    for (; *s; s++) h = (h ^ (unsigned char)*s) * 1099511628211u;
    return h;
}

/* Cores of which the mask holds at least one hardware thread. */
static int count_objects(hwloc_topology_t t, hwloc_const_bitmap_t set, hwloc_obj_type_t type) {
    int n = 0;
    for (hwloc_obj_t o = NULL; (o = hwloc_get_next_obj_by_type(t, type, o)) != NULL;) {
        if (o->cpuset && hwloc_bitmap_intersects(o->cpuset, set)) n++;
    }
    return n;
}

static void read_topology(machine *m) {
    hwloc_topology_t t;
    if (hwloc_topology_init(&t)) return;
    if (hwloc_topology_load(t) == 0) {
        hwloc_bitmap_t set = hwloc_bitmap_alloc();
        if (set && hwloc_get_cpubind(t, set, HWLOC_CPUBIND_PROCESS) != 0) {
            hwloc_bitmap_copy(set, hwloc_topology_get_allowed_cpuset(t));
        }
        if (set) {
            m->cores = count_objects(t, set, HWLOC_OBJ_CORE);
            m->numa_nodes = count_objects(t, set, HWLOC_OBJ_NUMANODE);
            char text[4096];
            hwloc_bitmap_snprintf(text, sizeof text, set);
            m->affinity_key = fnv1a(text);
        }
        hwloc_obj_t package = hwloc_get_obj_by_type(t, HWLOC_OBJ_PACKAGE, 0);
        const char *name = package ? hwloc_obj_get_info_by_name(package, "CPUModel") : NULL;
        snprintf(m->cpu, sizeof m->cpu, "%s", name && *name ? name : "unknown");
        hwloc_bitmap_free(set);
    }
    hwloc_topology_destroy(t);
}

static const machine *machine_get(void) {
    static machine m;
    static bool known;
    if (!known) {
        snprintf(m.cpu, sizeof m.cpu, "unknown");
        read_topology(&m);
        long online = sysconf(_SC_NPROCESSORS_ONLN);
        if (m.cores < 1) m.cores = online > 0 ? (int)online : 1;
        if (m.numa_nodes < 1) m.numa_nodes = 1;
        known = true;
    }
    return &m;
}

/* A file of the system below /proc or /sys that says what this process may have. For tests
 * SPINSHARD_TEST_ROOT is the folder that stands for the root. */
static FILE *open_limits(const char *path) {
    const char *root = getenv("SPINSHARD_TEST_ROOT");
    char text[2560];
    const int n = snprintf(text, sizeof text, "%s%s", root ? root : "", path);
    return n < (int)sizeof text ? fopen(text, "re") : NULL;
}

static bool read_line(const char *path, char *line, int size) {
    FILE *f = open_limits(path);
    if (!f) return false;
    bool got = fgets(line, size, f) != NULL;
    fclose(f);
    return got;
}

/* A controller of the older hierarchy is named between the colons of a line, among others
 * ("4:cpuset,memory:/path"); the unified one has none ("0::/path"). */
static const char *cgroup_path_of(char *line, const char *controller) {
    char *names = strchr(line, ':'), *path = names ? strchr(names + 1, ':') : NULL;
    if (!path) return NULL;
    *path++ = 0;
    path[strcspn(path, "\n")] = 0;
    if (!*controller) return names[1] ? NULL : path;
    for (char *rest, *name = strtok_r(names + 1, ",", &rest); name;
         name = strtok_r(NULL, ",", &rest))
        if (!strcmp(name, controller)) return path;
    return NULL;
}

/* The process's folder in a hierarchy; false where there is none. */
static bool cgroup_folder(const char *controller, char *folder, size_t size) {
    FILE *f = open_limits("/proc/self/cgroup");
    if (!f) return false;
    char line[2048];
    bool found = false;
    while (!found && fgets(line, sizeof line, f)) {
        const char *path = cgroup_path_of(line, controller);
        found = path && snprintf(folder, size, "/sys/fs/cgroup%s%s%s", *controller ? "/" : "",
                                 controller, path) < (int)size;
    }
    fclose(f);
    return found;
}

/* Calls f on `file` of the process's group and of each group above it: any of them can limit. */
static void each_cgroup_line(const char *controller, const char *file,
                             void (*f)(const char *line, void *arg), void *arg) {
    char folder[2200], path[2304], line[256];
    if (!cgroup_folder(controller, folder, sizeof folder)) return;
    for (;;) {
        snprintf(path, sizeof path, "%s/%s", folder, file);
        if (read_line(path, line, sizeof line)) f(line, arg);
        char *cut = strrchr(folder, '/');
        if (!cut || strlen(folder) <= strlen("/sys/fs/cgroup")) break;
        *cut = 0;
    }
}

/* cpu.max: "QUOTA PERIOD" in microseconds, or "max PERIOD". */
static void take_cpu_quota(const char *line, void *arg) {
    double *cores = arg, quota, period;
    if (sscanf(line, "%lf %lf", &quota, &period) == 2 && period > 0 && quota / period < *cores) {
        *cores = quota / period;
    }
}

static void take_memory_limit(const char *line, void *arg) {
    uint64_t *limit = arg, v;
    if (isdigit((unsigned char)*line) && sscanf(line, "%" SCNu64, &v) == 1 && v < *limit)
        *limit = v;
}

int machine_cores(void) {
    double cores = machine_get()->cores;
    each_cgroup_line("", "cpu.max", take_cpu_quota, &cores);
    return cores < 1 ? 1 : (int)cores;
}

int machine_numa_nodes(void) {
    return machine_get()->numa_nodes;
}

uint64_t machine_affinity_key(void) {
    return machine_get()->affinity_key;
}

/* A count of MiB, 0 where it is not said: Slurm's 0 is all that the node has. */
static uint64_t env_number(const char *name) {
    const char *text = getenv(name);
    char *end;
    const unsigned long long n = text ? strtoull(text, &end, 10) : 0;
    return text && isdigit((unsigned char)*text) && !*end && n < UINT32_MAX ? n : 0;
}

/* What the job was given of the node, where Slurm holds it to that by watching and not by a group.
 */
static uint64_t slurm_memory_bytes(void) {
    const uint64_t node = env_number("SLURM_MEM_PER_NODE"), cpu = env_number("SLURM_MEM_PER_CPU"),
                   mib = node ? node : cpu * env_number("SLURM_CPUS_ON_NODE");
    return mib ? mib << 20 : UINT64_MAX;
}

uint64_t machine_memory_bytes(void) {
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    uint64_t bytes = pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : UINT64_MAX;
    /* Beyond memory.high a group is not killed but slowed down, by as much as it takes. Swap is no
     * memory here: memory.swap.max and memory.memsw.limit_in_bytes only ever add to these. */
    each_cgroup_line("", "memory.max", take_memory_limit, &bytes);
    each_cgroup_line("", "memory.high", take_memory_limit, &bytes);
    each_cgroup_line("memory", "memory.limit_in_bytes", take_memory_limit, &bytes);
    const uint64_t given = slurm_memory_bytes();
    char line[256]; /* a container sees its own group at the top */
    if (read_line("/sys/fs/cgroup/memory/memory.limit_in_bytes", line, sizeof line)) {
        take_memory_limit(line, &bytes);
    }
    return given < bytes ? given : bytes;
}

const char *machine_cpu_name(char *buf, size_t size) {
    snprintf(buf, size, "%s", machine_get()->cpu);
    return buf;
}

static double seconds_of(struct timeval t) {
    return (double)t.tv_sec + 1e-6 * (double)t.tv_usec;
}

/* proc(5): rchar and wchar. */
void machine_used(machine_use *out) {
    struct rusage r;
    char line[64];
    *out = (machine_use){.cpu_s = 0};
    if (getrusage(RUSAGE_SELF, &r) == 0)
        out->cpu_s = seconds_of(r.ru_utime) + seconds_of(r.ru_stime);
    FILE *f = fopen("/proc/self/io", "re");
    while (f && fgets(line, sizeof line, f)) {
        sscanf(line, "rchar: %" SCNu64, &out->read_bytes);
        sscanf(line, "wchar: %" SCNu64, &out->written_bytes);
    }
    if (f) fclose(f);
}
