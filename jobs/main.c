/* main: words to a job, a job's error to the one message and the exit code. */
#include "base/gemm.h"
#include "base/log.h"
#include "base/machine.h"
#include "base/mem.h"
#include "base/restart.h"
#include "base/space.h"
#include "jobs/setup/options.h"
#include "jobs/setup/recipe.h"
#include "mpi/comm.h"
#include "version.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Each command's function, declared here from the table, so that a new one is a row there. */
#define JOB_OF(NAME, name, ...) err job_##name(const comm *c, const options *o);
COMMANDS(JOB_OF)

#define JOB_ROW(NAME, name, parallel, target, what) [CMD_##NAME] = {job_##name, parallel},
static const struct {
    err (*run)(const comm *c, const options *o);
    bool parallel;
} jobs[CMD_COUNT] = {COMMANDS(JOB_ROW)};

static int print_version(void) {
    char kernels[256], slow[256], slow_bf16[256], cpu[128];
    const bool slower = gemm_slow_bf16(slow_bf16, sizeof slow_bf16);
    gemm_init(1);
    gemm_kernels(kernels, sizeof kernels);
    printf("spinshard %s (%s build)\n", SPINSHARD_VERSION, SPINSHARD_BUILD_TYPE);
    printf("compiler   %s, -march=%s\n", SPINSHARD_COMPILER, SPINSHARD_ARCH);
    printf("MPI        %s\n", comm_library());
    printf("ScaLAPACK  %s\n", SPINSHARD_SCALAPACK);
    printf("products   %s\n", kernels);
    printf("bf16       %s\n", gemm_has_bf16() ? "bf16 kernels"
                              : slower        ? "in fp32"
                                              : "in fp32, the faster of the two here");
    printf("CPU        %s, %d cores for this process\n", machine_cpu_name(cpu, sizeof cpu),
           machine_cores());
    if (restart_said(slow, sizeof slow)) printf("kernels    %s\n", slow);
    if (gemm_slow_kernels(slow, sizeof slow)) printf("warning    %s\n", slow);
    if (slower) printf("warning    %s\n", slow_bf16);
    return ERR_OK;
}

static bool has_flag(int argc, char **argv, const char *flag) {
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], flag)) return true;
    return false;
}

static err unknown_command(const char *word) {
    char hint[128];
    snprintf(hint, sizeof hint, "did you mean %s? `spinshard --help` lists the commands",
             options_nearest_command(word));
    return err_make(ERR_USAGE, word, hint, "unknown command");
}

static void greet(void) {
    char kernels[256], slow[256];
    gemm_kernels(kernels, sizeof kernels);
    log_line(LOG_RUN, "spinshard %s: %d ranks (%d on this node), %d threads each; %s",
             SPINSHARD_VERSION, comm_size(comm_world()), comm_node_size(), gemm_threads(), kernels);
    if (restart_said(slow, sizeof slow)) log_line(LOG_RUN, "%s", slow);
    if (gemm_slow_kernels(slow, sizeof slow) && comm_rank(comm_world()) == 0)
        log_line(LOG_WARN, "%s", slow);
    if (gemm_slow_bf16(slow, sizeof slow) && comm_rank(comm_world()) == 0)
        log_line(LOG_WARN, "%s", slow);
}

static err run(command cmd, int argc, char **argv) {
    options *o = calloc(1, sizeof *o);
    if (!o) abort();
    err e = comm_agree(comm_world(), options_parse(cmd, argc, argv, o), "reading the flags", NULL);
    if (!e.code && options_has(o, OPT_QUIET)) log_set_level(LOG_WARN);
    if (!e.code) {
        gemm_init(comm_core_sharers());
        if (jobs[cmd].parallel) greet();
        e = jobs[cmd].run(comm_world(), o);
    }
    free(o);
    return e;
}

/* The result went to a full disk, or a pipe that nobody reads any more; the latter is their affair.
 */
static err flush_result(void) {
    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout)) return err_none();
    return errno == EPIPE || errno == 0 ? err_none() : err_errno("stdout", "write the result");
}

static int report(const err *e) {
    const err late = flush_result();
    if (!e->code && late.code) e = &late;
    if (e->code == ERR_STOPPED)
        log_line(LOG_RUN, "%s: %s; %s", e->where, e->what,
                 e->hint); /* no error: it was asked for */
    else if (e->code && comm_rank(comm_world()) == 0)
        log_failure(e);
    return e->code;
}

/* Memory that is a file (MPI's, between the ranks of a node) had no page behind it. */
static void on_bus_error(int number) {
    static const char text[] =
        "spinshard: error: memory that stands in a file has no room behind it, or was cut short\n"
        "  try: look at the space in /dev/shm and in the folder for temporary files\n";
    (void)number;
    (void)!write(STDERR_FILENO, text, sizeof text - 1);
    _exit(ERR_SPACE);
}

/* Small allocations are not worth an error value each: where one fails the program aborts. Whether
 * that was it shows by asking for more; a fault of the program goes on to its end. Threads may come
 * here together: the first one speaks and ends all. */
static void on_abort(int number) {
    static atomic_flag said = ATOMIC_FLAG_INIT;
    enum { PROBE = 128 << 20 };
    static const char text[] =
        "spinshard: error: memory: an allocation failed that the work cannot do without\n"
        "  try: use more ranks or nodes with more memory, or raise the limit (ulimit -v)\n";
    if (!space_fits(PROBE)) {
        while (atomic_flag_test_and_set(&said)) pause();
        (void)!write(STDERR_FILENO, text, sizeof text - 1);
        _exit(ERR_NOFIT);
    }
    signal(number, SIG_DFL);
    raise(number);
}

/* Limits of the system come as errors of calls, which say what failed, and not as signals. */
static void ask_for_errors(void) {
    signal(SIGXFSZ, SIG_IGN); /* EFBIG: a limit on the size of files */
    signal(SIGPIPE, SIG_IGN); /* EPIPE: who read the log or the result is gone; the work goes on */
    signal(SIGBUS, on_bus_error);
    signal(SIGABRT, on_abort);
}

/* Where a stream is closed, the next file that is opened would take its number, and what is written
 * to the stream would stand in that file: in a tar, say. */
static void fill_closed_streams(void) {
    int fd;
    do fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0) close(fd);
}

int main(int argc, char **argv) {
    fill_closed_streams();
    restart_tuned(argv);
    ask_for_errors();
    mem_start();
    if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "help")) {
        options_help(CMD_COUNT);
        return argc < 2 ? ERR_USAGE : ERR_OK;
    }
    if (!strcmp(argv[1], "--version")) return print_version();
    command cmd = options_command(argv[1]);
    if (cmd != CMD_COUNT && has_flag(argc, argv, "--help")) {
        options_help(cmd);
        if (cmd == CMD_PLAN || cmd == CMD_QUANTIZE || cmd == CMD_EVAL) recipe_help();
        return ERR_OK;
    }
    err e = err_none();
    bool parallel = cmd == CMD_COUNT || jobs[cmd].parallel ||
                    (cmd == CMD_PLAN && has_flag(argc, argv, "--measure")); /* the network too */
    if (parallel) e = comm_start(&argc, &argv);
    /* N worlds of one cannot agree on who speaks: each that sees it says so. */
    if (!e.code && cmd == CMD_COUNT) e = unknown_command(argv[1]);
    if (!e.code) e = run(cmd, argc - 2, argv + 2);
    int code = report(&e);
    comm_stop();
    return code;
}
