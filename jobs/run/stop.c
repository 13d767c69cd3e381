/* Signal handlers set a flag; at commits ranks take the maximum of flag and clock, so all stop at
 * the same one. */
#include "jobs/run/stop.h"

#include "base/fault.h"
#include "base/size.h"

#include <signal.h>
#include <stdlib.h>
#include <time.h>

static volatile sig_atomic_t asked;
static double end_epoch_s; /* stop when the clock passes this; 0: never */

static void on_signal(int number) {
    (void)number;
    asked = 1;
}

err stop_setup(const char *before) {
    struct sigaction act = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&act.sa_mask);
    sigaction(SIGTERM, &act, NULL);
    sigaction(SIGUSR1, &act, NULL);
    sigaction(SIGXCPU, &act, NULL); /* the soft limit on CPU time; the hard one ends it */
    if (!before) return err_none();
    double seconds = 0;
    err e = size_parse_seconds(before, &seconds);
    if (e.code) return err_at(e, "--stop-before");
    const char *end = getenv("SLURM_JOB_END_TIME");
    if (!end)
        return err_make(ERR_USAGE, "--stop-before",
                        "in the job script: export SLURM_JOB_END_TIME=$(date -d \"$(squeue -h -j "
                        "$SLURM_JOB_ID -o %e)\" +%s)",
                        "the end of the job is not known: SLURM_JOB_END_TIME is not set");
    const double end_s = strtod(end, NULL);
    if (end_s > 0) end_epoch_s = end_s - seconds; /* 0: nobody knows */
    return e;
}

bool stop_agreed(const comm *c) {
    fault_hit("unit"); /* every phase comes here between its units */
    int64_t stop = asked || (end_epoch_s > 0 && (double)time(NULL) >= end_epoch_s);
    comm_max_i64(c, &stop, 1);
    return stop != 0;
}

err stop_error(const char *where) {
    return err_make(ERR_STOPPED, where, "run the same command again: it goes on from here",
                    "stopped at a commit as asked");
}
