/* The path is tried as an archive, then as a model folder. */
#include "jobs/setup/source.h"

#include "jobs/setup/setup.h"
#include "jobs/setup/setup_form.h"
#include "pipeline/weights/check_model.h"
#include "shard/loader_rules.h"

#include <inttypes.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TOKENIZER_BYTES = 256 << 20 };

static err understand(source *s) {
    const json_t *config = hf_checkpoint_config(s->ck);
    err e = llama_config_parse(config, "config.json", &s->cfg);
    if (!e.code) e = loader_scheme_parse(config, "config.json", &s->linears);
    if (e.code) return err_at(e, s->path);
    if (s->ar && archive_manifest(s->ar))
        s->recipe = archive_manifest(s->ar)->recipe;
    else if (s->linears.form)
        s->recipe = s->own_recipe = setup_eval_keys_of(config, &s->linears.inputs);
    return s->linears.form ? err_none() : check_model(&s->cfg, s->ck);
}

err source_open(const comm *c, const char *path, source *out) {
    memset(out, 0, sizeof *out);
    out->path = path;
    err e;
    if (archive_is_one(path)) {
        e = archive_open(c, path, &out->ar);
        if (!e.code) out->files = archive_files(out->ar);
    } else {
        e = fileset_open_dir(c, path, &out->own_files);
        if (!e.code) out->files = out->own_files;
    }
    if (!e.code) e = hf_checkpoint_open(c, out->files, &out->ck);
    if (!e.code) e = comm_agree(c, understand(out), "reading the model's description", NULL);
    return e;
}

void source_close(source *s) {
    hf_checkpoint_destroy(&s->ck);
    fileset_destroy(&s->own_files);
    archive_close(&s->ar);
    json_decref(s->own_recipe);
    s->own_recipe = NULL;
}

err source_tokenizer(const source *s, tokenizer **out) {
    char *text;
    size_t len;
    *out = NULL;
    err e = fileset_read_all(s->files, "tokenizer.json", MAX_TOKENIZER_BYTES, &text, &len);
    if (e.code) return e;
    e = tokenizer_create(text, len, "tokenizer.json", out);
    free(text);
    if (!e.code && tokenizer_vocab_size(*out) > s->cfg.vocab) {
        e = err_make(ERR_INPUT, "tokenizer.json",
                     "take tokenizer.json and config.json from one model",
                     "has ids up to %" PRId64 ", but the model's vocabulary is %" PRId64,
                     tokenizer_vocab_size(*out) - 1, s->cfg.vocab);
        tokenizer_destroy(out);
    }
    malloc_trim(0); /* the parsed file is many times the tokenizer: give it back to the node */
    return err_at(e, s->path);
}
