/* source - what a command works on: a Hugging Face folder, or an output folder or tar of ours,
 * opened for reading with its config checked. Shared by quantize, eval, verify and inspect. */
#ifndef SPINSHARD_JOBS_SETUP_SOURCE_H
#define SPINSHARD_JOBS_SETUP_SOURCE_H

#include "base/err.h"
#include "io/fileset.h"
#include "io/hf_checkpoint.h"
#include "io/tokenizer.h"
#include "model/config.h"
#include "mpi/comm.h"
#include "pipeline/stages/load_stage.h"
#include "shard/archive.h"
#include "shard/runtimes.h"

typedef struct source {
    const char *path;     /* borrowed */
    archive *ar;          /* NULL for a plain folder */
    fileset *own_files;   /* of a plain folder */
    const fileset *files; /* borrowed from one of the two */
    hf_checkpoint *ck;
    llama_config cfg;
    form_scheme linears; /* form NULL: plain tensors */
    const json_t
        *recipe;        /* of an archive; of a folder unpacked from one what eval needs; or NULL */
    json_t *own_recipe; /* owned; where the recipe is not the manifest's */
} source;

/* Collective on c; every rank gets the same result. A stored head that is not the embedding, where
 * config.json ties the two, unties the config, which is said. Caller closes, also after an error.
 * Fails with what opening gives: ERR_INPUT, ERR_VERIFY for a damaged archive. */
err source_open(const comm *c, const char *path, source *out);
/* Local. quantization_config of a config.json into s->linears; form NULL where there is none. Fails
 * with ERR_VERIFY for an archive, which must be one of ours, else with ERR_INPUT. */
err source_read_linears(source *s, const json_t *config);
/* Local. Are the archive's shards GGUF, which source_open refuses? NULL: no. */
bool source_is_gguf(const manifest *m);
void source_close(source *s); /* local */

/* Local. The rotations.safetensors that quantize wrote beside the archive `out`: an unpacked folder
 * or a lone tar has none beside it, and then `hint` is the way out of an ERR_INPUT. Caller frees
 * *path (free); NULL after an error. */
err source_rotations_beside(const char *out, const char *hint, char **path);

/* Local. What runtimes are judged by, of an archive; tp: ranks of tensor parallelism. */
runtime_facts source_facts(const source *s, int64_t tp);

/* Local, the same on every rank. A line of the log where windows are longer than the positions the
 * model was made for; ERR_INPUT where its frequencies would then be others (ROPE_DYNAMIC). */
err source_check_window(const source *s, const char *what, int64_t window);

/* Root only. The tokenizer of the folder; what it puts before a text is checked against the
 * vocabulary. Other tokens may have ids that the model lacks, which source_encode refuses where a
 * text has them. Caller owns *out. Fails with ERR_INPUT. */
err source_tokenizer(const source *s, tokenizer **out);

/* Root only. The ids of a text (tokenizer_encode without special tokens), each in the vocabulary.
 * `where` names the text. Caller frees *ids (free). Fails with ERR_INPUT. */
err source_encode(const source *s, const tokenizer *t, const char *text, size_t len,
                  const char *where, int32_t **ids, int64_t *n);

#endif
