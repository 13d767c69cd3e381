/* A JSON tree is laid over the defaults, source after source, and each value is checked against
 * its row of the table. */
#include "jobs/setup/recipe.h"

#include "base/file.h"
#include "base/file_kind.h"
#include "base/log.h"
#include "base/yaml.h"
#include "jobs/setup/recipe_key.h"
#include "version.h"

#include <dirent.h>
#include <inttypes.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A key has the path of its field. */
#define AT(path)       #path, offsetof(settings, path), sizeof(((settings *)0)->path)
#define AT_PHASE(path) #path, offsetof(learn_settings, path), sizeof(((learn_settings *)0)->path)

static const key keys[] = {
    {AT(recipe_version), KIND_INT, "2", 1, 2, NULL,
     "version of this list; in 1 the rates of adam were not angles"},
    {AT(seed), KIND_INT, "0", 0, 9007199254740991, NULL, "seed of everything random"},
    {AT(rotate.r1), KIND_BOOL, "true", 0, 0, NULL, "rotate the residual stream"},
    {AT(rotate.r2), KIND_WORD, "layer", 0, 0, "none|layer|head",
     "rotate values: one matrix a layer or a KV head"},
    {AT(rotate.start), KIND_WORD_OR_TEXT, "had", 0, 0, "identity|had|orthogonal|pca|womi",
     "start point, or a rotations.safetensors"},
    {AT(rotate.start_r2), KIND_WORD, "same", 0, 0, "same|pca|womi", "start point of R2 alone"},
    {AT(rotate.online), KIND_WORDS, "[]", 0, 0, "r3|r4",
     "rotations applied at run time: r4 by vLLM on GPUs (r4_block: pow2), r3 by eval alone"},
    {AT(rotate.r3), KIND_WORD, "had", 0, 0, "had|signs|pca",
     "R3: Hadamard, with signs of the mean key, or from eigenvectors of the keys of a KV head"},
    {AT(rotate.r4_block), KIND_INT_OR_WORD, "auto", 1, 1 << 20, "auto|pow2",
     "block of R4; auto: the whole size; pow2: the largest power of two up to 4096 that divides "
     "it"},
    {AT(scale.pairs), KIND_WORDS, "[]", 0, 0, "norm|vo|qk|ud",
     "pairs of layers that exchange scales"},
    {AT(scale.start), KIND_WORD, "ones", 0, 0, "ones|closed|smooth",
     "start of the scales; ones: for a phase with lr_scale"},
    {AT(scale.alpha), KIND_REAL, "0.5", 0, 1, NULL, "strength of smooth"},
    {AT(learn), KIND_PHASES, "[]", 0, 0, NULL, "phases of learning"},
    {AT(weights.method), KIND_WORD, "rtn", 0, 0, "rtn|gptq|gptaq", "how weights are rounded"},
    {AT(weights.bits), KIND_INT, "4", 2, 16, NULL,
     "bits of a weight; 16: a plain folder of the fused model, nothing rounded"},
    {AT(weights.group), KIND_INT_OR_WORD, "auto", 1, 1 << 20, "channel|auto",
     "inputs that share a scale; auto: 128, 64 or 32, else channel"},
    {AT(weights.symmetric), KIND_BOOL, "true", 0, 0, NULL, "no zero points"},
    {AT(weights.scale), KIND_WORD, "max", 0, 0, "max|search",
     "scale from the range, or the best of 80 shrunk ones"},
    {AT(weights.act_order), KIND_BOOL, "true", 0, 0, NULL,
     "GPTQ: columns by falling Hessian diagonal"},
    {AT(weights.damp), KIND_REAL, "0.01", 0, 1, NULL, "GPTQ: damping, of the mean diagonal"},
    {AT(weights.stream), KIND_WORD, "full", 0, 0, "full|quantized",
     "GPTQ: activations of calibration"},
    {AT(weights.target), KIND_WORD, "layer", 0, 0, "layer|full",
     "GPTAQ: full precision of each layer alone, or of the whole model"},
    {AT(weights.alpha), KIND_REAL, "1.0", 0, 1, NULL, "GPTAQ: strength of the asymmetric term"},
    {AT(activations.bits), KIND_INT, "16", 2, 16, NULL,
     "bits of activations in eval; 16: not quantized"},
    {AT(activations.symmetric), KIND_BOOL, "false", 0, 0, NULL, "no zero points"},
    {AT(activations.clip), KIND_CLIP, "1.0", CLIP_LEAST, CLIP_MOST, "attn|mlp|o|down",
     "shrinks ranges of inputs; search: each place and layer its own, both ends apart"},
    {AT(activations.group), KIND_INT_OR_WORD, "token", 1, 1 << 20, "token|weights",
     "inputs that share a scale; token: all of a linear's; weights: as weights.group"},
    {AT(activations.o_group), KIND_WORD, "head", 0, 0, "head|token",
     "range of the o_proj input, where activations.group is token"},
    {AT(activations.down_bits), KIND_INT_OR_WORD, "same", 2, 16, "same",
     "bits of the down_proj input"},
    {AT(activations.eight), KIND_LAYERS, "{}", 0, 0, INPUT_WORDS,
     "inputs of 8 bits where the others have fewer, as {mlp: 5-19, down: all}"},
    {AT(activations.average), KIND_REAL, "0", 0, INPUT_EIGHT_BITS, NULL,
     "choose the inputs where 8 bits save most nats for each bit added to a multiplication, until "
     "the average over all multiplications is this; 0: none but activations.eight"},
    {AT(activations.scale), KIND_WORD, "published", 0, 0, "published|compressed-tensors",
     "symmetric scale: max/7 (vLLM on GPUs), or max/7.5 (transformers)"},
    {AT(kv.bits), KIND_INT, "16", 2, 16, NULL,
     "bits of keys and values in eval; 16: not quantized"},
    {AT(kv.symmetric), KIND_BOOL, "false", 0, 0, NULL, "no zero points"},
    {AT(kv.clip), KIND_CLIP, "1.0", CLIP_LEAST, CLIP_MOST, "k|v",
     "shrinks ranges of the cache, in the same way"},
    {AT(kv.rotate), KIND_WORD, "r3", 0, 0, "r3|runtime",
     "r3: as rotate.online says; runtime: as vLLM's --kv-cache-dtype int4_per_token_head does it, "
     "keys and values (4 bits with zero points)"},
    {AT(kv.format), KIND_WORD, "int", 0, 0, "int|fp8",
     "int: integers, a range for each token and head; fp8: E4M3 with fixed scales from "
     "calibration text (8 bits), which vLLM reads from the archive"},
    {AT(calib.windows), KIND_INT, "128", 1, 1 << 24, NULL, "calibration windows"},
    {AT(calib.window), KIND_INT, "2048", 2, 1 << 24, NULL, "tokens of a calibration window"},
    {AT(calib.bos), KIND_WORD, "auto", 0, 0, "auto|none|each-window",
     "begin-of-text token of windows (eval too)"},
    {AT(archive.dtype), KIND_WORD, "same", 0, 0, "same|bf16|fp16",
     "type of scales and of what is not quantized"},
    {AT(archive.form), KIND_WORD, "auto", 0, 0, FORM_WORDS,
     "how linears are stored; auto: int-quantized for 8-bit weights with 8-bit inputs by token; "
     "gguf: files of llama.cpp, weights of 4 bits (Q4_0), 8 (Q8_0) or 16 in groups of 32; gptq: "
     "for SGLang, TensorRT-LLM, ExLlama, symmetric weights of 4 or 8 bits"},
    {AT(archive.shard_bytes), KIND_SIZE, "4G", 1024, 0, NULL, "largest tar"},
    {AT(archive.name), KIND_WORD_OR_TEXT, "auto", 0, 0, "auto",
     "name of the archive; auto: model-wBITS-gGROUP"},
    {AT(archive.base_model), KIND_WORD_OR_TEXT, "auto", 0, 0, "auto",
     "ORG/NAME of the source on a hub, for the model card; auto: by the path of a cache, or none"},
    {AT(numerics.grid), KIND_WORD_OR_TEXT, "auto", 0, 0, "auto",
     "process grid of ScaLAPACK, as 2x2"},
    {AT(numerics.threads), KIND_INT_OR_WORD, "auto", 1, 1024, "auto", "BLAS threads in ScaLAPACK"},
    {AT(numerics.slice_tokens), KIND_INT_OR_WORD, "auto", 1, 1 << 20, "auto", "tokens of a slice"},
    {AT(numerics.gptq_grid), KIND_WORD_OR_TEXT, "auto", 0, 0, "auto",
     "process grid of large Hessians, as 2x2"},
    {AT(numerics.gptq_grid_from), KIND_INT, "4096", 1, 1 << 24, NULL,
     "columns from which a Hessian goes over the grid"},
    {AT(numerics.gptq_block), KIND_INT, "128", 1, 1 << 16, NULL, "columns of a GPTQ block"},
};
enum { N_KEYS = sizeof keys / sizeof keys[0] };

