/* libarchive writes each header into memory once; offsets follow by adding up headers, padded data
 * and the end. */
#include "shard/tar_write.h"

#include "base/fault.h"
#include "base/file.h"
#include "base/mem.h"
#include "base/size.h"
#include "shard/entry_names.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum {
    TAR_BLOCK = 512,
    TAR_END = 2 * TAR_BLOCK,      /* two zero blocks end a tar */
    HEADER_ROOM = 64 * TAR_BLOCK, /* far above a pax header of names of 255 bytes */
};

typedef struct planned {
    char *name;
    char *header;
    size_t header_len;
    uint64_t header_offset, data_offset, bytes;
} planned;

struct tar_plan {
    planned *entries;
    int64_t n;
    uint64_t total;
};

static err library_error(struct archive *a, const char *name) {
    const char *why = archive_error_string(a);
    return err_make(ERR_BUG, name, NULL, "libarchive cannot write a tar header: %s",
                    why ? why : "no reason given");
}

static void fill_entry(struct archive_entry *e, const char *name, uint64_t bytes) {
    archive_entry_set_pathname(e, name);
    archive_entry_set_size(e, (la_int64_t)bytes);
    archive_entry_set_filetype(e, AE_IFREG);
    archive_entry_set_perm(e, 0644);
    archive_entry_set_mtime(e, 0, 0);
    archive_entry_set_uid(e, 0);
    archive_entry_set_gid(e, 0);
}

/* One archive object an entry: the header does not depend on what stands before it. Bytes of `to`
 * beyond *len are overwritten too: closing pads the entry until the room is full. */
static err make_header(const char *name, uint64_t bytes, char *to, size_t room, size_t *len) {
    err e = err_none();
    size_t used = 0;
    struct archive *a = archive_write_new();
    struct archive_entry *entry = archive_entry_new();
    if (!a || !entry) abort();
    fill_entry(entry, name, bytes);
    /* Unblocked, so that `used` counts the header as soon as it is written. */
    if (archive_write_set_format_pax_restricted(a) != ARCHIVE_OK ||
        archive_write_set_bytes_per_block(a, 0) != ARCHIVE_OK ||
        archive_write_open_memory(a, to, room, &used) != ARCHIVE_OK ||
        archive_write_header(a, entry) != ARCHIVE_OK)
        e = library_error(a, name);
    else if (used == 0 || used % TAR_BLOCK)
        e = err_make(ERR_BUG, name, NULL, "a tar header of %zu bytes", used);
    *len = used;
    /* Not archive_write_fail before it, which would leak what the library holds for each entry. */
    archive_write_free(a);
    archive_entry_free(entry);
    return e;
}

static err place_entry(tar_plan *p, planned *to, const tar_entry *from) {
    const char *fault = entry_name_fault(from->name);
    if (fault)
        return err_make(ERR_INPUT, from->name, "choose another archive.name",
                        "the entry name \"%s\" %s", from->name, fault);
    if (from->bytes > INT64_MAX / 2)
        return err_make(ERR_BUG, from->name, NULL, "an entry of %" PRIu64 " bytes", from->bytes);
    char *room;
    err e = MEM_NEW(&room, HEADER_ROOM, "a tar header");
    if (e.code) return e;
    e = make_header(from->name, from->bytes, room, HEADER_ROOM, &to->header_len);
    to->header = room;
    to->name = strdup(from->name);
    if (!to->name) abort();
    if (e.code) return e;
    to->bytes = from->bytes;
    to->header_offset = p->total;
    to->data_offset = p->total + to->header_len;
    uint64_t padded = (from->bytes + TAR_BLOCK - 1) / TAR_BLOCK * TAR_BLOCK;
    if (!size_add(to->data_offset, padded, &p->total) || p->total > INT64_MAX - TAR_END)
        return err_make(ERR_BUG, from->name, NULL, "the tar would be larger than a file can be");
    return e;
}

err tar_plan_create(const tar_entry *entries, int64_t n, tar_plan **out) {
    *out = NULL;
    tar_plan *p = calloc(1, sizeof *p);
    if (!p) abort();
    err e = MEM_NEW(&p->entries, n, "tar plan");
    if (!e.code) p->n = n;
    for (int64_t i = 0; i < p->n && !e.code; i++) e = place_entry(p, &p->entries[i], &entries[i]);
    p->total += TAR_END;
    if (e.code)
        tar_plan_destroy(&p);
    else
        *out = p;
    return e;
}

void tar_plan_destroy(tar_plan **p) {
    if (!*p) return;
    for (int64_t i = 0; i < (*p)->n; i++) {
        free((*p)->entries[i].name);
        mem_free((*p)->entries[i].header);
    }
    mem_free((*p)->entries);
    free(*p);
    *p = NULL;
}

int64_t tar_plan_count(const tar_plan *p) {
    return p->n;
}
const char *tar_plan_name(const tar_plan *p, int64_t i) {
    return p->entries[i].name;
}
uint64_t tar_plan_offset(const tar_plan *p, int64_t i) {
    return p->entries[i].data_offset;
}
uint64_t tar_plan_bytes(const tar_plan *p, int64_t i) {
    return p->entries[i].bytes;
}
uint64_t tar_plan_total(const tar_plan *p) {
    return p->total;
}
const void *tar_plan_header(const tar_plan *p, int64_t i, uint64_t *offset, size_t *len) {
    *offset = p->entries[i].header_offset;
    *len = p->entries[i].header_len;
    return p->entries[i].header;
}

/* Ask for the space now, so that a full disk shows before hours of work. */
static err reserve(int fd, const char *path, uint64_t total) {
    int rc = fault_hit("write") ? -1 : fallocate(fd, 0, 0, (off_t)total);
    if (rc == 0) return err_none();
    if (errno != EOPNOTSUPP && errno != ENOSYS) return err_errno(path, "reserve space for it");
    struct statvfs fs;
    if (fstatvfs(fd, &fs) == 0 && fs.f_blocks &&
        (uint64_t)fs.f_bavail < total / (uint64_t)fs.f_frsize)
        errno = ENOSPC;
    else if (ftruncate(fd, (off_t)total) == 0)
        return err_none();
    return err_errno(path, "reserve space for it");
}

err tar_plan_write_frame(const tar_plan *p, const char *path) {
    int fd;
    err e = file_create(path, &fd);
    if (e.code) return e;
    e = reserve(fd, path, p->total);
    for (int64_t i = 0; i < p->n && !e.code; i++) {
        const planned *x = &p->entries[i];
        e = file_pwrite(fd, path, x->header, x->header_len, x->header_offset);
    }
    err c = file_close(fd, path);
    if (!e.code) e = c;
    if (e.code) unlink(path); /* the space of a file that will not be used */
    return e;
}
