/* small_files - the files of part 1 beside the shard: config.json rewritten for loaders, tokenizer
 * and licence files byte for byte, a model card, the index of the shards. Deterministic: no dates,
 * hosts or paths. Built on one rank. On the way: shard bytes -> [small_files] -> archive entry. */
#ifndef SPINSHARD_SHARD_SMALL_FILES_H
#define SPINSHARD_SHARD_SMALL_FILES_H

#include "base/err.h"
#include "base/json.h"
#include "io/fileset.h"
#include "shard/layout.h"

typedef struct small_file {
    char *name; /* <file> of shard/entry_names.h */
    char *data;
    size_t bytes;
} small_file;

/* config.json first, the others sorted bytewise. Owns all. */
typedef struct small_files {
    small_file *files;
    int64_t n;
} small_files;

typedef struct small_options {
    const char *name;       /* of the archive */
    const json_t *config;   /* config.json of the source */
    const json_t *recipe;   /* as resolved; shown in the model card */
    const json_t *front;    /* front matter of the source's card (shard/card_front.h), or NULL */
    const char *base_model; /* its id on a hub, or NULL */
    const json_t
        *spinshard; /* NULL, or what config.json says under "spinshard" (online rotations) */
} small_options;

/* Root only. Build the files from the source's folder and the layout. Caller owns *out
 * (small_files_destroy). Fails with ERR_INPUT where a file cannot be read. */
err small_files_create(const fileset *source, const layout *l, const small_options *opts,
                       small_files **out);
void small_files_destroy(small_files **f); /* local; NULL is fine; sets NULL */

/* Local. config.json for the archive: all keys of the source in their order; tie_word_embeddings
 * and torch_dtype as stored, quantization_config added. Caller frees *out. */
err small_config_text(const layout *l, const small_options *opts, char **out, size_t *len);
/* Local. model.safetensors.index.json. Caller frees *out. */
err small_index_text(const layout *l, char **out, size_t *len);
/* Local. README.md. Caller frees *out. */
err small_card_text(const layout *l, const small_options *opts, char **out, size_t *len);

/* Local. True for a file of a model folder that is copied byte for byte. */
bool small_file_is_copied(const char *name);

#endif
