/* gguf_metadata - the key-value pairs of a GGUF file of a LLaMA-family model: sizes from
 * config.json, and the vocabulary from tokenizer.json. On the way: shard bytes -> [gguf_metadata]
 * -> archive entry. */
#ifndef SPINSHARD_SHARD_GGUF_METADATA_H
#define SPINSHARD_SHARD_GGUF_METADATA_H

#include "base/err.h"
#include "base/json.h"
#include "io/fileset.h"
#include "shard/layout.h"

/* Root only. The pairs for a layout: `source` holds tokenizer.json and what is beside it, `config`
 * is the source's config.json, `name` that of the archive. Caller frees out->bytes. Fails with
 * ERR_INPUT for a tokenizer that the format's reader would split text otherwise for, by name. */
err gguf_metadata_create(const fileset *source, const json_t *config, const layout *l,
                         const char *name, layout_metadata *out);

#endif
