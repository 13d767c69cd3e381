/* config.json is the source's tree with keys set or removed; the model card is composed of
 * sentences that depend on the recipe. */
#include "shard/small_files.h"

#include "base/file.h"
#include "base/file_kind.h"
#include "base/log.h"
#include "base/yaml.h"
#include "shard/card_front.h"
#include "shard/entry_names.h"
#include "shard/input_groups.h"
#include "shard/runtimes.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_COPIED_BYTES = 256 << 20, INDENT = 2 };

static const char *const COPIED[] = {
    "added_tokens.json", "chat_template.jinja", "chat_template.json",      "generation_config.json",
    "merges.txt",        "params.json",         "special_tokens_map.json", "tekken.json",
    "tokenizer.json",    "tokenizer.model",     "tokenizer.model.v3",      "tokenizer_config.json",
    "vocab.json",
};
/* Licences ask to be passed on; they come under many endings. */
static const char *const COPIED_PREFIX[] = {"LICENSE", "LICENCE", "NOTICE", "USE_POLICY",
                                            "COPYING"};

static bool ends_with(const char *name, const char *end) {
    const size_t n = strlen(name), m = strlen(end);
    return n >= m && !strcmp(name + n - m, end);
}

bool small_file_is_copied(const char *name) {
    if (entry_file_fault(name)) return false;
    if (strchr(name, '/')) return ends_with(name, ".jinja"); /* what transformers reads there */
    for (size_t i = 0; i < sizeof COPIED / sizeof *COPIED; i++)
        if (!strcmp(name, COPIED[i])) return true;
    for (size_t i = 0; i < sizeof COPIED_PREFIX / sizeof *COPIED_PREFIX; i++)
        if (!strncmp(name, COPIED_PREFIX[i], strlen(COPIED_PREFIX[i]))) return true;
    return false;
}

/* The text of a value with reals as short as they can be without changing (1e-05 stays 1e-05). */
static err short_text(const json_t *v, size_t flags, char **out, size_t *len) {
    for (size_t digits = 15; digits <= 17; digits++) {
        char *text = json_dumps(v, flags | JSON_INDENT(INDENT) | JSON_REAL_PRECISION(digits));
        if (!text) break;
        json_t *again = json_loads(text, 0, NULL);
        bool same = digits == 17 || (again && json_equal(again, (json_t *)v));
        json_decref(again);
        json_unmark(text);
        size_t n = strlen(text);
        char *ended = same ? realloc(text, n + 2) : NULL;
        if (ended) {
            memcpy(ended + n, "\n", 2);
            *out = ended;
            *len = n + 1;
            return err_none();
        }
        free(text);
    }
    return err_make(ERR_BUG, "small files", NULL, "cannot write a JSON value");
}

/* config.json */

static const char *torch_name(st_dtype t) {
    return t == ST_BF16 ? "bfloat16" : t == ST_F16 ? "float16" : "float32";
}

static json_t *weights_json(const form_scheme *s) {
    json_t *w = json_pack("{s:i, s:s, s:b, s:s}", "num_bits", s->bits, "type", "int", "symmetric",
                          s->symmetric, "strategy", s->group ? "group" : "channel");
    json_object_set_new(w, "group_size", s->group ? json_integer(s->group) : json_null());
    json_object_set_new(w, "dynamic", json_false());
    json_object_set_new(w, "actorder", json_null());
    return w;
}

/* Inputs of the linears, whose scales are taken at run time. */
static json_t *inputs_json(const form_inputs *in) {
    if (in->bits >= 16) return json_null();
    json_t *a =
        json_pack("{s:i, s:s, s:b, s:s, s:b}", "num_bits", in->bits, "type", "int", "symmetric",
                  true, "strategy", in->group ? "group" : "token", "dynamic", true);
    if (in->group) json_object_set_new(a, "group_size", json_integer(in->group));
    return a;
}

/* R4 for readers that know transform_config. A block that it cannot say gets a type that they
 * refuse, which is better than one that they would apply. */
static json_t *transform_config(const form_online *online) {
    const bool known = online->r4_block > 0;
    json_t *scheme = json_pack("{s:s, s:[{s:[s], s:s}]}", "type",
                               known ? "hadamard" : "R4-of-spinshard-eval-alone", "apply",
                               "targets", FORM_DOWN_TARGET, "location", "input");
    if (known) json_object_set_new(scheme, "head_dim", json_integer(online->r4_block));
    return json_pack("{s:{s:o}}", "config_groups", "R4", scheme);
}

