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

/* Fine-tunes add tokens, often <pad>, without rows for them: no harm while no text has them. */
static err check_ids(const source *s, const tokenizer *t, const int32_t *ids, int64_t n,
                     const char *where) {
    for (int64_t i = 0; i < n; i++) {
        if (ids[i] < s->cfg.vocab) continue;
        const char *token = tokenizer_token(t, ids[i]);
        return err_make(ERR_INPUT, "tokenizer.json",
                        "take tokenizer.json and config.json from one model, or leave the token "
                        "out of the text",
                        "%.200s gives the token %.60s with the id %" PRId32
                        ", but the model's vocabulary is %" PRId64,
                        where, token ? token : "?", ids[i], s->cfg.vocab);
    }
    return err_none();
}

runtime_facts source_facts(const source *s, int64_t tp) {
    const hf_tensor *t = hf_checkpoint_find(s->ck, "model.embed_tokens.weight");
    return (runtime_facts){
        .linears = s->linears, .dtype = t ? t->info.dtype : ST_BF16, .cfg = &s->cfg, .tp = tp};
}

err source_tokenizer(const source *s, tokenizer **out) {
    char *text;
    size_t len;
    *out = NULL;
    err e = fileset_read_all(s->files, "tokenizer.json", MAX_TOKENIZER_BYTES, &text, &len);
    if (e.code) return e;
    e = tokenizer_create(text, len, "tokenizer.json", out);
    free(text);
    int32_t ids[TOKENIZER_MAX_AFFIX];
    if (!e.code) e = check_ids(s, *out, ids, tokenizer_prefix(*out, ids), "its post-processor");
    if (e.code) tokenizer_destroy(out);
    malloc_trim(0); /* the parsed file is many times the tokenizer: give it back to the node */
    return err_at(e, s->path);
}

err source_encode(const source *s, const tokenizer *t, const char *text, size_t len,
                  const char *where, int32_t **ids, int64_t *n) {
    err e = tokenizer_encode(t, text, len, false, ids, n);
    if (!e.code) e = check_ids(s, t, *ids, *n, where);
    if (!e.code) return e;
    free(*ids);
    *ids = NULL;
    *n = 0;
    return err_at(e, s->path);
}
