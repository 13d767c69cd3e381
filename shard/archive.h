/* archive - an output folder (manifest and tars), or one tar alone, opened for reading in place:
 * its entries appear as the files of a model folder, so that io/hf_checkpoint reads both alike.
 * Nothing is extracted. Not a writer (shard/archive_writer.h).
 * On the way: manifest line -> [archive] -> read back by verify, eval of an archive. */
#ifndef SPINSHARD_SHARD_ARCHIVE_H
#define SPINSHARD_SHARD_ARCHIVE_H

#include "base/err.h"
#include "io/fileset.h"
#include "mpi/comm.h"
#include "shard/manifest.h"

typedef struct archive archive;

/* Local. True for a folder with manifest.json and for a plain file called *.tar. */
bool archive_is_one(const char *path);

/* Collective on c. Root reads the manifest and the headers of all tars and checks one against the
 * other (sizes, places, nothing missing, nothing more); all ranks get the result. Hashes are left
 * to archive_verify_bytes. Caller owns *out (archive_close). Fails, the same on every rank, with
 * ERR_VERIFY (damaged), or ERR_INPUT (not readable, no manifest). */
err archive_open(const comm *c, const char *path, archive **out);
void archive_close(archive **a); /* local; NULL is fine; sets NULL */

const fileset *archive_files(const archive *a);     /* borrowed; base name -> range of a tar */
const manifest *archive_manifest(const archive *a); /* borrowed; NULL for a tar alone */

typedef struct archive_tally {
    int64_t tars, entries;
    uint64_t bytes; /* read and hashed */
} archive_tally;

/* Collective on c. Read every byte back and compare the hashes of all tars and entries with the
 * manifest; tars are dealt to ranks. Same result on every rank; ERR_VERIFY names tar, entry, and
 * the hashes expected and found. */
err archive_verify_bytes(const comm *c, const archive *a, archive_tally *tally);

/* Root only. Take an older output out of a folder: its manifest first, then the tars it lists.
 * A folder without a manifest is success. */
err archive_remove(const char *out_dir);

#endif