static json_t *kv_cache_scheme(const form_scheme *s) {
    if (!s->fp8_cache) return json_null();
    return json_pack("{s:i, s:s, s:s, s:b, s:b}", "num_bits", 8, "type", "float", "strategy",
                     "tensor", "symmetric", true, "dynamic", false);
}

/* The fewest keys that say it: older readers refuse keys that they do not know. Packed words with
 * inputs say their form once more, in the group: without it readers take the form that they would
 * write themselves, which is int-quantized (compressed-tensors 0.20). */
static json_t *config_group(const form_scheme *s, json_t *targets, form_inputs inputs) {
    json_t *group =
        json_pack("{s:o, s:o, s:o, s:n}", "targets", targets, "weights", weights_json(s),
                  "input_activations", inputs_json(&inputs), "output_activations");
    if (s->inputs.bits < 16 && !s->form->byte_codes)
        json_object_set_new(group, "format", json_string(s->form->name));
    if (s->online.r4) json_object_set_new(group, FORM_R4_KEY, json_true());
    return group;
}

/* A group for all inputs of the same bits. */
static json_t *config_groups(const form_scheme *s, int64_t layers) {
    json_t *all = json_object();
    int bits[INPUT_GROUPS];
    const int n = input_groups_bits(&s->inputs, layers, bits);
    for (int i = 0; i < n; i++) {
        char name[24];
        snprintf(name, sizeof name, "group_%d", i);
        const form_inputs inputs = {.bits = bits[i], .group = s->inputs.group};
        json_object_set_new(
            all, name, config_group(s, input_groups_targets(&s->inputs, layers, bits[i]), inputs));
    }
    return all;
}

static json_t *quantization_config(const form_scheme *s, int64_t layers) {
    if (s->form->method.name) return s->form->method.config(s);
    json_t *q =
        json_pack("{s:s, s:s, s:s, s:[s], s:o, s:o}", "quant_method", "compressed-tensors",
                  "format", s->form->name, "quantization_status", "compressed", "ignore", "lm_head",
                  "kv_cache_scheme", kv_cache_scheme(s), "config_groups", config_groups(s, layers));
    if (s->online.r4) json_object_set_new(q, "transform_config", transform_config(&s->online));
    return q;
}

err small_config_text(const layout *l, const small_options *opts, char **out, size_t *len) {
    const layout_options *o = layout_opts(l);
    json_t *c = json_copy((json_t *)opts->config); /* keys keep their order; values are shared */
    if (!json_is_object(c)) return err_make(ERR_INPUT, "config.json", NULL, "it is not an object");
    const char *dtype = torch_name(o->store_dtype);
    bool old_key = json_object_get(c, "torch_dtype"), new_key = json_object_get(c, "dtype");
    if (new_key) json_object_set_new(c, "dtype", json_string(dtype));
    if (old_key || !new_key) json_object_set_new(c, "torch_dtype", json_string(dtype));
    llama_config said; /* what readers make of an absent key depends on the family */
    const bool ties = llama_config_parse(c, "config.json", &said).code
                          ? json_is_true(json_object_get(c, "tie_word_embeddings"))
                          : said.tied;
    if ((o->untied || !layout_config(l)->tied) && ties)
        json_object_set_new(c, "tie_word_embeddings", json_false());
    if (o->linears.form && !form_has_files(o->linears.form))
        json_object_set_new(c, "quantization_config",
                            quantization_config(&o->linears, layout_config(l)->layers));
    if (opts->spinshard) json_object_set(c, "spinshard", (json_t *)opts->spinshard);
    err e = short_text(c, 0, out, len);
    json_decref(c);
    return e;
}

/* model.safetensors.index.json */

err small_index_text(const layout *l, char **out, size_t *len) {
    json_t *map = json_object();
    char shard[64];
    for (int64_t i = 0; i < layout_count(l); i++) {
        const layout_slot *s = layout_tensor(l, i);
        layout_shard_name(l, s->part, shard);
        json_object_set_new(map, s->name, json_string(shard));
    }
    json_t *o = json_pack("{s:{s:I}, s:o}", "metadata", "total_size",
                          (json_int_t)layout_total_bytes(l), "weight_map", map);
    err e = short_text(o, JSON_SORT_KEYS, out, len);
    json_decref(o);
    return e;
}

/* README.md */

