/* The tensor list of the config is looked up name by name; what the checkpoint has beyond it is
 * reported, but for known leftovers. */
#include "pipeline/weights/check_model.h"

#include "base/log.h"
#include "model/tensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* "[4096, 11008] BF16" */
static void describe(const st_tensor *t, char *text, size_t size) {
    size_t n = (size_t)snprintf(text, size, "[");
    for (int i = 0; i < t->n_dims && n < size; i++)
        n += (size_t)snprintf(text + n, size - n, i ? ", %" PRId64 : "%" PRId64, t->shape[i]);
    if (n < size) snprintf(text + n, size - n, "] %s", st_dtype_name(t->dtype));
}

static bool has_shape(const st_tensor *t, const llama_tensor *want) {
    return t->n_dims == want->n_dims && t->shape[0] == want->rows &&
           (want->n_dims == 1 || t->shape[1] == want->cols);
}

/* The place of a packed linear, whose parts shard/loader_rules.h checks. */
static bool is_packed(const hf_checkpoint *ck, const llama_tensor *want) {
    char name[sizeof want->name + 8];
    if (!llama_role_is_linear(want->role)) return false;
    snprintf(name, sizeof name, "%s_packed", want->name);
    return hf_checkpoint_find(ck, name) != NULL;
}

static bool ends_with(const char *name, const char *end) {
    size_t n = strlen(name), m = strlen(end);
    return n >= m && !strcmp(name + n - m, end);
}

/* A tensor of that name but for its beginning, which wrappers of training leave in files
 * ("module.model.", "_orig_mod.model.", "base_model.model.model."), or NULL. */
static const char *alike(const hf_checkpoint *ck, const char *want) {
    const char *rest = strncmp(want, "model.", 6) ? want : want + 6;
    const size_t n = strlen(rest);
    for (int64_t i = 0; i < hf_checkpoint_count(ck); i++) {
        const char *name = hf_checkpoint_at(ck, i)->info.name;
        const size_t before = ends_with(name, rest) ? strlen(name) - n : 0;
        if (!strcmp(name, rest) || (before && name[before - 1] == '.')) return name;
    }
    return NULL;
}

static err check_tensor(const hf_checkpoint *ck, const llama_tensor *want, const hf_tensor *t) {
    const char *where = fileset_where(hf_checkpoint_fileset(ck));
    const char *hint = "config.json and the weights are of different models, or files are missing";
    char found[160] = "nothing", need[80];
    if (t) describe(&t->info, found, sizeof found);
    if (want->n_dims == 2)
        snprintf(need, sizeof need, "[%" PRId64 ", %" PRId64 "]", want->rows, want->cols);
    else
        snprintf(need, sizeof need, "[%" PRId64 "]", want->rows);
    const char *other = t ? NULL : alike(ck, want->name);
    if (other) {
        snprintf(found, sizeof found, "nothing, but %.140s", other);
        hint = "the names begin otherwise than transformers writes them: load the model there and "
               "save it with save_pretrained";
    } else if (!t && want->role == ROLE_HEAD) {
        hint = "set tie_word_embeddings to true in config.json if the head is the embedding";
    }
    if (!t || !has_shape(&t->info, want))
        return err_make(ERR_INPUT, where, hint, "tensor %s: config.json demands %s, found %s",
                        want->name, need, found);
    st_dtype d = t->info.dtype;
    if (d == ST_F32 || d == ST_F16 || d == ST_BF16) return err_none();
    return err_make(ERR_INPUT, where, "take the checkpoint in F32, F16 or BF16",
                    "tensor %s: F32, F16 or BF16 is due, found %s", want->name, found);
}

/* Buffers that old checkpoints carry, the head that is tied anyway, and the parts of packed
 * linears. */
static bool is_expected_extra(const llama_config *cfg, const char *name) {
    return ends_with(name, "rotary_emb.inv_freq") ||
           (cfg->tied && !strcmp(name, "lm_head.weight")) || strstr(name, "_proj.weight_") != NULL;
}

static void report_extras(const llama_config *cfg, const hf_checkpoint *ck, const bool *used) {
    int64_t extras = 0;
    const char *first = NULL;
    for (int64_t i = 0; i < hf_checkpoint_count(ck); i++) {
        const char *name = hf_checkpoint_at(ck, i)->info.name;
        if (used[i] || is_expected_extra(cfg, name)) continue;
        if (!extras++) first = name;
    }
    if (extras)
        log_line(
            LOG_RUN, "%s: %" PRId64 " tensors are no part of the model and are not read (%.160s%s)",
            fileset_where(hf_checkpoint_fileset(ck)), extras, first, extras > 1 ? ", ..." : "");
}

err check_model(const llama_config *cfg, const hf_checkpoint *ck) {
    bool *used = calloc((size_t)hf_checkpoint_count(ck) + 1, sizeof *used);
    if (!used) return err_make(ERR_NOFIT, NULL, NULL, "no memory for the list of tensors");
    err e = err_none();
    for (int64_t i = 0; i < llama_tensor_count(cfg) && !e.code; i++) {
        llama_tensor want;
        llama_tensor_at(cfg, i, &want);
        const hf_tensor *t = hf_checkpoint_find(ck, want.name);
        if (t) used[t - hf_checkpoint_at(ck, 0)] = true;
        if (t || !is_packed(ck, &want)) e = check_tensor(ck, &want, t);
    }
    if (!e.code) report_extras(cfg, ck, used);
    free(used);
    return e;
}
