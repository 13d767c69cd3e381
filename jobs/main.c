/* main: words to a job, a job's error to the one message and the exit code. */
#include "base/gemm.h"
#include "base/log.h"
#include "base/machine.h"
#include "base/restart.h"
#include "jobs/eval.h"
#include "jobs/inspect.h"
#include "jobs/plan.h"
#include "jobs/quantize.h"
#include "jobs/setup/recipe.h"
#include "jobs/status.h"
#include "jobs/verify.h"
#include "mpi/comm.h"
#include "version.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef err (*job)(const comm *c, const options *o);

static const struct {
    job run;
    bool parallel;
} jobs[CMD_COUNT] = {
    [CMD_PLAN] = {job_plan, false},       [CMD_QUANTIZE] = {job_quantize, true},
    [CMD_EVAL] = {job_eval, true},        [CMD_VERIFY] = {job_verify, true},
    [CMD_INSPECT] = {job_inspect, false}, [CMD_STATUS] = {job_status, false},
};

static int print_version(void) {
    char kernels[256], slow[256], cpu[128];
    gemm_init(1);
    gemm_kernels(kernels, sizeof kernels);
    printf("spinshard %s (%s build)\n", SPINSHARD_VERSION, SPINSHARD_BUILD_TYPE);
    printf("compiler   %s, -march=%s\n", SPINSHARD_COMPILER, SPINSHARD_ARCH);
    printf("MPI        %s\n", comm_library());
    printf("ScaLAPACK  %s\n", SPINSHARD_SCALAPACK);
    printf("products   %s\n", kernels);
    printf("bf16       %s\n", gemm_has_bf16() ? "bf16 kernels" : "none on this CPU: run in fp32");
    printf("CPU        %s, %d cores for this process\n", machine_cpu_name(cpu, sizeof cpu),
           machine_cores());
    if (restart_said(slow, sizeof slow)) printf("kernels    %s\n", slow);
    if (gemm_slow_kernels(slow, sizeof slow)) printf("warning    %s\n", slow);
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

static int report(const err *e) {
    fflush(stdout);
    if (e->code && comm_rank(comm_world()) == 0) log_failure(e);
    return e->code;
}

int main(int argc, char **argv) {
    restart_tuned(argv);
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
    bool parallel = cmd == CMD_COUNT || jobs[cmd].parallel;
    if (parallel) e = comm_start(&argc, &argv);
    /* N worlds of one cannot agree on who speaks: each that sees it says so. */
    if (!e.code && cmd == CMD_COUNT) e = unknown_command(argv[1]);
    if (!e.code) e = run(cmd, argc - 2, argv + 2);
    int code = report(&e);
    comm_stop();
    return code;
}
