/* on_ranks - what the programs of tests/mpi share: start, end, and two kinds of checks: those that
 * are counted, after which all ranks go on together, and those in capitals, after which nothing
 * makes sense. For tests alone. */
#ifndef SPINSHARD_TESTS_MPI_ON_RANKS_H
#define SPINSHARD_TESTS_MPI_ON_RANKS_H

#include "base/log.h"
#include "mpi/comm.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

static int64_t failures; /* of this rank */

static inline void check(bool ok, const char *what) {
    if (ok) return;
    failures++;
    fprintf(stderr, "rank %d: failed: %s\n", comm_rank(comm_world()), what);
}

static inline void check_ok(err e, const char *what) {
    if (e.code) fprintf(stderr, "rank %d: %s: %s\n", comm_rank(comm_world()), e.where, e.what);
    check(!e.code, what);
}

static inline void must_hold(bool ok, const char *what, int line) {
    if (ok) return;
    fprintf(stderr, "rank %d, line %d: %s\n", comm_rank(comm_world()), line, what);
    comm_abort(1, "test failed");
}
#define CHECK(what) must_hold((what), #what, __LINE__)

static inline void must_work(err e, int line) {
    if (!e.code) return;
    fprintf(stderr, "line %d: ", line);
    log_failure(&e);
    comm_abort(1, "test failed");
}
#define OK(call) must_work((call), __LINE__)

/* Collective: the same code on every rank. */
static inline void must_agree(err e, err_code code, int line) {
    int64_t v[2] = {e.code, -(int64_t)e.code};
    comm_max_i64(comm_world(), v, 2);
    if (v[0] == code && v[1] == -(int64_t)code) return;
    fprintf(stderr, "line %d: rank %d has code %d (%s: %s), wanted %d\n", line,
            comm_rank(comm_world()), (int)e.code, e.where, e.what, (int)code);
    comm_abort(1, "test failed");
}
#define FAILS(call, code) must_agree((call), (code), __LINE__)

static inline const comm *ranks_start(int *argc, char ***argv) {
    OK(comm_start(argc, argv));
    return comm_world();
}

/* Under AddressSanitizer leaks are looked for while the plugins of MPI are still loaded: afterwards
 * nobody could tell its own, which tests/lsan.supp names, from ours. */
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/lsan_interface.h>
static inline void find_leaks(void) {
    __lsan_do_leak_check();
}
#else
static inline void find_leaks(void) {
}
#endif

/* Collective. The exit code: 1 where a check failed on any rank. */
static inline int ranks_end(void) {
    comm_sum_i64(comm_world(), &failures, 1);
    find_leaks();
    comm_stop();
    return failures ? 1 : 0;
}

#endif
