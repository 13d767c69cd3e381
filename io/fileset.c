/* A sorted array of names with (file, offset, length). Rank 0 lists the folder and broadcasts the
 * list. */
#include "io/fileset.h"

#include "base/file.h"
#include "base/size.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct entry {
    char *name, *path;
    uint64_t offset, bytes;
} entry;

struct fileset {
    char *where;
    entry *entries; /* sorted by name */
    int count, room;
};

static err no_memory(const char *where) {
    return err_make(ERR_NOFIT, where, NULL, "no memory for the list of files");
}

err fileset_create(const char *where, fileset **out) {
    fileset *fs = calloc(1, sizeof *fs);
    *out = NULL;
    if (!fs || !(fs->where = strdup(where))) {
        free(fs);
        return no_memory(where);
    }
    *out = fs;
    return err_none();
}

void fileset_destroy(fileset **fs) {
    if (!*fs) return;
    for (int i = 0; i < (*fs)->count; i++) {
        free((*fs)->entries[i].name);
        free((*fs)->entries[i].path);
    }
    free((*fs)->entries);
    free((*fs)->where);
    free(*fs);
    *fs = NULL;
}

/* Index of the first entry whose name is not below `name`. */
static int place_of(const fileset *fs, const char *name) {
    int lo = 0, hi = fs->count;
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;
        if (strcmp(fs->entries[mid].name, name) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static const entry *find(const fileset *fs, const char *name) {
    int i = place_of(fs, name);
    return i < fs->count && !strcmp(fs->entries[i].name, name) ? &fs->entries[i] : NULL;
}

static err make_room(fileset *fs) {
    if (fs->count < fs->room) return err_none();
    int room = fs->room ? 2 * fs->room : 16;
    entry *more = realloc(fs->entries, (size_t)room * sizeof *more);
    if (!more) return no_memory(fs->where);
    fs->entries = more;
    fs->room = room;
    return err_none();
}

static bool is_known_name(const char *name) {
    const size_t n = strlen(FILESET_TEMPLATES "/");
    return file_is_base_name(strncmp(name, FILESET_TEMPLATES "/", n) ? name : name + n);
}

err fileset_add(fileset *fs, const char *name, const char *path, uint64_t offset, uint64_t bytes) {
    uint64_t end;
    if (!is_known_name(name))
        return err_make(ERR_INPUT, fs->where, NULL, "\"%.200s\" is not a plain file name", name);
    if (find(fs, name))
        return err_make(ERR_INPUT, fs->where, NULL, "there are two files named %.200s", name);
    if (!size_add(offset, bytes, &end) || end > INT64_MAX)
        return err_make(ERR_INPUT, fs->where, NULL, "%.200s ends beyond any file", name);
    if (fs->count == 1 << 20) return err_make(ERR_INPUT, fs->where, NULL, "too many files");
    err e = make_room(fs);
    if (e.code) return e;
    entry new = {strdup(name), strdup(path), offset, bytes};
    if (!new.name || !new.path) {
        free(new.name);
        free(new.path);
        return no_memory(fs->where);
    }
    int i = place_of(fs, name);
    memmove(fs->entries + i + 1, fs->entries + i, (size_t)(fs->count - i) * sizeof new);
    fs->entries[i] = new;
    fs->count++;
    return e;
}

/* The plain files of dir; their names begin with prefix. */
static err list_dir(fileset *fs, const char *dir, const char *prefix) {
    DIR *d = opendir(dir);
    if (!d) return err_errno(dir, "open the folder");
    err e = err_none();
    errno = 0;
    for (struct dirent *x; !e.code && (x = readdir(d)); errno = 0) {
        char *path = file_join(dir, x->d_name), name[sizeof FILESET_TEMPLATES + 256];
        struct stat st;
        snprintf(name, sizeof name, "%s%s", prefix, x->d_name);
        if (stat(path, &st) == 0 && S_ISREG(st.st_mode))
            e = fileset_add(fs, name, path, 0, (uint64_t)st.st_size);
        free(path);
    }
    if (!e.code && errno) e = err_errno(dir, "list the folder");
    closedir(d);
    return e;
}

static err list_model(fileset *fs, const char *dir) {
    char *templates = file_join(dir, FILESET_TEMPLATES);
    struct stat st;
    err e = list_dir(fs, dir, "");
    if (!e.code && stat(templates, &st) == 0 && S_ISDIR(st.st_mode))
        e = list_dir(fs, templates, FILESET_TEMPLATES "/");
    free(templates);
    return e;
}

/* The list as bytes for the other ranks: 8 bytes of size, the name and a NUL for each file. */
static char *pack_list(const fileset *fs, size_t *len) {
    size_t n = 0;
    for (int i = 0; i < fs->count; i++) n += sizeof(uint64_t) + strlen(fs->entries[i].name) + 1;
    char *blob = malloc(n + 1), *p = blob;
    for (int i = 0; blob && i < fs->count; i++) {
        size_t with_nul = strlen(fs->entries[i].name) + 1;
        memcpy(p, &fs->entries[i].bytes, sizeof(uint64_t));
        memcpy(p + sizeof(uint64_t), fs->entries[i].name, with_nul);
        p += sizeof(uint64_t) + with_nul;
    }
    *len = n;
    return blob;
}

static err unpack_list(fileset *fs, const char *dir, const char *blob, size_t len) {
    err e = err_none();
    for (size_t at = 0; at < len && !e.code;) {
        uint64_t bytes;
        memcpy(&bytes, blob + at, sizeof bytes);
        const char *name = blob + at + sizeof bytes;
        char *path = file_join(dir, name);
        e = fileset_add(fs, name, path, 0, bytes);
        free(path);
        at += sizeof bytes + strlen(name) + 1;
    }
    return e;
}

err fileset_open_dir(const comm *c, const char *dir, fileset **out) {
    char *blob = NULL;
    size_t len = 0;
    fileset *fs;
    err e = fileset_create(dir, &fs);
    if (!e.code && comm_rank(c) == 0) {
        e = list_model(fs, dir);
        if (!e.code && !(blob = pack_list(fs, &len))) e = no_memory(dir);
    }
    e = comm_agree(c, e, dir, NULL);
    if (!e.code) {
        comm_bcast_blob(c, (void **)&blob, &len, 0);
        if (comm_rank(c) != 0) e = unpack_list(fs, dir, blob, len);
        e = comm_agree(c, e, dir, NULL);
    }
    free(blob);
    if (e.code) fileset_destroy(&fs);
    *out = fs;
    return e;
}

const char *fileset_where(const fileset *fs) {
    return fs->where;
}

int fileset_count(const fileset *fs) {
    return fs->count;
}

const char *fileset_name(const fileset *fs, int i) {
    return fs->entries[i].name;
}

bool fileset_find(const fileset *fs, const char *name, const char **path, uint64_t *offset,
                  uint64_t *bytes) {
    const entry *x = find(fs, name);
    if (!x) return false;
    if (path) *path = x->path;
    if (offset) *offset = x->offset;
    if (bytes) *bytes = x->bytes;
    return true;
}

bool fileset_is_dangling(const fileset *fs, const char *name) {
    char *path = file_join(fs->where, name);
    struct stat st;
    const bool link = lstat(path, &st) == 0 && S_ISLNK(st.st_mode) && stat(path, &st) != 0;
    free(path);
    return link;
}

static err read_entry(const fileset *fs, const entry *x, char *to) {
    int fd;
    uint64_t size;
    err e = file_open_read(x->path, &fd, &size);
    if (e.code) return e;
    if (x->offset > size || x->bytes > size - x->offset)
        e = err_make(ERR_INPUT, fs->where, NULL, "%.200s is shorter than when it was listed",
                     x->name);
    if (!e.code) e = file_pread(fd, x->path, to, x->bytes, x->offset);
    close(fd);
    return e;
}

err fileset_read_all(const fileset *fs, const char *name, uint64_t max_bytes, char **out,
                     size_t *len) {
    const entry *x = find(fs, name);
    *out = NULL;
    *len = 0;
    if (!x)
        return err_make(
            ERR_INPUT, fs->where, "fetch the model again, or give the folder that has it",
            fileset_is_dangling(fs, name) ? "%.200s is a link to a file that is not there"
                                          : "there is no %.200s",
            name);
    if (x->bytes > max_bytes)
        return err_make(ERR_INPUT, fs->where, NULL,
                        "%.200s has %" PRIu64 " bytes; at most %" PRIu64 " are read", name,
                        x->bytes, max_bytes);
    char *text = malloc(x->bytes + 1);
    if (!text)
        return err_make(ERR_NOFIT, fs->where, NULL, "no memory for %.200s (%" PRIu64 " bytes)",
                        name, x->bytes);
    err e = read_entry(fs, x, text);
    if (e.code) {
        free(text);
        return e;
    }
    text[x->bytes] = 0;
    *out = text;
    *len = x->bytes;
    return e;
}

err fileset_read_shared(const comm *c, const fileset *fs, const char *name, uint64_t max_bytes,
                        char **out, size_t *len) {
    err e = err_none();
    *out = NULL;
    *len = 0;
    if (comm_rank(c) == 0) e = fileset_read_all(fs, name, max_bytes, out, len);
    e = comm_agree(c, e, name, NULL);
    if (!e.code) comm_bcast_blob(c, (void **)out, len, 0);
    return e;
}
