/* The Slurm script of a plan. It stops at a commit before the end of its time or when it is
 * preempted, and goes on in the next slice of the job: quantize says so by exit code 75. */
#include "jobs/planning/plan_script.h"

#include "base/file.h"
#include "base/sha256.h"
#include "base/size.h"
#include "job_script.h"

#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Text that grows. */
typedef struct script {
    char *text;
    size_t len;
} script;

__attribute__((format(printf, 2, 3))) static void add(script *s, const char *fmt, ...) {
    va_list args;
    char *line = NULL;
    va_start(args, fmt);
    const int n = vasprintf(&line, fmt, args);
    va_end(args);
    if (n < 0 || !(s->text = realloc(s->text, s->len + (size_t)n + 1))) abort();
    memcpy(s->text + s->len, line, (size_t)n + 1);
    s->len += (size_t)n;
    free(line);
}

/* A word of a shell command. */
static void add_word(script *s, const char *word) {
    add(s, "'");
    for (; *word; word++) add(s, *word == '\'' ? "'\\''" : "%c", *word);
    add(s, "'");
}

/* Files are named in full: the job may start elsewhere. What is no file (a built-in recipe) stays.
 */
static void add_path(script *s, const char *path) {
    char *real = realpath(path, NULL), *cwd = NULL;
    if (real) {
        add_word(s, real);
    } else if (path[0] == '/' || !(cwd = getcwd(NULL, 0))) {
        add_word(s, path);
    } else {
        char *full = file_join(cwd, path);
        add_word(s, full);
        free(full);
    }
    free(real);
    free(cwd);
}

static void add_time(script *s, double seconds) {
    char text[32];
    add(s, "#SBATCH --time=%s\n", size_seconds_text(seconds, text));
}

/* What differs from site to site. */
static void add_site(script *s, const options *o) {
    static const struct {
        option opt;
        const char *flag;
    } flags[] = {{OPT_PARTITION, "--partition"},
                 {OPT_ACCOUNT, "--account"},
                 {OPT_QOS, "--qos"},
                 {OPT_MAIL_USER, "--mail-type=END,FAIL --mail-user"}};
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        if (options_has(o, flags[i].opt))
            add(s, "#SBATCH %s=%s\n", flags[i].flag, options_str(o, flags[i].opt));
    for (int i = 0; i < o->n_values[OPT_SBATCH]; i++)
        add(s, "#SBATCH %s\n", o->values[OPT_SBATCH][i]);
}

/* Run by hand, before anything else is done: jobs that follow each other however they end. */
static void add_chain(script *s, const plan_job *job) {
    if (!job->chain) return;
    add(s,
        "\n# Not with sbatch, but by hand (bash): it submits itself %" PRId64 " times.\n"
        "chain=%" PRId64 "\n"
        "if [ -z \"${SLURM_JOB_ID:-}\" ]; then\n"
        "    after=()\n"
        "    for ((link = 1; link <= chain; link++)); do\n"
        "        id=$(sbatch --parsable \"${after[@]}\" --export=\"ALL,SPINSHARD_LINK=$link\" "
        "\"$0\") || exit\n"
        "        echo \"${id%%%%;*}: job $link of $chain\"\n"
        "        after=(\"--dependency=afterany:${id%%%%;*}\")\n"
        "    done\n"
        "    exit\n"
        "fi\n",
        job->chain, job->chain);
}

/* Modules set variables that nobody declared: before set -u. */
static err add_prologue(script *s, const options *o) {
    enum { MOST = 1 << 16 };
    const char *path = options_str(o, OPT_PROLOGUE);
    char *text;
    size_t len;
    if (!path) return err_none();
    err e = file_read_all(path, MOST, &text, &len);
    if (e.code) return e;
    add(s, "\n%.*s%s\n", (int)len, text, len && text[len - 1] == '\n' ? "" : "\n");
    free(text);
    return e;
}

static void add_head(script *s, const run_plan *p, const plan_job *job) {
    const plan_place *at = &p->place;
    const double need = (double)memory_plan_total(&plan_largest(p)->memory) * at->ranks_per_node;
    char low[32], text[32];
    add(s,
        "#!/bin/bash\n"
        "# %s. The plan: %.1f minutes, up to %.1f; %s on the largest rank, "
        "%s a node.\n",
        job->chain ? "Start with bash" : "Submit with sbatch", plan_seconds(p) / 60,
        plan_seconds(p) * p->rates.spread / 60,
        size_text(memory_plan_total(&plan_largest(p)->memory), low),
        size_text((uint64_t)need, text));
    add(s, "#SBATCH --job-name=%s\n#SBATCH --nodes=%d\n#SBATCH --ntasks-per-node=%d\n", job->name,
        at->nodes, at->ranks_per_node);
    add(s, "#SBATCH --cpus-per-task=%d\n", (int)fmax(1, floor(at->cores_per_rank)));
    add(s, "#SBATCH --mem=0\n"); /* all of the node, which is taken whole */
    if (job->limit_s > 0) add_time(s, job->limit_s);
    add(s, "#SBATCH --signal=B:USR1@%" PRId64 "\n", (int64_t)job->lead_s);
    add(s, "#SBATCH --requeue\n"
           "#SBATCH --open-mode=append\n"
           "#SBATCH --exclusive\n"
           "#SBATCH --hint=nomultithread\n"
           "#SBATCH --output=spinshard-%%j.log\n");
    add_site(s, job->o);
}