static void card_inputs(FILE *f, const form_inputs *in, int64_t layers) {
    if (in->bits >= 16) return;
    fprintf(f, "- Inputs of these linears: %d bits, symmetric, one scale for ", in->bits);
    if (in->group)
        fprintf(f, "%" PRId64 " of a token's, taken at run time.\n", in->group);
    else
        fprintf(f, "each token, taken at run time.\n");
    if (in->down_bits) fprintf(f, "- Inputs of `down_proj`: %d bits.\n", in->down_bits);
    static const char *const names[INPUT_PLACES] = {
        "`q_proj`, `k_proj`, `v_proj`", "`gate_proj`, `up_proj`", "`o_proj`", "`down_proj`"};
    for (int k = 0; k < INPUT_PLACES; k++) {
        char text[400];
        layer_flags_text(&in->eight.at[k], layers, text, sizeof text);
        if (*text) fprintf(f, "- Inputs of %s in layers %s: 8 bits.\n", names[k], text);
    }
}

/* What is stored of linears that were rounded. */
static void card_linears(FILE *f, const layout *l) {
    const layout_options *o = layout_opts(l);
    const form_scheme *s = &o->linears;
    fprintf(f, "- Weights of the seven linears of each layer: %d bits, %s, ", s->bits,
            s->symmetric ? "symmetric" : "asymmetric");
    if (s->group)
        fprintf(f, "one scale for %" PRId64 " inputs.\n", s->group);
    else
        fprintf(f, "one scale for each output.\n");
    fprintf(f, "- Embedding, norms and head: %s. Scales: %s.\n", torch_name(o->store_dtype),
            torch_name(s->scale_dtype));
    card_inputs(f, &s->inputs, layout_config(l)->layers);
    if (s->fp8_cache)
        fprintf(f,
                "- Keys and values: FP8 (E4M3), one scale for the keys of a layer and one for its "
                "values; kept so by vLLM without an option.\n");
    fprintf(f, "- Form: %s `%s`, %" PRId64 " %s shard%s.\n",
            form_has_files(s->form) ? "llama.cpp's" : form_method_name(s->form), s->form->name,
            layout_parts(l), form_has_files(s->form) ? "GGUF" : "safetensors",
            layout_parts(l) == 1 ? "" : "s");
}

static void card_head(FILE *f, const layout *l, const small_options *opts) {
    const form_scheme *s = &layout_opts(l)->linears;
    const llama_config *cfg = layout_config(l);
    const bool rounded = form_rounds(s);
    card_front_put(f, opts->front, opts->base_model, s);
    fprintf(f, "# %s\n\n", opts->name);
    fprintf(f,
            "%s, %" PRId64 " layers, hidden size %" PRId64 ", %" PRId64
            " parameters, %s by Spinshard.\n\n",
            cfg->architecture, cfg->layers, cfg->hidden, llama_params(cfg),
            rounded ? "quantized" : "rotated and scaled");
    if (rounded)
        card_linears(f, l);
    else
        fprintf(f,
                "- Nothing is quantized: all matrices are %s, %" PRId64 " shard%s. Rotations, "
                "scales and gains of norms are folded into the weights, so this is the source's "
                "function, easier to quantize; to be given to a converter or a quantizer.\n",
                torch_name(layout_opts(l)->store_dtype), layout_parts(l),
                layout_parts(l) == 1 ? "" : "s");
}

/* Dense words of odd widths came with 0.17; 0.18 to 0.20 cannot load packed zero points. */
static const char *reader_versions(const form_scheme *s) {
    const int bits = s->bits;
    const bool dense = !s->form->byte_codes && (bits == 3 || bits == 5 || bits == 6 || bits == 7);
    if (s->symmetric) return dense ? "0.17 or newer" : "0.15 or newer";
    return dense ? "0.17; 0.18 to 0.20 fail on zero points"
                 : "0.15 to 0.17; 0.18 to 0.20 fail on zero points";
}

static void card_transformers(FILE *f, const form_scheme *s, const char *name) {
    fprintf(f, "With transformers");
    if (s->form && s->form->method.name)
        fprintf(f, " and the Python packages optimum and gptqmodel");
    else if (s->form)
        fprintf(f, " and the Python packages accelerate and compressed-tensors (%s)",
                reader_versions(s));
    fprintf(f,
            ":\n\n"
            "    from transformers import AutoModelForCausalLM\n"
            "    model = AutoModelForCausalLM.from_pretrained(\"./%s\")\n\n",
            name);
}

/* Parts of one model find each other by their names. */
static void card_llama_cpp(FILE *f, const layout *l, const char *name) {
    char first[64];
    layout_shard_name(l, 0, first);
    fprintf(f, "With llama.cpp:\n\n    llama-server -m ./%s/%s\n", name, first);
    fprintf(f,
            "\n## Measure\n\n    llama-perplexity -m ./%s/%s -f FILE\n\n"
            "Hashes of every entry:\n\n    spinshard verify OUT\n",
            name, first);
}

