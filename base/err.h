/* err - the value a failing function returns: what failed, where, and what to do about it.
 * Not a logger and not an exception: leaves fill it and return; ranks agree on one
 * (mpi/comm.h, comm_agree); only main prints it. Used on every arrow of the way. */
#ifndef SPINSHARD_BASE_ERR_H
#define SPINSHARD_BASE_ERR_H

#include <stdbool.h>
#include <stdint.h>

/* The values are the exit codes of the program. */
typedef enum err_code {
    ERR_OK = 0,
    ERR_BUG = 1,      /* an assumption of ours failed */
    ERR_USAGE = 2,    /* wrong flag, key or value */
    ERR_INPUT = 3,    /* bad input, model or path */
    ERR_VERIFY = 4,   /* verification failed */
    ERR_SPACE = 5,    /* out of space or quota */
    ERR_NOFIT = 6,    /* does not fit in memory */
    ERR_MISMATCH = 7, /* run state does not match */
    ERR_NUMERICS = 8, /* computed: not finite, not orthogonal; NaN in a file is 3 */
    ERR_RANK = 9,     /* a rank was lost or hung */
    ERR_STOPPED = 75, /* stopped at a commit: run the same command again */
} err_code;

typedef struct err {
    int code;        /* err_code */
    int rank;        /* world rank that failed; -1 until ranks agree */
    bool of_system;  /* a call of the system failed: the same may succeed another time */
    char where[256]; /* file, tensor or step */
    char what[512];  /* what is wrong */
    char hint[320];  /* what to do; may be empty */
} err;

/* Local. The value of success. */
err err_none(void);

/* Local. A new error; `where` and `hint` may be NULL. Texts are cut to fit. */
err err_make(err_code code, const char *where, const char *hint, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* Local. An error from errno after a failed call on `path`: ENOSPC, EDQUOT and EFBIG give
 * ERR_SPACE, ENOMEM gives ERR_NOFIT, the rest ERR_INPUT. `doing` reads as in "cannot DOING:
 * reason". */
err err_errno(const char *path, const char *doing);

/* Of the parts of parallel work, the error of the first that failed: what is said then does not
 * depend on threads. A zero value is success. */
typedef struct err_first {
    int64_t at; /* which part */
    err e;
} err_first;

/* Local, from any thread. Note what became of part `at`. */
void err_note(err_first *f, int64_t at, err e);

/* Local. e with `where` put in front of its own where ("where: old"); success is returned as it is.
 */
err err_at(err e, const char *where);

#endif
