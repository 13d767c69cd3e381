/* The path is tried as an archive, then as a model folder. */
#include "jobs/setup/source.h"

#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "jobs/setup/setup.h"
#include "jobs/setup/setup_form.h"
#include "pipeline/weights/check_model.h"
#include "shard/loader_rules.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TOKENIZER_BYTES = 256 << 20 };
static const char EMBEDDING[] = "model.embed_tokens.weight", HEAD[] = "lm_head.weight";

/* Root only. True where a head is stored that is not the embedding, value by value. */
static err head_differs(const source *s, bool *differs) {
    enum { PIECE = 1 << 20 };
    const hf_tensor *a = hf_checkpoint_find(s->ck, EMBEDDING), *b = hf_checkpoint_find(s->ck, HEAD);
    *differs = false;
    if (!a || !b || a == b) return err_none();
    const uint64_t bytes = hf_tensor_bytes(a);
    *differs = a->info.dtype != b->info.dtype || bytes != hf_tensor_bytes(b);
    void *room = NULL;
    err e = *differs ? err_none() : mem_alloc(2, PIECE, "head of the model", &room);
    for (uint64_t at = 0; at < bytes && !e.code && !*differs; at += PIECE) {
        const uint64_t n = bytes - at < PIECE ? bytes - at : PIECE;
        char *x = room, *y = x + PIECE;
        e = hf_checkpoint_read_range(s->ck, a, at, n, x);
        if (!e.code) e = hf_checkpoint_read_range(s->ck, b, at, n, y);
        if (!e.code) *differs = memcmp(x, y, n) != 0;
    }
    mem_free(room);
    return e;
}

/* Collective on c. A model that ties its head to the embedding and stores another one: transformers
 * 5 takes the one that is stored, and so does this program. */
static err take_stored_head(const comm *c, source *s) {
    bool differs = false;
    if (!s->cfg.tied || s->ar) return err_none();
    err e = comm_rank(c) == 0 ? head_differs(s, &differs) : err_none();
    e = comm_agree(c, e, "reading the head", NULL);
    if (e.code) return e;
    comm_bcast(c, &differs, sizeof differs, 0);
    if (!differs) return e;
    s->cfg.tied = false;
    log_line(
        LOG_RUN,
        "warning: %s: config.json says that the head is the embedding, and another lm_head.weight "
        "is stored: the stored one counts, as in transformers 5 (version 4 takes the embedding). "
        "Set tie_word_embeddings to false to say so, or remove that tensor to have them tied",
        s->path);
    return s->linears.form ? e
                           : comm_agree(c, check_model(&s->cfg, s->ck), "reading the head", NULL);
}

/* A tied matrix may be stored under the name of the head alone, as some tools write it and
 * transformers 5 reads it. */
static err take_head_for_both(source *s) {
    const hf_tensor *head = hf_checkpoint_find(s->ck, HEAD);
    if (!s->cfg.tied || !head || hf_checkpoint_find(s->ck, EMBEDDING)) return err_none();
    return hf_checkpoint_put_alias(s->ck, EMBEDDING, head);
}

err source_read_linears(source *s, const json_t *config) {
    err e = loader_scheme_parse(config, "config.json", &s->linears);
    if (e.code == ERR_VERIFY && !s->ar) e.code = ERR_INPUT; /* of another program, not damaged */
    return e;
}

static err understand(source *s) {
    const json_t *config = hf_checkpoint_config(s->ck);
    err e = source_read_linears(s, config);
    if (!e.code) e = llama_config_parse(config, "config.json", &s->cfg);
    if (e.code) return err_at(e, s->path);
    if (s->ar && archive_manifest(s->ar))
        s->recipe = archive_manifest(s->ar)->recipe;
    else if (s->linears.form)
        s->recipe = s->own_recipe = setup_eval_keys_of(config, &s->linears, s->cfg.layers);
    e = take_head_for_both(s);
    return e.code || s->linears.form ? e : check_model(&s->cfg, s->ck);
}

bool source_is_gguf(const manifest *m) {
    const json_t *section = m ? json_object_get(m->recipe, "archive") : NULL;
    const char *name = json_string_value(json_object_get(section, "form"));
    return name && form_has_files(form_find(name));
}