/* Options of `vllm serve` without which it would compute otherwise than was learned. */
static void card_serve(FILE *f, const layout *l, const small_options *opts) {
    const form_scheme *s = &layout_opts(l)->linears;
    const runtime_cache cache = s->fp8_cache ? CACHE_FP8_SCALES : runtime_cache_of(opts->spinshard);
    const bool humming = s->form && s->inputs.bits < 16 && !s->form->byte_codes;
    fprintf(f, "    vllm serve ./%s%s%s%s\n", opts->name,
            humming ? " --linear-backend humming" : "",
            cache == CACHE_VLLM_INT4       ? " --kv-cache-dtype int4_per_token_head"
            : cache == CACHE_FP8_BY_OPTION ? " --kv-cache-dtype fp8"
                                           : "",
            s->online.r4 ? " --tensor-parallel-size 1" : "");
    if (humming)
        fprintf(f,
                "\nWithout `--linear-backend humming`, and on GPUs that it does not know, inputs "
                "stay at 16 bits.\n");
    if (cache == CACHE_VLLM_INT4)
        fprintf(f, "\nThe archive was made for the 4-bit cache of that option (GPUs, Triton "
                   "attention); without it keys and values\nstay at 16 bits.\n");
    if (cache == CACHE_FP8_BY_OPTION)
        fprintf(f, "\nThe archive was made for keys and values in FP8 (E4M3, scale 1), which that "
                   "option asks for; without it they\nstay at 16 bits.\n");
}

static void card_gptq(FILE *f, const char *name) {
    fprintf(f, "With SGLang:\n\n    python -m sglang.launch_server --model-path ./%s\n\n", name);
    fprintf(f, "Readers of the first version of the GPTQ format take it (zero points stored less "
               "one, groups in order).\n\n");
}

static void card_use(FILE *f, const layout *l, const small_options *opts) {
    const char *name = opts->name;
    fprintf(f, "\n## Load\n\nEach tar holds a part of one folder:\n\n");
    fprintf(f, "    for part in %s-*-of-*.tar; do tar xf \"$part\"; done\n\n", name);
    const form_online *online = &layout_opts(l)->linears.online;
    if (form_has_files(layout_opts(l)->linears.form)) {
        card_llama_cpp(f, l, name);
        return;
    }
    if (online->r4) {
        fprintf(f, "The input of every `down_proj` must be rotated while the model runs (R4).\n");
        if (online->r4_block)
            fprintf(f,
                    "vLLM on CUDA GPUs does so (`transform_config` in config.json: Hadamard blocks "
                    "of %" PRId64 "), with\ntensor parallelism 1:\n\n",
                    online->r4_block);
        if (online->r4_block) {
            card_serve(f, l, opts);
            fprintf(f, "\n");
        }
        fprintf(
            f,
            "%s `spinshard eval` does; transformers, which would give wrong results, refuses to "
            "load it:\nits message names `" FORM_R4_KEY "`.\n",
            online->r4_block ? "So" : "Only");
    } else {
        card_transformers(f, &layout_opts(l)->linears, name);
        if (layout_opts(l)->linears.form && layout_opts(l)->linears.form->method.name)
            card_gptq(f, name);
        fprintf(f, "With vLLM:\n\n");
        card_serve(f, l, opts);
    }
    fprintf(
        f,
        "\n## Measure\n\nPerplexity on a text, from the folder or from the tars as they are:\n\n"
        "    spinshard eval --model ./%s --text FILE\n\n"
        "Hashes of every entry, and what loaders demand:\n\n    spinshard verify OUT\n",
        name);
    if (!online->r4 || online->r4_block)
        fprintf(f,
                "\nZero-shot tasks with lm-eval:\n\n    lm_eval --model %s --model_args "
                "pretrained=./%s --tasks arc_easy,piqa,winogrande\n",
                online->r4 ? "vllm" : "hf", name);
}

/* The recipe as an indented block, which Markdown shows as it is. */
static err card_recipe(FILE *f, const json_t *recipe) {
    char *text;
    size_t len;
    if (!recipe) return err_none();
    err e = yaml_text(recipe, &text, &len);
    if (e.code) return e;
    fprintf(f, "\n## Recipe\n\n");
    for (char *line = text, *end; *line; line = end) {
        end = strchrnul(line, '\n');
        fprintf(f, "    %.*s\n", (int)(end - line), line);
        if (*end) end++;
    }
    free(text);
    return e;
}