/* Keys of a phase of learn. */
static const key phase_keys[] = {
    {AT_PHASE(objective), KIND_WORD, "range", 0, 0, OBJECTIVE_WORDS, "what is minimised"},
    {AT_PHASE(steps), KIND_INT, "100", 1, 1 << 24, NULL, "steps"},
    {AT_PHASE(batch), KIND_INT, "8", 1, 1 << 20, NULL, "windows a step (ce, kl-top)"},
    {AT_PHASE(window), KIND_INT, "2048", 2, 1 << 20, NULL, "tokens of a window (ce, kl-top)"},
    {AT_PHASE(rows), KIND_INT, "32768", 1, 1 << 28, NULL,
     "rows of R1 sites a step, and as many of weights (range)"},
    {AT_PHASE(optimizer), KIND_WORD, "adam", 0, 0, "adam|sgd-published", "how a step is made"},
    {AT_PHASE(lr_r1), KIND_REAL, "1", 0, 100, NULL,
     "the largest angle by which a step turns R1, radians (sgd-published: its rate, 1.5)"},
    {AT_PHASE(lr_r2), KIND_REAL, "0.3", 0, 100, NULL, "and each R2"},
    {AT_PHASE(lr_scale), KIND_REAL, "0", 0, 1, NULL,
     "ce, kl-top: rate of Adam on the logarithms of the scales of scale.pairs; 0: they stay"},
    {AT_PHASE(schedule), KIND_WORD, "cosine", 0, 0, "cosine|linear|constant", "how rates fall"},
    {AT_PHASE(range_grad), KIND_WORD, "through", 0, 0, "through|detached",
     "gradient through the quantizer's range"},
    {AT_PHASE(weights), KIND_BOOL, "false", 0, 0, NULL,
     "range: rows of weights count too; ce, kl-top: weights quantized in the loop"},
    {AT_PHASE(top_k), KIND_INT, "1000", 1, 1 << 24, NULL, "logits of kl-top"},
    {AT_PHASE(draw), KIND_WORD, "uniform", 0, 0, "uniform|importance",
     "range: rows of R1 sites from evenly spread tokens, or by how much the loss feels them"},
};
enum { N_PHASE_KEYS = sizeof phase_keys / sizeof phase_keys[0] };

