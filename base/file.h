/* file - reading and writing whole ranges, and publishing a file so that a crash leaves the old or
 * the new one. Not buffered streams. Every call that can fail in the world passes base/fault.h. */
#ifndef SPINSHARD_BASE_FILE_H
#define SPINSHARD_BASE_FILE_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

/* Local. The whole of a regular file of at most max_bytes, with a NUL after the last byte.
 * Caller frees *out (free). Fails with ERR_INPUT. */
err file_read_all(const char *path, uint64_t max_bytes, char **out, size_t *len);

/* Local. Open for reading (regular files only); *bytes may be NULL. Caller closes *fd. */
err file_open_read(const char *path, int *fd, uint64_t *bytes);

/* Local. Exactly n bytes at an offset; a short file is an error. `path` is for messages. */
err file_pread(int fd, const char *path, void *to, uint64_t n, uint64_t offset);
err file_pwrite(int fd, const char *path, const void *from, uint64_t n, uint64_t offset);

/* Local. Ask the system to begin writing what was put there, so that file_sync waits less. */
void file_begin_sync(int fd, uint64_t offset, uint64_t n);

/* Local. Create (or truncate) for writing, mode 0644. Caller closes with file_close. */
err file_create(const char *path, int *fd);
err file_sync(int fd, const char *path);
err file_close(int fd, const char *path); /* a failed close means that bytes may be lost */

/* Local. Give `path` the contents, all or nothing: write aside, fsync, rename, fsync of the folder.
 */
err file_publish(const char *path, const void *data, size_t len);
err file_rename(const char *from, const char *to);
err file_sync_dir(const char *dir);

/* Local. Make a folder (parents too) if it is not there. */
err file_make_dirs(const char *path);
bool file_exists(const char *path);

/* Local. Remove a folder with what is in it; a missing one is success. Follows no links. */
err file_remove_tree(const char *path);

/* Local. "a/b" in a fresh string (free). Aborts where memory ends. */
char *file_join(const char *dir, const char *name);

/* Local. What stands behind the last '/' of a path, or all of it; borrowed. */
const char *file_base_of(const char *path);

/* Local. True for a name that is one plain path component: no '/', not "", "." or "..". */
bool file_is_base_name(const char *name);

#endif
