/* tar_write - a plain tar whose every offset is known before a byte is written, so that ranks write
 * their ranges of it side by side. Header bytes are libarchive's (pax restricted: mtime 0, uid and
 * gid 0, no names, mode 0644); two zero blocks end the file. No compression, files only.
 * On the way: shard bytes -> [tar_write] -> archive entry. */
#ifndef SPINSHARD_SHARD_TAR_WRITE_H
#define SPINSHARD_SHARD_TAR_WRITE_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

typedef struct tar_entry {
    const char *name; /* path in the archive, relative */
    uint64_t bytes;
} tar_entry;

typedef struct tar_plan tar_plan;

/* Local. Headers and offsets of n entries in this order. Caller owns *out (tar_plan_destroy).
 * Fails with ERR_INPUT for a name that is absolute, empty or has "..". */
err tar_plan_create(const tar_entry *entries, int64_t n, tar_plan **out);
void tar_plan_destroy(tar_plan **p); /* local; NULL is fine; sets NULL */

int64_t tar_plan_count(const tar_plan *p);
const char *tar_plan_name(const tar_plan *p, int64_t i);
uint64_t tar_plan_offset(const tar_plan *p, int64_t i); /* of the entry's data in the file */
uint64_t tar_plan_bytes(const tar_plan *p, int64_t i);  /* of the entry's data */
uint64_t tar_plan_total(const tar_plan *p);             /* of the file */
/* Local. Header bytes of an entry and where they stand; borrowed. For tests. */
const void *tar_plan_header(const tar_plan *p, int64_t i, uint64_t *offset, size_t *len);

/* Local, one rank a file. Create `path` at its full size (space is reserved where the file system
 * can) with all headers; paddings and data are zero. Fails with ERR_SPACE where the size does not
 * fit. */
err tar_plan_write_frame(const tar_plan *p, const char *path);

#endif