struct recipe {
    json_t *tree;
    settings set;
    learn_settings *learn; /* what set.learn is */
};

static const key *find_key(const char *path) {
    for (int i = 0; i < N_KEYS; i++)
        if (!strcmp(keys[i].path, path)) return &keys[i];
    return NULL;
}

/* No path has more than one dot. */
static json_t *tree_get(const json_t *tree, const char *path) {
    const char *dot = strchr(path, '.');
    if (!dot) return json_object_get(tree, path);
    char section[64];
    snprintf(section, sizeof section, "%.*s", (int)(dot - path), path);
    return json_object_get(json_object_get(tree, section), dot + 1);
}

static void tree_put(json_t *tree, const char *path, json_t *value) {
    const char *dot = strchr(path, '.');
    json_t *at = tree;
    if (dot) {
        char section[64];
        snprintf(section, sizeof section, "%.*s", (int)(dot - path), path);
        at = json_object_get(tree, section);
        if (!at) {
            at = json_object();
            json_object_set_new(tree, section, at);
        }
    }
    json_object_set_new(at, dot ? dot + 1 : path, value);
}

static err unknown_key(const key *table, int n, const char *path, const char *where) {
    const char *names[N_KEYS + N_PHASE_KEYS + 1];
    for (int i = 0; i < n; i++) names[i] = table[i].path;
    names[n] = NULL;
    char hint[160];
    snprintf(hint, sizeof hint, "did you mean %s?", options_nearest(path, names));
    return err_make(ERR_USAGE, where, hint, "unknown recipe key \"%s\"", path);
}

