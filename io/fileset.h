/* fileset - the named files of a model folder, each a byte range of a real file, so that a folder
 * and the archives of a finished run read the same way. Not a file system: plain names, and below
 * one folder that has a meaning; read only, nothing is ever extracted. The first step on the way
 * from file to archive, and again the first of verify and eval on an archive. */
#ifndef SPINSHARD_IO_FILESET_H
#define SPINSHARD_IO_FILESET_H

#include "base/err.h"
#include "mpi/comm.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct fileset fileset;

/* The one folder inside of a model folder whose files belong to it: more chat templates, as
 * transformers writes and reads them. Its files are named "additional_chat_templates/NAME". */
#define FILESET_TEMPLATES "additional_chat_templates"

/* Local. An empty set; `where` (copied) names it in messages: the folder or archive. Caller owns
 * *out (fileset_destroy). */
err fileset_create(const char *where, fileset **out);
void fileset_destroy(fileset **fs); /* local; NULL is fine; sets NULL */

/* Local. Add a file: `bytes` bytes of `path` from `offset`; both texts are copied. Fails with
 * ERR_INPUT for a name that is neither one plain path component nor one below FILESET_TEMPLATES, or
 * is there already, or where offset + bytes overflows. */
err fileset_add(fileset *fs, const char *name, const char *path, uint64_t offset, uint64_t bytes);

/* Collective on c. The plain files of a folder and of FILESET_TEMPLATES in it, sorted by name; rank
 * 0 lists, the others are told. Links are followed (model caches are made of them); other folders,
 * devices, pipes and dangling links are left out. Same result on every rank; caller owns *out.
 * Fails with ERR_INPUT. */
err fileset_open_dir(const comm *c, const char *dir, fileset **out);

const char *fileset_where(const fileset *fs); /* local */
int fileset_count(const fileset *fs);         /* local */

/* Local. Name of file i, in order of names. */
const char *fileset_name(const fileset *fs, int i);

/* Local. Where a file is; false where it is not in the set. path is borrowed; path, offset and
 * bytes may be NULL. */
bool fileset_find(const fileset *fs, const char *name, const char **path, uint64_t *offset,
                  uint64_t *bytes);

/* Local. True for a name of a folder that is a link to nothing. */
bool fileset_is_dangling(const fileset *fs, const char *name);

/* Local. A whole small file with a NUL after the last byte; caller frees *out (free). Fails with
 * ERR_INPUT where it is missing or larger than max_bytes. */
err fileset_read_all(const fileset *fs, const char *name, uint64_t max_bytes, char **out,
                     size_t *len);

/* Collective on c. As fileset_read_all, read by rank 0 and broadcast; every rank gets the bytes, or
 * the same error. */
err fileset_read_shared(const comm *c, const fileset *fs, const char *name, uint64_t max_bytes,
                        char **out, size_t *len);

#endif
