/* libarchive walks the headers; after each one the file position gives the offset of the data,
 * which is skipped by seeking. */
#include "shard/tar_read.h"

#include "base/fault.h"
#include "base/file.h"
#include "shard/entry_names.h"

#include <archive.h>
#include <archive_entry.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_ENTRIES = 100000, READ_BLOCK = 1 << 16 };

static err refuse(const char *path, const char *name, const char *what) {
    return err_make(ERR_VERIFY, path, "the archive is damaged or was not made by this program",
                    "the entry \"%s\" %s", name, what);
}

static err library_error(struct archive *a, const char *path) {
    const char *why = archive_error_string(a);
    return err_make(ERR_VERIFY, path, "the file is damaged or not a tar",
                    "cannot read its headers: %s", why ? why : "no reason given");
}

static const char *kind_fault(struct archive_entry *e) {
    if (archive_entry_hardlink(e) || archive_entry_symlink(e)) return "is a link";
    if (archive_entry_filetype(e) != AE_IFREG) return "is not a plain file";
    if (archive_entry_sparse_count(e) > 0) return "is stored with holes";
    if (!archive_entry_size_is_set(e) || archive_entry_size(e) < 0) return "has no size";
    return NULL;
}

static err add_item(tar_index *t, const char *path, uint64_t file_bytes, struct archive *a,
                    struct archive_entry *entry) {
    const char *name = archive_entry_pathname(entry);
    if (!name) return refuse(path, "?", "has a name that cannot be read");
    const char *fault = kind_fault(entry);
    if (!fault) fault = entry_name_fault(name);
    if (fault) return refuse(path, name, fault);
    if (t->n == MAX_ENTRIES)
        return err_make(ERR_VERIFY, path, NULL, "more than %d entries", (int)MAX_ENTRIES);
    /* Headers are consumed when they are returned, so the reader stands at the data. */
    uint64_t offset = (uint64_t)archive_filter_bytes(a, -1);
    uint64_t bytes = (uint64_t)archive_entry_size(entry);
    if (offset > file_bytes || bytes > file_bytes - offset)
        return refuse(path, name, "goes on beyond the end of the file");
    if ((t->n & (t->n - 1)) == 0) { /* full at every power of two */
        size_t room = t->n ? 2 * (size_t)t->n : 1;
        t->items = realloc(t->items, room * sizeof *t->items);
        if (!t->items) abort();
    }
    tar_item item = {.name = strdup(name), .offset = offset, .bytes = bytes};
    if (!item.name) abort();
    t->items[t->n++] = item;
    return err_none();
}

static err walk(struct archive *a, int fd, const char *path, uint64_t bytes, tar_index *t) {
    /* Plain tar alone: no filters, so nothing is decompressed and offsets are those of the file. */
    if (archive_read_support_format_tar(a) != ARCHIVE_OK ||
        archive_read_open_fd(a, fd, READ_BLOCK) != ARCHIVE_OK)
        return library_error(a, path);
    for (;;) {
        struct archive_entry *entry;
        int rc = fault_hit("read") ? ARCHIVE_FATAL : archive_read_next_header(a, &entry);
        if (rc == ARCHIVE_EOF) return err_none();
        if (rc != ARCHIVE_OK) return library_error(a, path);
        err e = add_item(t, path, bytes, a, entry);
        if (e.code) return e;
    }
}

static err check_names(const tar_index *t, const char *path) {
    const char **names = malloc((size_t)(t->n ? t->n : 1) * sizeof *names);
    if (!names) abort();
    for (int64_t i = 0; i < t->n; i++) names[i] = t->items[i].name;
    err e = entry_names_distinct(names, t->n, path);
    free(names);
    return e;
}

err tar_index_read(const char *path, tar_index *out) {
    *out = (tar_index){0};
    int fd;
    uint64_t bytes;
    err e = file_open_read(path, &fd, &bytes);
    if (e.code) return e;
    struct archive *a = archive_read_new();
    if (!a) abort();
    e = walk(a, fd, path, bytes, out);
    archive_read_free(a);
    close(fd);
    if (!e.code && out->n == 0) e = err_make(ERR_VERIFY, path, NULL, "a tar without entries");
    if (!e.code) e = check_names(out, path);
    if (e.code) tar_index_clear(out);
    return e;
}

void tar_index_clear(tar_index *t) {
    for (int64_t i = 0; i < t->n; i++) free(t->items[i].name);
    free(t->items);
    *t = (tar_index){0};
}
