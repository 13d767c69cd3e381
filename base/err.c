/* Plain values with fixed buffers, so that an error can be made where no memory is left. The first
 * error of several threads is the one of the lowest index, whoever came first. */
#include "base/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

err err_none(void) {
    err e = {.code = ERR_OK, .rank = -1};
    return e;
}

static void copy_text(char *to, size_t size, const char *from) {
    snprintf(to, size, "%s", from ? from : "");
}

err err_make(err_code code, const char *where, const char *hint, const char *fmt, ...) {
    err e = {.code = (int)code, .rank = -1};
    copy_text(e.where, sizeof e.where, where);
    copy_text(e.hint, sizeof e.hint, hint);
    va_list args;
    va_start(args, fmt);
    vsnprintf(e.what, sizeof e.what, fmt, args);
    va_end(args);
    return e;
}

err err_errno(const char *path, const char *doing) {
    int number = errno;
    err_code code = ERR_INPUT;
    const char *hint = "";
    if (number == ENOSPC || number == EDQUOT) {
        code = ERR_SPACE;
        hint = "free some space or choose another folder; the same command then goes on";
    } else if (number == EFBIG) {
        code = ERR_SPACE;
        hint = "raise the limit on the size of a file (ulimit -f); the same command then goes on";
    } else if (number == ENOMEM) {
        code = ERR_NOFIT;
        hint = "use more ranks or nodes with more memory";
    } else if (number == EMFILE) {
        hint = "raise the limit on open files (ulimit -n)";
    } else if (number == ENFILE) {
        hint = "the processes of this machine together have too many files open";
    } else if (number == EROFS || number == EACCES || number == EPERM) {
        hint = "check the permissions, or choose another folder";
    } else if (number == ENOENT) {
        hint = "check the path";
    } else if (number == EIO) {
        hint = "the disk or file system failed; the same command goes on once it works";
    }
    err e = err_make(code, path, hint, "cannot %s: %s", doing, strerror(number));
    e.of_system = true;
    return e;
}

err err_at(err e, const char *where) {
    if (!e.code) return e;
    char old[sizeof e.where];
    memcpy(old, e.where, sizeof old);
    int n = snprintf(e.where, sizeof e.where, old[0] ? "%s: %s" : "%s%s", where, old);
    (void)n; /* a cut text is still a text */
    return e;
}

void err_note(err_first *f, int64_t at, err e) {
    if (!e.code) return;
#pragma omp critical(err_first)
    if (!f->e.code || at < f->at) *f = (err_first){.at = at, .e = e};
}