static void add_environment(script *s, const run_plan *p) {
    const int threads = (int)fmax(1, floor(p->place.cores_per_rank));
    add(s,
        "# One rank on each NUMA domain, its threads on the cores there.\n"
        "export OMP_NUM_THREADS=%d OMP_PLACES=cores OMP_PROC_BIND=close\n"
        "export SRUN_CPUS_PER_TASK=%d # srun does not take it from sbatch\n",
        threads, threads);
    add(s, "# Kernels of BLAS: OpenBLAS picks slow ones on CPUs younger than itself, and the same "
           "bytes\n# need the same kernels on all nodes.\nunset OPENBLAS_L2_SIZE\n");
    if (p->rates.blas[0])
        add(s, "export OPENBLAS_CORETYPE=%s\n\n", p->rates.blas);
    else
        add(s, "unset OPENBLAS_CORETYPE\n\n");
}

/* The flags that say the same to quantize as to plan. */
static void add_command(script *s, const plan_job *job) {
    static const struct {
        option opt;
        const char *flag;
        bool path;
    } passed[] = {{OPT_MODEL, "--model", true},
                  {OPT_RECIPE, "--recipe", false},
                  {OPT_SET, "--set", false},
                  {OPT_SEED, "--seed", false},
                  {OPT_CALIB, "--calib", true},
                  {OPT_CALIB_MIX, "--calib-mix", false},
                  {OPT_CALIB_IDS, "--calib-ids", true},
                  {OPT_MEM, "--mem", false},
                  {OPT_SCRATCH, "--scratch", true},
                  {OPT_REPLICAS, "--replicas", false},
                  {OPT_STAGES, "--stages", false},
                  {OPT_RECOMPUTE, "--recompute", false}};
    add(s, "quantize=(\"$spinshard\" quantize --out \"$out\"");
    for (size_t i = 0; i < sizeof passed / sizeof *passed; i++)
        for (int k = 0; k < job->o->n_values[passed[i].opt]; k++) {
            const char *value = job->o->values[passed[i].opt][k];
            const bool file = passed[i].path || (passed[i].opt == OPT_RECIPE &&
                                                 (strchr(value, '/') || file_exists(value)));
            add(s, " \\\n    %s ", passed[i].flag);
            (file ? add_path : add_word)(s, value);
        }
    if (job->limit_s > 0) add(s, " \\\n    --stop-before %" PRId64 "s", (int64_t)job->lead_s);
    add(s, ")\n\n");
}

/* The last line of a script: whether it was edited since. */
static const char SEAL[] = "# as `spinshard plan` wrote it: ";

static err check_seal(const char *path) {
    enum { MOST = 1 << 20 };
    char *text, hex[SHA256_HEX];
    size_t len;
    if (!file_exists(path)) return err_none();
    err e = file_read_all(path, MOST, &text, &len);
    if (e.code) return e;
    const size_t tail = strlen(SEAL) + SHA256_HEX; /* with its line's end in place of the NUL */
    bool same = len > tail && !strncmp(text + len - tail, SEAL, strlen(SEAL));
    if (same) {
        sha256_of(text, len - tail, hex);
        same = !strncmp(hex, text + len - SHA256_HEX, SHA256_HEX - 1);
    }
    free(text);
    if (same) return e;
    return err_make(ERR_USAGE, path, "name another file, or replace it with --force",
                    "is there and was edited, or is not a script of plan");
}

/* One line of a script each. */
static err check_lines(const options *o) {
    static const option lines[] = {OPT_PARTITION, OPT_ACCOUNT, OPT_QOS, OPT_MAIL_USER, OPT_SBATCH};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        for (int k = 0; k < o->n_values[lines[i]]; k++)
            if (strpbrk(o->values[lines[i]][k], "\r\n"))
                return err_make(ERR_USAGE, o->values[lines[i]][k], "give one flag at a time",
                                "has more than one line");
    for (int k = 0; k < o->n_values[OPT_SBATCH]; k++)
        if (o->values[OPT_SBATCH][k][0] != '-')
            return err_make(ERR_USAGE, "--sbatch", "as in --sbatch '--constraint=genoa'",
                            "\"%s\" is not a flag of sbatch", o->values[OPT_SBATCH][k]);
    return err_none();
}

err plan_check_job(const plan_job *job) {
    static const option files[] = {OPT_CALIB, OPT_CALIB_IDS, OPT_PROLOGUE};
    const options *o = job->o;
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        for (int k = 0; k < o->n_values[files[i]]; k++)
            if (!file_exists(o->values[files[i]][k]))
                return err_make(ERR_INPUT, o->values[files[i]][k], "check the path",
                                "there is no such file");
    }
    char *manifest = file_join(job->out, "manifest.json");
    const bool complete = file_exists(manifest);
    free(manifest);
    if (complete)
        return err_make(ERR_USAGE, job->out, "choose another --out", "holds a complete archive");
    return check_lines(o);
}

err plan_write_script(const char *path, const run_plan *p, const plan_job *job) {
    script s = {.len = 0};
    char self[PATH_MAX];
    const ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0) return err_errno("/proc/self/exe", "find the program");
    self[n] = 0;
    add_head(&s, p, job);
    add_chain(&s, job);
    err e = add_prologue(&s, job->o);
    if (e.code) {
        free(s.text);
        return e;
    }
    add(&s, "set -u\n\n");
    add_environment(&s, p);
    add(&s, "spinshard=");
    add_word(&s, self);
    add(&s, "\nout=");
    add_path(&s, job->out);
    add(&s, "\n");
    add_command(&s, job);
    add(&s, "%s", job_script_text);
    char hex[SHA256_HEX];
    sha256_of(s.text, s.len, hex);
    add(&s, "%s%s\n", SEAL, hex);
    if (!options_has(job->o, OPT_FORCE)) e = check_seal(path);
    if (!e.code) e = file_publish(path, s.text, s.len);
    free(s.text);
    return e;
}