err small_card_text(const layout *l, const small_options *opts, char **out, size_t *len) {
    *out = NULL;
    FILE *f = open_memstream(out, len);
    if (!f) return err_make(ERR_NOFIT, "README.md", NULL, "no memory for the model card");
    card_head(f, l, opts);
    card_use(f, l, opts);
    err e = card_recipe(f, opts->recipe);
    fprintf(f,
            "\n## Licence\n\nThat of the source model; its licence files, where it has any, are in "
            "this folder.\n");
    fclose(f);
    if (e.code) {
        free(*out);
        *out = NULL;
    }
    return e;
}

/* All of them. */

static void add_file(small_files *f, const char *name, char *data, size_t bytes) {
    small_file x = {.name = strdup(name), .data = data, .bytes = bytes};
    f->files = realloc(f->files, (size_t)(f->n + 1) * sizeof *f->files);
    if (!f->files || !x.name) abort();
    f->files[f->n++] = x;
}

static int compare_files(const void *a, const void *b) {
    return strcmp(((const small_file *)a)->name, ((const small_file *)b)->name);
}

static err check_twins(const small_files *f, const char *where) {
    const char **names = malloc((size_t)f->n * sizeof *names);
    if (!names) abort();
    for (int64_t i = 0; i < f->n; i++) names[i] = f->files[i].name;
    err e = entry_names_distinct(names, f->n, where);
    if (e.code == ERR_VERIFY) e.code = ERR_INPUT;
    free(names);
    return e;
}

/* Files that are made anew, that hold weights, or that only concern where the model was fetched. */
static bool is_left_silently(const char *name) {
    static const char *const ENDS[] = {".safetensors", ".safetensors.index.json",
                                       ".bin",         ".bin.index.json",
                                       ".pt",          ".pth",
                                       ".ckpt",        ".gguf",
                                       ".h5",          ".msgpack",
                                       ".onnx"};
    for (size_t i = 0; i < sizeof ENDS / sizeof *ENDS; i++)
        if (ends_with(name, ENDS[i])) return true;
    return name[0] == '.' || !strcmp(name, "config.json") || !strcmp(name, "README.md");
}

/* Of a Hugging Face folder: what a user may miss in the archive. */
static void tell_left_out(const fileset *source) {
    char list[600] = "";
    size_t used = 0;
    for (int i = 0; i < fileset_count(source) && used < sizeof list; i++) {
        const char *name = fileset_name(source, i);
        if (!small_file_is_copied(name) && !is_left_silently(name))
            used += (size_t)snprintf(list + used, sizeof list - used, " %.100s", name);
    }
    if (used) log_line(LOG_RUN, "not copied into the archive:%s", list);
}

/* Nobody reads most of these files here, so nobody would notice before the archive is used. */
static void tell_kind(const char *name, const char *data, size_t len) {
    const char *hint, *kind = file_kind(data, len, true, &hint);
    if (kind) log_line(LOG_WARN, "%s is %s; it is copied as it is (%s)", name, kind, hint);
}

static err copy_files(const fileset *source, small_files *f) {
    err e = err_none();
    for (int i = 0; i < fileset_count(source) && !e.code; i++) {
        const char *name = fileset_name(source, i);
        char *data;
        size_t len;
        if (!small_file_is_copied(name)) continue;
        e = fileset_read_all(source, name, MAX_COPIED_BYTES, &data, &len);
        if (!e.code) tell_kind(name, data, len);
        if (!e.code) add_file(f, name, data, len);
    }
    return e;
}

err small_files_create(const fileset *source, const layout *l, const small_options *opts,
                       small_files **out) {
    char *text;
    size_t len;
    *out = NULL;
    small_files *f = calloc(1, sizeof *f);
    if (!f) abort();
    err e = small_config_text(l, opts, &text, &len);
    if (!e.code) add_file(f, "config.json", text, len);
    const bool indexed = !form_has_files(layout_opts(l)->linears.form);
    if (!e.code && indexed) e = small_index_text(l, &text, &len);
    if (!e.code && indexed) add_file(f, "model.safetensors.index.json", text, len);
    if (!e.code) e = small_card_text(l, opts, &text, &len);
    if (!e.code) add_file(f, "README.md", text, len);
    if (!e.code) e = copy_files(source, f);
    if (!e.code) tell_left_out(source);
    if (!e.code) qsort(f->files + 1, (size_t)f->n - 1, sizeof *f->files, compare_files);
    if (!e.code) e = check_twins(f, fileset_where(source));
    if (e.code)
        small_files_destroy(&f);
    else
        *out = f;
    return e;
}

void small_files_destroy(small_files **f) {
    if (!*f) return;
    for (int64_t i = 0; i < (*f)->n; i++) {
        free((*f)->files[i].name);
        free((*f)->files[i].data);
    }
    free((*f)->files);
    free(*f);
    *f = NULL;
}
