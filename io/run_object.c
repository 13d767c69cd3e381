/* A result is written to a name of its own and hashed on the way; finishing flushes it and renames
 * it to its hash, which makes it visible and final at once. */
#include "io/run_state.h"

#include "base/file.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct run_object {
    int fd;
    uint64_t bytes;
    char *dir, *aside;
};

static char *objects_dir(const char *out_dir) {
    char *dir;
    if (asprintf(&dir, "%s/run/objects", out_dir) < 0) abort();
    return dir;
}

bool run_object_is_name(const char *hex) {
    return strlen(hex) == SHA256_HEX - 1 && strspn(hex, "0123456789abcdef") == SHA256_HEX - 1;
}

char *run_object_path(const char *out_dir, const char *hex) {
    char *dir = objects_dir(out_dir), *path = file_join(dir, hex);
    free(dir);
    return path;
}

err run_object_create(const char *out_dir, uint64_t bytes, run_object **out) {
    static int serial; /* one thread writes objects */
    char host[64] = "";
    *out = NULL;
    gethostname(host, sizeof host - 1);
    run_object *o = calloc(1, sizeof *o);
    if (!o) abort();
    o->dir = objects_dir(out_dir);
    o->bytes = bytes;
    if (asprintf(&o->aside, "%s/%s.%ld.%d.new", o->dir, host, (long)getpid(), serial++) < 0)
        abort();
    err e = file_create(o->aside, &o->fd);
    if (e.code) {
        o->fd = -1;
        run_object_abandon(&o);
    }
    *out = o;
    return e;
}

static bool is_unfinished(const char *name) {
    const size_t n = strlen(name);
    return n > 4 && !strcmp(name + n - 4, ".new");
}

void run_objects_sweep(const char *out_dir, const json_t *names) {
    char *dir = objects_dir(out_dir);
    DIR *d = opendir(dir);
    for (struct dirent *f; d && (f = readdir(d));) {
        const bool nameless = run_object_is_name(f->d_name) && !json_object_get(names, f->d_name);
        if (nameless || is_unfinished(f->d_name)) unlinkat(dirfd(d), f->d_name, 0);
    }
    if (d) closedir(d);
    free(dir);
}

err run_object_put(run_object *o, const void *data, uint64_t n, uint64_t offset) {
    if (offset > o->bytes || n > o->bytes - offset)
        return err_make(ERR_BUG, o->aside, NULL, "write past the end of an object");
    return file_pwrite(o->fd, o->aside, data, n, offset);
}

err run_object_finish(run_object **o, char hex[SHA256_HEX]) {
    run_object *x = *o;
    err e = sha256_of_range(x->fd, x->aside, 0, x->bytes, hex);
    if (!e.code) e = file_sync(x->fd, x->aside);
    err c = file_close(x->fd, x->aside);
    x->fd = -1;
    if (!e.code) e = c;
    char *path = file_join(x->dir, hex);
    if (!e.code) e = file_rename(x->aside, path);
    if (!e.code) e = file_sync_dir(x->dir);
    free(path);
    if (e.code) {
        run_object_abandon(o);
        return e;
    }
    free(x->dir);
    free(x->aside);
    free(x);
    *o = NULL;
    return e;
}

void run_object_abandon(run_object **o) {
    if (!*o) return;
    if ((*o)->fd >= 0) close((*o)->fd);
    unlink((*o)->aside);
    free((*o)->dir);
    free((*o)->aside);
    free(*o);
    *o = NULL;
}

err run_object_write(const char *out_dir, const byte_piece *pieces, int n, char hex[SHA256_HEX]) {
    run_object *o;
    uint64_t at = 0;
    err e = run_object_create(out_dir, byte_pieces_total(pieces, n), &o);
    for (int i = 0; i < n && !e.code; i++) {
        e = run_object_put(o, pieces[i].p, pieces[i].n, at);
        at += pieces[i].n;
    }
    if (!e.code) e = run_object_finish(&o, hex);
    run_object_abandon(&o);
    return e;
}

/* Opens an object that has a name and this size; the caller frees *path and closes *fd. */
static err open_object(const char *out_dir, const char *hex, uint64_t bytes, char **path, int *fd) {
    uint64_t size;
    *path = NULL;
    *fd = -1;
    if (!run_object_is_name(hex))
        return err_make(ERR_MISMATCH, "state.json", NULL, "\"%.80s\" is not the name of an object",
                        hex);
    *path = run_object_path(out_dir, hex);
    err e = file_open_read(*path, fd, &size);
    if (!e.code && size != bytes)
        e = err_make(ERR_MISMATCH, *path, NULL, "%" PRIu64 " bytes instead of %" PRIu64, size,
                     bytes);
    return e;
}

/* Closes it; e, or where that is none ERR_MISMATCH if what was found is not its hash. */
static err close_object(err e, const char *hex, const char *found, char *path, int fd) {
    if (fd >= 0) close(fd);
    if (!e.code && strcmp(found, hex))
        e = err_make(ERR_MISMATCH, path, NULL, "contents do not have their hash");
    free(path);
    return e;
}

err run_object_check(const char *out_dir, const char *hex, uint64_t bytes) {
    char *path, found[SHA256_HEX];
    int fd;
    err e = open_object(out_dir, hex, bytes, &path, &fd);
    if (!e.code) e = sha256_of_range(fd, path, 0, bytes, found);
    return close_object(e, hex, found, path, fd);
}

/* One piece, hashed while it is still in the cache; `room` is for what nobody wants. */
static err read_piece(int fd, const char *path, const byte_piece *piece, uint64_t at, char *room,
                      uint64_t step, sha256 *hash) {
    err e = err_none();
    for (uint64_t done = 0; done < piece->n && !e.code; done += step) {
        const uint64_t take = piece->n - done < step ? piece->n - done : step;
        char *to = piece->p ? (char *)piece->p + done : room;
        e = file_pread(fd, path, to, take, at + done);
        if (!e.code) sha256_add(hash, to, take);
    }
    return e;
}

err run_object_read(const char *out_dir, const char *hex, const byte_piece *pieces, int n) {
    enum { STEP = 1 << 20 };
    char *path, found[SHA256_HEX], *room = malloc(STEP);
    int fd;
    uint64_t at = 0;
    if (!room) abort();
    err e = open_object(out_dir, hex, byte_pieces_total(pieces, n), &path, &fd);
    sha256 *hash = sha256_create();
    for (int i = 0; i < n && !e.code; i++) {
        e = read_piece(fd, path, &pieces[i], at, room, STEP, hash);
        at += pieces[i].n;
    }
    sha256_finish(&hash, found);
    free(room);
    return close_object(e, hex, found, path, fd);
}
