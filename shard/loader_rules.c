/* Each rule looks at one key or tensor and adds a finding; nothing stops at the first. */
#include "shard/loader_rules.h"

#include "io/fileset.h"
#include "model/tensors.h"
#include "shard/input_groups.h"
#include "shard/loader_targets.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_INDEX_BYTES = 64 << 20 };
static const char CONFIG[] = "config.json", INDEX[] = "model.safetensors.index.json";

/* What one check carries along. */
typedef struct check {
    const hf_checkpoint *ck;
    const llama_config *cfg;
    form_scheme scheme;
    st_dtype dtype;  /* as config.json says */
    int64_t n_known; /* tensors of the checkpoint that the config demands */
    int64_t n_odd;   /* linears whose sizes are no multiples of 32 */
    char odd[128];   /* the first of them */
    int64_t n_mixed; /* scales of another type than the model */
    char mixed[128]; /* the first of them */
    loader_report *report;
} check;

static void add_finding(check *c, bool fatal, const char *where, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

static void add_finding(check *c, bool fatal, const char *where, const char *fmt, ...) {
    loader_report *r = c->report;
    r->n_fatal += fatal;
    r->n_notes += !fatal;
    if (r->n == LOADER_MAX) return;
    loader_finding *f = &r->items[r->n++];
    f->fatal = fatal;
    snprintf(f->where, sizeof f->where, "%s", where);
    va_list args;
    va_start(args, fmt);
    vsnprintf(f->what, sizeof f->what, fmt, args);
    va_end(args);
}

/* quantization_config */

static err bad_key(const char *where, const char *key, const char *want) {
    return err_make(ERR_VERIFY, where, NULL, "quantization_config: \"%s\" must be %s", key, want);
}

static bool is_text(const json_t *o, const char *key, const char *want) {
    const json_t *v = json_object_get(o, key);
    return json_is_string(v) && !strcmp(json_string_value(v), want);
}

static bool is_absent(const json_t *o, const char *key) {
    const json_t *v = json_object_get(o, key);
    return !v || json_is_null(v);
}

static bool is_empty(const json_t *o, const char *key) {
    const json_t *v = json_object_get(o, key);
    return is_absent(o, key) || (json_is_object(v) && json_object_size(v) == 0);
}

static bool lists_only(const json_t *o, const char *key, const char *want) {
    const json_t *v = json_object_get(o, key), *first = json_array_get(v, 0);
    return json_array_size(v) == 1 && json_is_string(first) &&
           !strcmp(json_string_value(first), want);
}

static err parse_weights(const json_t *w, const char *where, form_scheme *out) {
    const json_t *bits = json_object_get(w, "num_bits"), *sym = json_object_get(w, "symmetric");
    const json_t *dynamic = json_object_get(w, "dynamic"), *size = json_object_get(w, "group_size");
    json_int_t n = json_integer_value(bits);
    if (!json_is_integer(bits) || n < 2 || n > 8) return bad_key(where, "num_bits", "2 to 8");
    if (!is_text(w, "type", "int")) return bad_key(where, "type", "\"int\"");
    if (!json_is_boolean(sym)) return bad_key(where, "symmetric", "true or false");
    if (dynamic && !json_is_false(dynamic)) return bad_key(where, "dynamic", "false");
    if (is_text(w, "actorder", "group")) return bad_key(where, "actorder", "null or static");
    out->bits = (int)n;
    out->symmetric = json_is_true(sym);
    if (is_text(w, "strategy", "channel"))
        return is_absent(w, "group_size") ? err_none() : bad_key(where, "group_size", "null");
    if (!is_text(w, "strategy", "group"))
        return bad_key(where, "strategy", "\"group\" or \"channel\"");
    out->group = json_integer_value(size);
    return out->group > 0 ? err_none() : bad_key(where, "group_size", "a positive integer");
}

/* Inputs: integers, symmetric, scales taken at run time, one for a token or for a group of its
 * entries. */
static err parse_inputs(const json_t *a, const char *where, form_scheme *out) {
    const json_int_t bits = json_integer_value(json_object_get(a, "num_bits")),
                     group = json_integer_value(json_object_get(a, "group_size"));
    const bool grouped = is_text(a, "strategy", "group");
    if (!json_is_object(a)) return bad_key(where, "input_activations", "an object");
    if (bits != 8 && bits != 4) return bad_key(where, "input_activations.num_bits", "8 or 4");
    if (!is_text(a, "type", "int")) return bad_key(where, "input_activations.type", "\"int\"");
    if (!json_is_true(json_object_get(a, "symmetric")))
        return bad_key(where, "input_activations.symmetric", "true");
    if (!grouped && !is_text(a, "strategy", "token"))
        return bad_key(where, "input_activations.strategy", "\"token\" or \"group\"");
    if (grouped ? group < 1 : !is_absent(a, "group_size"))
        return bad_key(where, "input_activations.group_size", "positive, or null by token");
    if (!json_is_true(json_object_get(a, "dynamic")))
        return bad_key(where, "input_activations.dynamic", "true");
    out->inputs = (form_inputs){.bits = (int)bits, .group = grouped ? group : 0};
    return err_none();
}

/* The one transform that is written: R4, in one group of one application. */
static err parse_r4(const json_t *transform, const char *where, form_online *out) {
    const json_t *groups = json_object_get(transform, "config_groups"),
                 *scheme = json_object_get(groups, "R4"),
                 *apply = json_array_get(json_object_get(scheme, "apply"), 0);
    const json_int_t block = json_integer_value(json_object_get(scheme, "head_dim"));
    const bool known = is_text(scheme, "type", "hadamard");
    if (!json_is_object(scheme) || json_object_size(groups) != 1 ||
        json_array_size(json_object_get(scheme, "apply")) != 1 ||
        !lists_only(apply, "targets", FORM_DOWN_TARGET) || !is_text(apply, "location", "input") ||
        json_is_true(json_object_get(apply, "inverse")))
        return bad_key(where, "transform_config", "R4 at the input of down_proj, or empty");
    if (known && (block < 1 || block > FORM_R4_MOST || (block & (block - 1))))
        return bad_key(where, "transform_config.head_dim", "a power of two up to 32768");
    *out = (form_online){.r4 = true, .r4_block = known ? block : 0};
    return err_none();
}

/* The form int-quantized has inputs always, of 8 bits by token. */
static err parse_int8_inputs(const json_t *a, const char *where, form_scheme *out) {
    err e = parse_inputs(a, where, out);
    if (!e.code && out->inputs.bits != 8) e = bad_key(where, "input_activations.num_bits", "8");
    if (!e.code && out->inputs.group) e = bad_key(where, "input_activations.strategy", "\"token\"");
    return e;
}

static err parse_group(const json_t *group, const char *where, form_scheme *out) {
    if (!is_absent(group, "format") && !is_text(group, "format", out->form->name))
        return bad_key(where, "format", "the same in the group");
    if (!is_absent(group, "output_activations"))
        return bad_key(where, "output_activations", "null");
    err e = parse_weights(json_object_get(group, "weights"), where, out);
    if (!e.code && out->form->refuse(out).code) e = bad_key(where, "symmetric", "true");
    const json_t *inputs = json_object_get(group, "input_activations");
    if (!e.code && out->form->byte_codes) return parse_int8_inputs(inputs, where, out);
    if (!e.code && !is_absent(group, "input_activations")) e = parse_inputs(inputs, where, out);
    return e;
}

/* The groups as they stand, and which of them each linear belongs to. */
typedef struct group_list {
    const json_t *at[LOADER_GROUPS];
    int n;
    int *owners; /* [layers, LLAMA_LINEARS]; owned */
} group_list;

static err find_groups(const json_t *groups, const json_t *ignore, int64_t layers,
                       const char *where, group_list *out) {
    const json_t *targets[LOADER_GROUPS];
    const char *key;
    json_t *g;
    *out = (group_list){.n = 0};
    if (!json_object_size(groups) || json_object_size(groups) > LOADER_GROUPS)
        return bad_key(where, "config_groups", "a few groups");
    json_object_foreach((json_t *)(uintptr_t)groups, key, g) {
        targets[out->n] = json_object_get(g, "targets");
        out->at[out->n++] = g;
    }
    out->owners = calloc((size_t)(layers * LLAMA_LINEARS + 1), sizeof *out->owners);
    if (!out->owners) abort();
    return loader_targets_owners(targets, out->n, ignore, layers, where, out->owners);
}

/* Of two groups: nothing but the bits of inputs may differ. */
static err check_alike(const form_scheme *a, const form_scheme *b, const char *where) {
    if (a->bits != b->bits || a->group != b->group || a->symmetric != b->symmetric)
        return bad_key(where, "config_groups", "alike in their weights");
    if (a->inputs.bits < 16 && b->inputs.bits < 16 && a->inputs.group != b->inputs.group)
        return bad_key(where, "config_groups", "alike in the groups of their inputs");
    return err_none();
}

/* All groups into one scheme, whose `form` and `online` are known. */
static err parse_groups(const group_list *groups, int64_t layers, const char *where,
                        form_scheme *out) {
    form_scheme all[LOADER_GROUPS];
    int *bits = calloc((size_t)(layers * LLAMA_LINEARS + 1), sizeof *bits);
    err e = err_none();
    if (!bits) abort();
    for (int g = 0; g < groups->n && !e.code; g++) {
        all[g] = *out;
        e = parse_group(groups->at[g], where, &all[g]);
        for (int h = 0; h < g && !e.code; h++) e = check_alike(&all[h], &all[g], where);
    }
    if (!e.code) {
        *out = all[0];
        for (int g = 0; g < groups->n; g++)
            if (all[g].inputs.bits < 16) out->inputs.group = all[g].inputs.group;
        for (int64_t i = 0; i < layers * LLAMA_LINEARS; i++)
            bits[i] = all[groups->owners[i]].inputs.bits;
        const char *wrong = groups->n > 1 ? input_groups_read(bits, layers, &out->inputs) : NULL;
        if (wrong) e = bad_key(where, "config_groups", wrong);
    }
    free(bits);
    return e;
}

/* FP8 with a scale for all keys of a layer and one for its values, which is what vLLM reads too. */
static err parse_cache(const json_t *kv, const char *where, form_scheme *out) {
    const json_t *dynamic = json_object_get(kv, "dynamic");
    if (json_integer_value(json_object_get(kv, "num_bits")) != 8 || !is_text(kv, "type", "float") ||
        !is_text(kv, "strategy", "tensor") || json_is_true(dynamic) ||
        !json_is_true(json_object_get(kv, "symmetric")))
        return bad_key(where, "kv_cache_scheme",
                       "null, or float of 8 bits, symmetric, with one scale for a tensor");
    out->fp8_cache = true;
    return err_none();
}

static const char *const ORIGINAL = "take the checkpoint that it was made from, in 16 or 32 bits";

/* A method that is not compressed-tensors says it in its own way. */
static err parse_method(const form *f, const json_t *q, const char *where, form_scheme *out) {
    const char *wrong = f->method.parse(q, out);
    if (wrong) return err_make(ERR_VERIFY, where, ORIGINAL, "quantization_config: %s", wrong);
    out->form = f;
    return err_none();
}

/* Who quantized the weights. Old files of bitsandbytes do not name it. */
static const char *method_of(const json_t *q) {
    const char *method = json_string_value(json_object_get(q, "quant_method"));
    if (method) return method;
    if (json_object_get(q, "load_in_4bit") || json_object_get(q, "load_in_8bit") ||
        json_object_get(q, "bnb_4bit_quant_type"))
        return "bitsandbytes";
    return "an unnamed method";
}

/* The form of compressed-tensors that "format" names. Of what others quantize otherwise there is
 * nothing to start from. */
static err find_form(const json_t *q, const char *where, const form **out) {
    const char *method = method_of(q), *format = json_string_value(json_object_get(q, "format"));
    const form *f = format ? form_find(format) : NULL;
    if (strcmp(method, "compressed-tensors"))
        return err_make(ERR_VERIFY, where, ORIGINAL, "the model is already quantized by %.60s",
                        method);
    if (!f || form_has_files(f) || f->method.name)
        return err_make(ERR_VERIFY, where, ORIGINAL,
                        "compressed-tensors in the format \"%.60s\", which is not read here",
                        format ? format : "(none stated)");
    *out = f;
    return err_none();
}

err loader_scheme_parse(const json_t *config, const char *where, form_scheme *out) {
    const json_t *q = json_object_get(config, "quantization_config");
    *out = (form_scheme){.scale_dtype = ST_BF16, .inputs = {.bits = 16}};
    if (is_absent(config, "quantization_config")) return err_none();
    if (!json_is_object(q))
        return err_make(ERR_VERIFY, where, NULL, "\"quantization_config\" is not an object");
    const char *method = json_string_value(json_object_get(q, "quant_method"));
    const form *other = method ? form_find_method(method) : NULL;
    if (other) return parse_method(other, q, where, out);
    const json_t *groups = json_object_get(q, "config_groups");
    const form *f = NULL;
    err e = find_form(q, where, &f);
    if (e.code) return e;
    if (!is_text(q, "quantization_status", "compressed") &&
        !is_text(q, "quantization_status", "frozen"))
        return bad_key(where, "quantization_status", "\"compressed\" or \"frozen\"");
    if (!is_empty(q, "sparsity_config")) return bad_key(where, "sparsity_config", "empty");
    group_list found = {.n = 0};
    int64_t layers = 0;
    e = json_opt_int(config, "num_hidden_layers", 0, LLAMA_MAX_LAYERS, where, &layers);
    if (!e.code) e = find_groups(groups, json_object_get(q, "ignore"), layers, where, &found);
    out->form = f;
    if (!e.code && !is_empty(q, "transform_config"))
        e = parse_r4(json_object_get(q, "transform_config"), where, &out->online);
    if (!e.code) e = parse_groups(&found, layers, where, out);
    free(found.owners);
    if (!e.code && !is_absent(q, "kv_cache_scheme"))
        e = parse_cache(json_object_get(q, "kv_cache_scheme"), where, out);
    if (e.code) out->form = NULL;
    return e;
}

/* config.json beside it */

static void check_dtype(check *c) {
    static const struct {
        const char *name;
        st_dtype dtype;
    } known[] = {{"bfloat16", ST_BF16}, {"float16", ST_F16}, {"float32", ST_F32}};
    const json_t *config = hf_checkpoint_config(c->ck);
    const char *key = is_absent(config, "dtype") ? "torch_dtype" : "dtype";
    for (size_t i = 0; i < 3; i++)
        if (is_text(config, key, known[i].name)) {
            c->dtype = known[i].dtype;
            return;
        }
    c->dtype = ST_BF16;
    add_finding(c, true, CONFIG, "%s is not bfloat16, float16 or float32", key);
}

/* R4 by a note alone, as archives of old have it. */
static void check_online(check *c) {
    const json_t *own = json_object_get(hf_checkpoint_config(c->ck), "spinshard"), *x;
    bool noted = false;
    size_t i;
    json_array_foreach(json_object_get(own, "online"), i, x) noted |=
        json_is_string(x) && !strcmp(json_string_value(x), "r4");
    if (noted && !c->scheme.online.r4)
        add_finding(c, true, CONFIG,
                    "needs R4 while it runs and says so to spinshard eval alone: transformers and "
                    "vLLM load it and give wrong results; write it anew");
}

/* Tensors */

static const hf_tensor *find_tensor(check *c, const char *name) {
    const hf_tensor *t = hf_checkpoint_find(c->ck, name);
    /* An alias is found under a name that is not its own; loaders would miss it. */
    if (t && strcmp(t->info.name, name)) t = NULL;
    c->n_known += t != NULL;
    return t;
}

static void check_place(check *c, const hf_tensor *t) {
    uint64_t begin = t->info.begin, size = (uint64_t)st_dtype_bytes(t->info.dtype);
    if (size && begin % size)
        add_finding(c, false, t->info.name, "begins at byte %" PRIu64 ", not aligned to %s", begin,
                    st_dtype_name(t->info.dtype));
}

static const hf_tensor *want_tensor(check *c, const char *name, st_dtype dtype, int n_dims,
                                    int64_t rows, int64_t cols) {
    const hf_tensor *t = find_tensor(c, name);
    if (!t) {
        add_finding(c, true, name, "is missing");
        return NULL;
    }
    const st_tensor *s = &t->info;
    bool fits = s->n_dims == n_dims && s->shape[0] == rows && (n_dims == 1 || s->shape[1] == cols);
    if (!fits)
        add_finding(c, true, name, "has another shape than [%" PRId64 ", %" PRId64 "]", rows, cols);
    if (s->dtype != dtype)
        add_finding(c, true, name, "is %s, should be %s", st_dtype_name(s->dtype),
                    st_dtype_name(dtype));
    check_place(c, t);
    return fits && s->dtype == dtype ? t : NULL;
}

static err check_stored_shape(check *c, const char *name, const llama_tensor *t) {
    int64_t shape[2];
    const hf_tensor *s = want_tensor(c, name, ST_I64, 1, 2, 1);
    if (!s) return err_none();
    err e = hf_checkpoint_read(c->ck, s, shape, NULL);
    if (!e.code && (shape[0] != t->rows || shape[1] != t->cols))
        add_finding(c, true, name,
                    "holds [%" PRId64 ", %" PRId64 "], should be [%" PRId64 ", %" PRId64 "]",
                    shape[0], shape[1], t->rows, t->cols);
    return e;
}

static void note_odd(check *c, const llama_tensor *t) {
    if (t->rows % 32 == 0 && t->cols % 32 == 0) return;
    if (!c->n_odd++) snprintf(c->odd, sizeof c->odd, "%s", t->name);
}

/* Of one type through the whole archive, by rights the model's. */
static void check_scale(check *c, const char *name, const form_shape *want) {
    const hf_tensor *scale = hf_checkpoint_find(c->ck, name);
    st_dtype stored = scale ? scale->info.dtype : c->dtype;
    bool is_float = stored == ST_BF16 || stored == ST_F16 || stored == ST_F32;
    want_tensor(c, name, is_float ? stored : c->dtype, want->n_dims, want->shape[0],
                want->shape[1]);
    const st_dtype usual = c->scheme.form->method.name ? c->scheme.form->method.scales : c->dtype;
    if (is_float && stored != usual && !c->n_mixed++)
        snprintf(c->mixed, sizeof c->mixed, "%.127s", name);
}

static err check_part(check *c, const llama_tensor *t, const form_slot *slot) {
    char name[160];
    form_tensor_name(t->name, slot->suffix, name);
    const form_shape want = slot->shape(&c->scheme, t->rows, t->cols);
    if (slot->part == FORM_SIZES) return check_stored_shape(c, name, t);
    if (slot->part == FORM_SCALES)
        check_scale(c, name, &want);
    else
        want_tensor(c, name, want.dtype, want.n_dims, want.shape[0], want.shape[1]);
    return err_none();
}

/* A scale of the FP8 cache: what keys or values are divided by. */
static err check_cache_scale(check *c, const llama_tensor *t) {
    char name[160];
    float scale;
    form_cache_name(t->name, name);
    const hf_tensor *s = want_tensor(c, name, ST_F32, 1, 1, 1);
    if (!s) return err_none();
    err e = hf_checkpoint_read(c->ck, s, &scale, NULL);
    if (!e.code && !(scale > 0 && isfinite(scale)))
        add_finding(c, true, name, "is %g: no scale", (double)scale);
    return e;
}

static err check_linear(check *c, const llama_tensor *t) {
    const form_scheme *s = &c->scheme;
    if (s->group && t->cols % s->group)
        add_finding(c, true, t->name, "groups of %" PRId64 " do not divide its input of %" PRId64,
                    s->group, t->cols);
    note_odd(c, t);
    bool plain_name = false; /* the form has a tensor of that name itself */
    err e = err_none();
    for (int i = 0; i < s->form->n_slots && !e.code; i++) {
        const form_slot *slot = &s->form->slots[i];
        plain_name |= !strcmp(slot->suffix, ".weight");
        if (form_stores(s, slot)) e = check_part(c, t, slot);
    }
    if (!e.code && s->fp8_cache && (t->role == ROLE_K || t->role == ROLE_V))
        e = check_cache_scale(c, t);
    if (!plain_name && hf_checkpoint_find(c->ck, t->name))
        add_finding(c, true, t->name, "stands beside its packed form");
    return e;
}

static err check_tensors(check *c) {
    err e = err_none();
    int64_t n = llama_tensor_count(c->cfg);
    for (int64_t i = 0; i < n && !e.code; i++) {
        llama_tensor t;
        llama_tensor_at(c->cfg, i, &t);
        if (llama_role_is_linear(t.role))
            e = check_linear(c, &t);
        else
            want_tensor(c, t.name, c->dtype, t.n_dims, t.rows, t.cols);
    }
    const form_scheme *s = &c->scheme;
    if (s->online.r4 && !e.code) {
        const form_shape want = form_r4_slot.shape(s, 0, 0);
        want_tensor(c, "model.layers.0.mlp.down_proj" FORM_R4_SUFFIX, c->dtype, 2, want.shape[0],
                    want.shape[1]);
    }
    if (c->n_odd)
        add_finding(c, false, c->odd,
                    "vLLM's kernels want inputs and outputs in multiples of 32; not so in %" PRId64
                    " linears, this is the first",
                    c->n_odd);
    if (c->n_mixed)
        add_finding(c, false, c->mixed,
                    "is not of the model's type (so are %" PRId64 " scales); vLLM expects one type",
                    c->n_mixed);
    if (c->cfg->tied && hf_checkpoint_find(c->ck, "lm_head.weight"))
        add_finding(c, true, "lm_head.weight",
                    "is stored, but config.json ties the head to the embedding");
    return e;
}

/* The tensors that were asked for are c->n_known; whatever else is there no loader knows. */
static void check_strangers(check *c) {
    int64_t stored = 0, named = hf_checkpoint_count(c->ck);
    for (int i = 0; i < hf_checkpoint_shards(c->ck); i++) {
        const st_header *h = hf_checkpoint_header(c->ck, i);
        const char *format = st_header_metadata(h, "format");
        stored += st_header_count(h);
        if (!format || strcmp(format, "pt"))
            add_finding(c, true, hf_checkpoint_shard_name(c->ck, i),
                        "its metadata lacks \"format\": \"pt\", transformers refuses it");
    }
    if (stored != named)
        add_finding(c, true, INDEX, "the shards hold %" PRId64 " tensors, the index names %" PRId64,
                    stored, named);
    if (named > c->n_known)
        add_finding(c, true, INDEX, "%" PRId64 " tensors belong to nothing in this model",
                    named - c->n_known);
}

static err check_index(check *c) {
    const fileset *fs = hf_checkpoint_fileset(c->ck);
    char *text;
    size_t len;
    json_t *o;
    if (!fileset_find(fs, INDEX, NULL, NULL, NULL)) {
        add_finding(c, hf_checkpoint_shards(c->ck) > 1, INDEX, "is missing");
        return err_none();
    }
    err e = fileset_read_all(fs, INDEX, MAX_INDEX_BYTES, &text, &len);
    if (e.code) return e;
    e = json_parse(text, len, INDEX, &o);
    free(text);
    if (e.code) return e;
    const json_t *size = json_object_get(json_object_get(o, "metadata"), "total_size");
    uint64_t want = hf_checkpoint_bytes(c->ck);
    if (!json_is_integer(size) || (uint64_t)json_integer_value(size) != want)
        add_finding(c, true, INDEX, "its total_size is not the %" PRIu64 " bytes of the tensors",
                    want);
    json_decref(o);
    return e;
}

err loader_rules_check(const hf_checkpoint *ck, const llama_config *cfg, loader_report *out) {
    *out = (loader_report){.items = calloc(LOADER_MAX, sizeof *out->items)};
    if (!out->items) abort();
    check c = {.ck = ck, .cfg = cfg, .report = out};
    err scheme = loader_scheme_parse(hf_checkpoint_config(ck), CONFIG, &c.scheme);
    if (!c.scheme.form) {
        add_finding(&c, true, CONFIG, "%s",
                    scheme.code ? scheme.what : "there is no quantization_config");
        return err_none();
    }
    check_dtype(&c);
    check_online(&c);
    err e = check_tensors(&c);
    if (!e.code) check_strangers(&c);
    if (!e.code) e = check_index(&c);
    return e;
}

void loader_report_clear(loader_report *r) {
    free(r->items);
    *r = (loader_report){0};
}

err loader_report_err(const loader_report *r) {
    if (!r->n_fatal) return err_none();
    for (int64_t i = 0; i < r->n; i++)
        if (r->items[i].fatal)
            return err_make(ERR_VERIFY, r->items[i].where, NULL,
                            "%s (%" PRId64 " such findings in all)", r->items[i].what, r->n_fatal);
    return err_make(ERR_VERIFY, NULL, NULL, "%" PRId64 " findings", r->n_fatal);
}