static err check_value(const key *k, const json_t *value, const char *where) {
    if (key_fits(k, value)) return err_none();
    char want[200], *is = json_dumps(value, JSON_ENCODE_ANY);
    key_describe(k, want, sizeof want);
    err e = err_make(ERR_USAGE, where, NULL, "recipe key %s is %.80s; it must be %s", k->path,
                     is ? is : "?", want);
    free(is);
    return e;
}

static err set_key(json_t *tree, const char *path, json_t *value, const char *where) {
    const key *k = find_key(path);
    if (!k) return unknown_key(keys, N_KEYS, path, where);
    err e = check_value(k, value, where);
    if (e.code) return e;
    tree_put(tree, path, json_incref(value));
    return err_none();
}

/* Lay a (partial) tree of sections over another. */
static err overlay(json_t *tree, const json_t *from, const char *where) {
    const char *name, *inner;
    json_t *item, *child;
    if (json_is_null(from)) return err_none();
    if (!json_is_object(from))
        return err_make(ERR_USAGE, where, NULL, "a recipe is a mapping of keys");
    json_object_foreach((json_t *)(uintptr_t)from, name, item) {
        if (!json_is_object(item)) {
            err e = set_key(tree, name, item, where);
            if (e.code) return e;
            continue;
        }
        json_object_foreach(item, inner, child) {
            char path[160];
            snprintf(path, sizeof path, "%s.%s", name, inner);
            err e = set_key(tree, path, child, where);
            if (e.code) return e;
        }
    }
    return err_none();
}

static err apply_set(json_t *tree, const char *text) {
    const char *equals = strchr(text, '=');
    if (!equals || equals == text)
        return err_make(ERR_USAGE, "--set", NULL, "\"%s\" is not KEY=VALUE", text);
    json_t *value;
    char path[160];
    snprintf(path, sizeof path, "%.*s", (int)(equals - text), text);
    err e = yaml_parse(equals + 1, strlen(equals + 1), "--set", &value);
    if (e.code) return e;
    if (strchr(path, '.')) {
        e = set_key(tree, path, value, "--set");
        json_decref(value);
        return e;
    }
    json_t *branch = json_object(); /* a key, or some of the keys of a section as a map */
    json_object_set_new(branch, path, value);
    e = overlay(tree, branch, "--set");
    json_decref(branch);
    return e;
}

