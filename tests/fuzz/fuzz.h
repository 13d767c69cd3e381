/* fuzz - what the fuzz targets share: an input as a file without a disk, and its parts.
 * A target is one parser, called as the program calls it; whatever bytes come, it must give a value
 * or an err, in time, within memory, and an accepted value must hold what its header promises. */
#ifndef SPINSHARD_TESTS_FUZZ_FUZZ_H
#define SPINSHARD_TESTS_FUZZ_FUZZ_H

#include "base/log.h"

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Local. An assumption of the target; not assert, which a release build leaves out. */
static inline void fuzz_need(int holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "fuzz: %s\n", what);
    abort();
}

/* Local. A file in memory with these bytes: its descriptor, the same in every call. Warnings about
 * inputs are switched off. */
static inline int fuzz_fd(const void *data, size_t size) {
    static int fd = -1;
    if (fd < 0) {
        fd = memfd_create("fuzz", MFD_CLOEXEC);
        log_set_level(LOG_ERROR);
    }
    fuzz_need(fd >= 0 && ftruncate(fd, 0) == 0 && pwrite(fd, data, size, 0) == (ssize_t)size,
              "no file in memory");
    return fd;
}

/* Local. The path of a file in memory that holds these bytes. */
static inline const char *fuzz_path(const void *data, size_t size) {
    static char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fuzz_fd(data, size));
    return path;
}

/* Local. Cut a text at each "\n%%\n": up to n parts, the last one takes the rest; returns how many.
 */
static inline int fuzz_parts(const uint8_t *data, size_t size, int n, const char **part,
                             size_t *len) {
    const char *at = (const char *)data, *end = at + size;
    int k = 0;
    for (; k < n - 1; k++) {
        const char *cut = memmem(at, (size_t)(end - at), "\n%%\n", 4);
        if (!cut) break;
        part[k] = at;
        len[k] = (size_t)(cut - at);
        at = cut + 4;
    }
    part[k] = at;
    len[k] = (size_t)(end - at);
    return k + 1;
}

#endif
