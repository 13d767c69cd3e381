/* Loops over pread and pwrite that go on after short transfers and interruptions. Publishing is:
 * write aside, fsync, rename, fsync of the folder. */
#include "base/file.h"

#include "base/fault.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* One system call moves at most this much, so that progress and signals are seen. */
enum { MAX_MOVE = 64 << 20 };

err file_open_read(const char *path, int *fd, uint64_t *bytes) {
    struct stat st;
    *fd = -1;
    int got = fault_hit("open") ? -1 : open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (got < 0) return err_errno(path, "open it");
    if (fstat(got, &st) != 0) {
        err e = err_errno(path, "stat it");
        close(got);
        return e;
    }
    if (!S_ISREG(st.st_mode)) {
        close(got);
        return err_make(ERR_INPUT, path, NULL, "not a regular file");
    }
    if (bytes) *bytes = (uint64_t)st.st_size;
    *fd = got;
    return err_none();
}

err file_pread(int fd, const char *path, void *to, uint64_t n, uint64_t offset) {
    char *p = to;
    while (n) {
        ssize_t got =
            fault_hit("read") ? -1 : pread(fd, p, n < MAX_MOVE ? n : MAX_MOVE, (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return err_errno(path, "read it");
        if (got == 0)
            return err_make(ERR_INPUT, path, "fetch the file again",
                            "the file ends %" PRIu64 " bytes too early", n);
        p += got;
        offset += (uint64_t)got;
        n -= (uint64_t)got;
    }
    return err_none();
}

err file_pwrite(int fd, const char *path, const void *from, uint64_t n, uint64_t offset) {
    const char *p = from;
    while (n) {
        ssize_t put =
            fault_hit("write") ? -1 : pwrite(fd, p, n < MAX_MOVE ? n : MAX_MOVE, (off_t)offset);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) return err_errno(path, "write it");
        p += put;
        offset += (uint64_t)put;
        n -= (uint64_t)put;
    }
    return err_none();
}

void file_begin_sync(int fd, uint64_t offset, uint64_t n) {
    /* A hint: where it cannot be taken, file_sync does it all. */
    (void)sync_file_range(fd, (off_t)offset, (off_t)n, SYNC_FILE_RANGE_WRITE);
}

err file_read_all(const char *path, uint64_t max_bytes, char **out, size_t *len) {
    int fd;
    uint64_t bytes = 0;
    *out = NULL;
    *len = 0;
    err e = file_open_read(path, &fd, &bytes);
    if (e.code) return e;
    char *text = NULL;
    if (bytes > max_bytes)
        e = err_make(ERR_INPUT, path, NULL, "%" PRIu64 " bytes; at most %" PRIu64 " are read",
                     bytes, max_bytes);
    else if (!(text = malloc(bytes + 1)))
        e = err_make(ERR_NOFIT, path, NULL, "no memory for %" PRIu64 " bytes", bytes);
    if (!e.code) e = file_pread(fd, path, text, bytes, 0);
    close(fd);
    if (e.code) {
        free(text);
        return e;
    }
    text[bytes] = 0;
    *out = text;
    *len = bytes;
    return e;
}

err file_create(const char *path, int *fd) {
    *fd = fault_hit("open") ? -1 : open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    return *fd < 0 ? err_errno(path, "create it") : err_none();
}

err file_sync(int fd, const char *path) {
    int rc = fault_hit("fsync") ? -1 : fsync(fd);
    return rc ? err_errno(path, "flush it to disk") : err_none();
}

err file_close(int fd, const char *path) {
    bool injected = fault_hit("close");
    int saved = errno, rc = close(fd);
    if (injected) {
        errno = saved;
        rc = -1;
    }
    return rc ? err_errno(path, "close it") : err_none();
}

err file_rename(const char *from, const char *to) {
    int rc = fault_hit("rename") ? -1 : rename(from, to);
    return rc ? err_errno(to, "rename to it") : err_none();
}

err file_sync_dir(const char *dir) {
    int fd = fault_hit("open") ? -1 : open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return err_errno(dir, "open the folder");
    err e = file_sync(fd, dir);
    close(fd);
    /* Some network file systems cannot sync a folder; the rename is then as safe as it gets. */
    if (e.code && (errno == EINVAL || errno == ENOTSUP)) e = err_none();
    return e;
}

const char *file_base_of(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static char *parent_of(const char *path) {
    const char *slash = strrchr(path, '/');
    if (!slash) return strdup(".");
    return strndup(path, slash == path ? 1 : (size_t)(slash - path));
}

err file_publish(const char *path, const void *data, size_t len) {
    char *aside = NULL, *dir = parent_of(path);
    if (asprintf(&aside, "%s.%ld.new", path, (long)getpid()) < 0 || !dir) abort();
    int fd;
    err e = file_create(aside, &fd);
    if (!e.code) {
        e = file_pwrite(fd, aside, data, len, 0);
        if (!e.code) e = file_sync(fd, aside);
        err c = file_close(fd, aside);
        if (!e.code) e = c;
    }
    if (!e.code) e = file_rename(aside, path);
    if (!e.code) e = file_sync_dir(dir);
    if (e.code) unlink(aside);
    free(aside);
    free(dir);
    return e;
}

err file_make_dirs(const char *path) {
    char *p = strdup(path);
    if (!p) abort();
    err e = err_none();
    for (char *s = p + 1;; s++) {
        if (*s && *s != '/') continue;
        char old = *s;
        *s = 0;
        if ((fault_hit("mkdir") || mkdir(p, 0755) != 0) && errno != EEXIST)
            e = err_errno(p, "make the folder");
        *s = old;
        if (!old || e.code) break;
    }
    struct stat st;
    if (!e.code && (stat(path, &st) != 0 || !S_ISDIR(st.st_mode)))
        e = err_make(ERR_INPUT, path, "give the path of a folder, or of one to be made",
                     "not a folder");
    free(p);
    return e;
}

bool file_exists(const char *path) {
    struct stat st;
    return lstat(path, &st) == 0;
}

err file_remove_tree(const char *path) {
    struct stat st;
    if (lstat(path, &st) != 0) return errno == ENOENT ? err_none() : err_errno(path, "remove it");
    if (!S_ISDIR(st.st_mode)) return unlink(path) ? err_errno(path, "remove it") : err_none();
    DIR *d = opendir(path);
    if (!d) return err_errno(path, "open the folder");
    err e = err_none();
    for (struct dirent *x; !e.code && (x = readdir(d));) {
        if (!strcmp(x->d_name, ".") || !strcmp(x->d_name, "..")) continue;
        char *child = file_join(path, x->d_name);
        e = file_remove_tree(child);
        free(child);
    }
    closedir(d);
    if (!e.code && rmdir(path) != 0) e = err_errno(path, "remove the folder");
    return e;
}

char *file_join(const char *dir, const char *name) {
    char *p = NULL;
    if (asprintf(&p, "%s/%s", dir, name) < 0) abort();
    return p;
}

bool file_is_base_name(const char *name) {
    return *name && !strchr(name, '/') && strcmp(name, ".") && strcmp(name, "..");
}