/* Each phase of learn: keys checked, defaults filled in, in the order of the table. */
static err resolve_phases(json_t *tree) {
    json_t *phases = json_object_get(tree, "learn"), *phase, *value;
    size_t i;
    const char *name;
    json_array_foreach(phases, i, phase) {
        char where[40];
        snprintf(where, sizeof where, "learn[%zu]", i);
        if (!json_is_object(phase))
            return err_make(ERR_USAGE, where, NULL, "a phase is a mapping of keys");
        json_object_foreach(phase, name, value) {
            bool known = false;
            for (int k = 0; k < N_PHASE_KEYS; k++) known |= !strcmp(phase_keys[k].path, name);
            if (!known) return unknown_key(phase_keys, N_PHASE_KEYS, name, where);
        }
        json_t *whole = json_object();
        for (int k = 0; k < N_PHASE_KEYS; k++) {
            value = json_incref(json_object_get(phase, phase_keys[k].path));
            err e = err_none();
            if (!value)
                e = yaml_parse(phase_keys[k].standard, strlen(phase_keys[k].standard), where,
                               &value);
            if (!e.code) e = check_value(&phase_keys[k], value, where);
            json_object_set_new(whole, phase_keys[k].path, value);
            if (e.code) {
                json_decref(whole);
                return e;
            }
        }
        json_array_set_new(phases, i, whole);
    }
    return err_none();
}

/* Rates of adam before version 2 were the RMS entry of the skew step, whose angle grows with the
 * hidden size: they are read as the angles that they gave at hidden 576, where they were chosen. */
static void rates_of_version_1(json_t *from, const char *where) {
    static const struct {
        const char *key;
        double old, now;
    } rates[] = {{"lr_r1", 0.002, 0.5}, {"lr_r2", 0.006, 0.3}};
    size_t i;
    json_t *phase;
    const json_t *version = json_object_get(from, "recipe_version");
    if (!json_is_integer(version) || json_integer_value(version) != 1) return;
    json_object_set_new(from, "recipe_version", json_integer(2));
    json_array_foreach(json_object_get(from, "learn"), i, phase) {
        const char *how = json_string_value(json_object_get(phase, "optimizer"));
        for (int k = 0; k < 2 && (!how || !strcmp(how, "adam")); k++) {
            const json_t *rate = json_object_get(phase, rates[k].key);
            if (!json_is_number(rate)) continue;
            const double old = json_number_value(rate), now = old * rates[k].now / rates[k].old;
            log_line(LOG_RUN,
                     "%s: of version 1, when rates were not angles: learn.%zu.%s %g is read as %g",
                     where, i, rates[k].key, old, now);
            json_object_set_new(phase, rates[k].key, json_real(now));
        }
    }
}

/* The settings as the tree now is. Phases stay where they are in memory: none comes or goes. */
static void read_settings(recipe *r) {
    const json_t *phases = json_object_get(r->tree, "learn");
    const size_t n = json_array_size(phases);
    for (int i = 0; i < N_KEYS; i++) key_store(&keys[i], tree_get(r->tree, keys[i].path), &r->set);
    if (!r->learn) r->learn = calloc(n + 1, sizeof *r->learn);
    if (!r->learn) abort();
    for (size_t p = 0; p < n; p++)
        for (int i = 0; i < N_PHASE_KEYS; i++)
            key_store(&phase_keys[i],
                      json_object_get(json_array_get(phases, p), phase_keys[i].path), &r->learn[p]);
    r->set.learn = r->learn;
    r->set.n_learn = (int64_t)n;
}

static json_t *default_tree(void) {
    json_t *tree = json_object();
    for (int i = 0; i < N_KEYS; i++) {
        json_t *value;
        err e = yaml_parse(keys[i].standard, strlen(keys[i].standard), keys[i].path, &value);
        if (e.code || !key_fits(&keys[i], value))
            abort(); /* a default that its own table refuses */
        if (keys[i].size != key_kind_bytes(keys[i].kind)) abort(); /* a field of another type */
        tree_put(tree, keys[i].path, value);
    }
    return tree;
}

