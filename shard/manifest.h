/* manifest - manifest.json, the list of what an archive holds: tars, entries, their places and
 * hashes, the source and the recipe. Same content, same bytes: no hosts, times or versions. Not a
 * reader of archives (shard/archive.h). On the way: archive entry -> [manifest line]. */
#ifndef SPINSHARD_SHARD_MANIFEST_H
#define SPINSHARD_SHARD_MANIFEST_H

#include "base/err.h"
#include "base/json.h"
#include "base/sha256.h"

#include <stdint.h>

typedef struct manifest_tar {
    char *file; /* base name in the output folder */
    uint64_t bytes;
    char sha256[SHA256_HEX];
} manifest_tar;

typedef struct manifest_entry {
    int64_t tar; /* index */
    char *name;  /* "<name>/<base name>" */
    uint64_t offset, bytes;
    char sha256[SHA256_HEX];
} manifest_entry;

typedef struct manifest_shard {
    char *file; /* base name of a safetensors file of the source */
    uint64_t bytes;
    char header_sha256[SHA256_HEX];
} manifest_shard;

/* Owns all it points to. */
typedef struct manifest {
    char *name;
    char *architecture;
    manifest_shard *shards; /* of the source */
    int64_t n_shards;
    json_t *recipe;
    manifest_tar *tars;
    int64_t n_tars;
    manifest_entry *entries;
    int64_t n_entries;
} manifest;

/* Local. An empty manifest with room for the given counts (strings NULL, hashes empty). */
manifest *manifest_create(const char *name, int64_t n_shards, int64_t n_tars, int64_t n_entries);
void manifest_destroy(manifest **m); /* local; NULL is fine; sets NULL */

/* Local. The bytes of manifest.json. Caller frees *out. */
err manifest_text(const manifest *m, char **out, size_t *len);

/* Local. Read and check: format, base names, no duplicates or case twins, entry names
 * <name>/<file> (shard/entry_names.h), ranges inside their tar and apart, hex digests, no unknown
 * keys. Caller owns *out. Fails with ERR_VERIFY. */
err manifest_parse(const char *text, size_t len, const char *where, manifest **out);

/* Local. Index of an entry by its <file>, -1 where absent. */
int64_t manifest_find(const manifest *m, const char *file);

#endif
