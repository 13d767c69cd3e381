/* tar_read - walk the headers of a tar through libarchive without reading its data. Archives are
 * read in place by offset, never extracted: whatever is not a plain file under a plain name is
 * refused. On the way: archive entry -> [tar_read] -> read back by verify. */
#ifndef SPINSHARD_SHARD_TAR_READ_H
#define SPINSHARD_SHARD_TAR_READ_H

#include "base/err.h"

#include <stdint.h>

typedef struct tar_item {
    char *name;      /* "<folder>/<base name>", checked */
    uint64_t offset; /* of the data in the file */
    uint64_t bytes;
} tar_item;

typedef struct tar_index {
    tar_item *items; /* in the order of the file */
    int64_t n;
} tar_index;

/* Local. List an uncompressed tar. Refused with ERR_VERIFY, naming the entry: links, devices,
 * folders, sparse files, absolute names, names that are not <folder>/<base name>, duplicates, names
 * that differ by case alone, data beyond the end of the file, more than 100000 entries.
 * Caller owns *out (tar_index_clear). */
err tar_index_read(const char *path, tar_index *out);
void tar_index_clear(tar_index *t); /* local */

#endif
