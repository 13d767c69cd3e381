/* archive_writer - ranks write the tars of one archive together, each at its own offsets, then hash
 * them by reading back and publish: tars by rename, manifest last. A crash at any point leaves no
 * manifest, so no archive. Not the keeper of restart state: a killed writer begins its parts again.
 * On the way: shard bytes -> [archive_writer] -> archive entry -> manifest line. */
#ifndef SPINSHARD_SHARD_ARCHIVE_WRITER_H
#define SPINSHARD_SHARD_ARCHIVE_WRITER_H

#include "base/err.h"
#include "mpi/comm.h"
#include "shard/layout.h"
#include "shard/manifest.h"
#include "shard/small_files.h"

typedef struct archive_writer archive_writer;

/* Collective on c; l must agree. Makes parts_dir/<name>-0000k-of-0000N.tar.partial at full size
 * with tar headers, shard headers and small files. files is read on root alone (NULL elsewhere) and
 * not kept; l and c are borrowed until destroy. parts_dir must be on the file system of out_dir.
 * Caller owns *out. Fails, the same on every rank, with ERR_SPACE before any work is done. */
err archive_writer_create(const comm *c, const layout *l, const small_files *files,
                          const char *name, const char *out_dir, const char *parts_dir,
                          archive_writer **out);
void archive_writer_destroy(
    archive_writer **w); /* local; NULL is fine; sets NULL; removes nothing */

/* Local. n bytes of tensor i, from byte `begin` of it. Any rank, any thread, any order, no overlap.
 */
err archive_writer_put(archive_writer *w, int64_t i, uint64_t begin, const void *data, uint64_t n);
/* Local. All tensors of a unit from its bytes (layout_unit_bytes). For tests. */
err archive_writer_put_unit(archive_writer *w, int64_t unit, const void *blob);

/* Collective on c. Flush, read back and hash, rename the tars into out_dir, publish manifest.json.
 * about (root only, NULL elsewhere; borrowed) gives source and recipe; its tars and entries are not
 * looked at. Same result on every rank; after a failure out_dir has no manifest and no tar of this
 * archive. */
err archive_writer_finish(archive_writer *w, const manifest *about);

#endif
