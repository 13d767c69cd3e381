/* digest - sha256 of whole files and of ranges in them, each byte read once, the work dealt to
 * ranks. Used after writing (read back) and by verify. Not a comparison: it says what is there. On
 * the way: archive entry -> [digest] -> manifest line. */
#ifndef SPINSHARD_SHARD_DIGEST_H
#define SPINSHARD_SHARD_DIGEST_H

#include "base/err.h"
#include "base/sha256.h"
#include "mpi/comm.h"

#include <stdint.h>

typedef struct digest_range {
    uint64_t offset, bytes;
    char sha256[SHA256_HEX]; /* out */
} digest_range;

typedef struct digest_file {
    const char *path; /* borrowed */
    uint64_t bytes;
    digest_range *ranges; /* borrowed; by offset, apart, inside the file */
    int64_t n_ranges;
    char sha256[SHA256_HEX]; /* out: of the whole file */
} digest_file;

/* Collective on c; paths, sizes and ranges must agree. Fills all hashes on every rank. Fails, the
 * same on every rank, where a file cannot be read or has another size. */
err digest_files(const comm *c, digest_file *files, int64_t n);

/* Local. Bytes that a rank takes for it, for plans. */
uint64_t digest_bytes(void);

#endif