err recipe_create(const options *o, const char *file_text, const char *file_name,
                  const json_t *base, recipe **out) {
    json_t *tree = default_tree(), *file = NULL;
    err e = err_none();
    *out = NULL;
    if (base) {
        json_t *of_archive = json_deep_copy(base);
        rates_of_version_1(of_archive, "recipe of the archive");
        e = overlay(tree, of_archive, "recipe of the archive");
        json_decref(of_archive);
    }
    if (!e.code && file_text && *file_text)
        e = file_kind_refuse(file_name, file_text, strlen(file_text), false, "a recipe");
    if (!e.code && file_text) e = yaml_parse(file_text, strlen(file_text), file_name, &file);
    if (!e.code && json_is_object(file)) rates_of_version_1(file, file_name);
    if (!e.code && file) e = overlay(tree, file, file_name);
    json_decref(file);
    for (int i = 0; i < o->n_values[OPT_SET] && !e.code; i++)
        e = apply_set(tree, o->values[OPT_SET][i]);
    int64_t seed = -1;
    if (!e.code) e = options_int(o, OPT_SEED, 0, (int64_t)9007199254740991, &seed);
    if (!e.code && seed >= 0) tree_put(tree, "seed", json_integer(seed));
    if (!e.code) e = resolve_phases(tree);
    if (e.code) {
        json_decref(tree);
        return e;
    }
    recipe *r = calloc(1, sizeof *r);
    if (!r) abort();
    r->tree = tree;
    read_settings(r);
    *out = r;
    return e;
}

recipe *recipe_copy(const recipe *r) {
    recipe *copy = calloc(1, sizeof *copy);
    if (!copy) abort();
    copy->tree = json_deep_copy(r->tree);
    if (!copy->tree) abort();
    read_settings(copy);
    return copy;
}

void recipe_destroy(recipe **r) {
    if (!*r) return;
    json_decref((*r)->tree);
    free((*r)->learn);
    free(*r);
    *r = NULL;
}

const json_t *recipe_get(const recipe *r, const char *path) {
    const json_t *v = tree_get(r->tree, path);
    if (!v) {
        fprintf(stderr, "spinshard: bug: no recipe key %s\n", path);
        abort();
    }
    return v;
}

const settings *recipe_settings(const recipe *r) {
    return &r->set;
}

void recipe_put(recipe *r, const char *path, json_t *value) {
    tree_put(r->tree, path, value);
    read_settings(r);
}

const json_t *recipe_tree(const recipe *r) {
    return r->tree;
}

static err no_such_recipe(const char *arg) {
    char names[200] = "";
    DIR *d = opendir(SPINSHARD_RECIPE_DIR);
    if (!d) d = opendir(SPINSHARD_SOURCE_RECIPES);
    for (struct dirent *x; d && (x = readdir(d));) {
        size_t used = strlen(names), n = strlen(x->d_name);
        if (n > 5 && !strcmp(x->d_name + n - 5, ".yaml") && used + n < sizeof names)
            snprintf(names + used, sizeof names - used, " %.*s", (int)(n - 5), x->d_name);
    }
    if (d) closedir(d);
    char hint[256];
    snprintf(hint, sizeof hint, "give a file, or one of:%s", names);
    return err_make(ERR_USAGE, arg, hint, "no such recipe");
}

err recipe_find_file(const char *arg, char **path) {
    if (strchr(arg, '/') || file_exists(arg)) {
        *path = strdup(arg);
        return err_none();
    }
    static const char *folders[] = {SPINSHARD_RECIPE_DIR, SPINSHARD_SOURCE_RECIPES};
    for (int i = 0; i < 2; i++) {
        if (asprintf(path, "%s/%s.yaml", folders[i], arg) < 0) abort();
        if (file_exists(*path)) return err_none();
        free(*path);
    }
    *path = NULL;
    return no_such_recipe(arg);
}

static void help_table(const key *table, int n) {
    for (int i = 0; i < n; i++) {
        char left[64], want[200];
        snprintf(left, sizeof left, "%s=%s", table[i].path, table[i].standard);
        key_describe(&table[i], want, sizeof want);
        printf("    %-32s %s (%s)\n", left, table[i].help, want);
    }
}

void recipe_help(void) {
    puts("\nRecipe keys (a YAML file, or --set KEY=VALUE), with their defaults:");
    help_table(keys, N_KEYS);
    puts("\nKeys of a phase of learn, as in --set 'learn=[{objective: range, steps: 400}]':");
    help_table(phase_keys, N_PHASE_KEYS);
}