/* What people give in the place of a folder: its name on a hub, or a file in it. */
static err not_a_folder(const char *path, err e) {
    const char *slash = strchr(path, '/');
    if (file_exists(path)) {
        if (!*e.hint) snprintf(e.hint, sizeof e.hint, "give the folder that holds the model");
    } else if (slash && slash > path && slash[1] && !strchr(slash + 1, '/') && *path != '.') {
        snprintf(e.hint, sizeof e.hint,
                 "check the path; if it is a name on a hub, fetch it first: hf download %.120s "
                 "--local-dir DIR",
                 path);
    }
    return e;
}

err source_open(const comm *c, const char *path, source *out) {
    memset(out, 0, sizeof *out);
    out->path = path;
    err e;
    if (archive_is_one(path)) {
        e = archive_open(c, path, &out->ar);
        if (!e.code && source_is_gguf(archive_manifest(out->ar)))
            e = err_make(ERR_INPUT, path,
                         "measure with llama.cpp, or quantize with archive.form=pack-quantized "
                         "weights.group=32 archive.dtype=fp16, which gives the same codes",
                         "holds GGUF, which is not read here");
        if (!e.code) out->files = archive_files(out->ar);
    } else {
        e = fileset_open_dir(c, path, &out->own_files);
        if (e.code) return not_a_folder(path, e);
        if (!e.code) out->files = out->own_files;
    }
    if (!e.code) e = hf_checkpoint_open(c, out->files, &out->ck);
    if (!e.code) e = comm_agree(c, understand(out), "reading the model's description", NULL);
    return e.code ? e : take_stored_head(c, out);
}

void source_close(source *s) {
    hf_checkpoint_destroy(&s->ck);
    fileset_destroy(&s->own_files);
    archive_close(&s->ar);
    json_decref(s->own_recipe);
    s->own_recipe = NULL;
}

err source_rotations_beside(const char *out, const char *hint, char **path) {
    *path = file_join(out, "rotations.safetensors");
    if (file_exists(*path)) return err_none();
    free(*path);
    *path = NULL;
    return err_make(ERR_INPUT, out, hint,
                    "no rotations.safetensors is there, which quantize writes beside the archive");
}

err source_check_window(const source *s, const char *what, int64_t window) {
    if (window > s->cfg.max_positions && s->cfg.rope.kind == ROPE_DYNAMIC)
        return err_make(ERR_INPUT, what, "use shorter windows",
                        "windows of %" PRId64 " tokens with rope scaling \"dynamic\", whose "
                        "frequencies change beyond %" PRId64 " positions (max_position_embeddings)",
                        window, s->cfg.max_positions);
    if (window > s->cfg.max_positions)
        log_line(LOG_RUN,
                 "warning: %s: windows of %" PRId64
                 " tokens, and config.json has seen no more than "
                 "%" PRId64 " positions (max_position_embeddings)",
                 what, window, s->cfg.max_positions);
    return err_none();
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
    const hf_tensor *t = hf_checkpoint_find(s->ck, EMBEDDING);
    return (runtime_facts){
        .linears = s->linears,
        .dtype = t ? t->info.dtype : ST_BF16,
        .cfg = &s->cfg,
        .cache = s->linears.fp8_cache
                     ? CACHE_FP8_SCALES
                     : runtime_cache_of(json_object_get(hf_checkpoint_config(s->ck), "spinshard")),
        .tp = tp,
    };
}

err source_tokenizer(const source *s, tokenizer **out) {
    char *text;
    size_t len;
    *out = NULL;
    if (!fileset_find(s->files, "tokenizer.json", NULL, NULL, NULL) &&
        fileset_find(s->files, "tokenizer.model", NULL, NULL, NULL))
        return err_make(ERR_INPUT, s->path,
                        "make one with transformers: AutoTokenizer.from_pretrained(DIR)"
                        ".save_pretrained(DIR)",
                        "there is no tokenizer.json, and tokenizer.model is not read");
    err e = fileset_read_all(s->files, "tokenizer.json", MAX_TOKENIZER_BYTES, &text, &len);
    if (e.code) return e;
    e = tokenizer_create(text, len, "tokenizer.json", out);
    free(text);
    int32_t ids[TOKENIZER_MAX_AFFIX];
    if (!e.code) e = check_ids(s, *out, ids, tokenizer_prefix(*out, ids), "its post-processor");
    if (e.code) tokenizer_destroy(out);
    mem_give_back(); /* the parsed file is many times the tokenizer: give it back to the node */
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
