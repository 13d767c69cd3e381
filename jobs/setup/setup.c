/* Words of the recipe to enums, numbers and rotations of the lower layers, with the refusals that
 * need the model's shapes. */
#include "jobs/setup/setup.h"

#include "base/file.h"
#include "base/mem.h"
#include "pipeline/weights/rotation_file.h"
#include "rotations/start.h"
#include "shard/entry_names.h"

#include <ctype.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_RECIPE_BYTES = 1 << 20 };

err setup_recipe(const comm *c, const options *o, const json_t *base, recipe **out) {
    const char *arg = options_str(o, OPT_RECIPE);
    char *path = NULL, *text = NULL;
    void *blob = NULL;
    size_t len = 0;
    *out = NULL;
    if (arg) {
        err e = err_none();
        if (comm_rank(c) == 0) e = recipe_find_file(arg, &path);
        if (!e.code && path) e = file_read_all(path, MAX_RECIPE_BYTES, &text, &len);
        free(path);
        if (e.code == ERR_INPUT) e.code = ERR_USAGE;
        e = comm_agree(c, e, "reading the recipe", NULL);
        if (e.code) {
            free(text);
            return e;
        }
        blob = text;
        comm_bcast_blob(c, &blob, &len, 0);
    }
    err e = recipe_create(o, blob, arg, base, out);
    free(blob);
    return comm_agree(c, e, "reading the recipe", NULL);
}

static err refuse_phase(const recipe *r, const json_t *phase) {
    const char *objective = json_string_value(json_object_get(phase, "objective"));
    if (!strcmp(objective, "range")) return err_none(); /* rows of weights, if nothing else */
    if (json_is_true(json_object_get(phase, "weights"))) return err_none();
    if (recipe_int(r, "activations.bits") >= 16 && recipe_int(r, "kv.bits") >= 16)
        return err_make(
            ERR_USAGE, "learn",
            "set activations.bits, kv.bits or weights: true, or use objective: range",
            "neither activations nor the cache are quantized: there is nothing to learn");
    return err_none();
}

/* scale.start: smooth balances single channels of activations with columns of weights. A rotation
 * leaves no channel that stands out, and queries have no weights that keys could lean on. */
static err refuse_smooth(const recipe *r) {
    static const struct {
        const char *pair, *key, *why;
    } all[] = {{"norm", "rotate.r1", "R1 mixes the channels of \"norm\""},
               {"vo", "rotate.r2", "R2 mixes the channels of \"vo\""},
               {"ud", "rotate.online", "R4 mixes the channels of \"ud\""},
               {"qk", "scale.pairs", "\"qk\" has no weights on its other side"}};
    const bool mixed[] = {recipe_bool(r, "rotate.r1"), !recipe_is(r, "rotate.r2", "none"),
                          recipe_list_has(r, "rotate.online", "r4"), true};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (mixed[i] && recipe_list_has(r, "scale.pairs", all[i].pair))
            return err_make(ERR_USAGE, all[i].key,
                            "use scale.start=closed, or smooth with rotate.r1=false rotate.r2=none "
                            "rotate.online=[]",
                            "scale.start is smooth, and %s", all[i].why);
    if (!json_array_size(recipe_get(r, "scale.pairs")))
        return err_make(ERR_USAGE, "scale.pairs", "name pairs, as scale.pairs=[norm]",
                        "scale.start is smooth, and no pair is named");
    return err_none();
}

err setup_refuse_missing(const recipe *r) {
    size_t i;
    json_t *phase;
    if (json_array_size(recipe_get(r, "learn")) && !recipe_bool(r, "rotate.r1") &&
        recipe_is(r, "rotate.r2", "none"))
        return err_make(ERR_USAGE, "learn", "set rotate.r1=true or rotate.r2=layer",
                        "nothing is rotated: there is nothing to learn");
    json_array_foreach(recipe_get(r, "learn"), i, phase) {
        err e = refuse_phase(r, phase);
        if (e.code) return e;
    }
    if (recipe_is(r, "scale.start", "smooth")) return refuse_smooth(r);
    const bool pairs = json_array_size(recipe_get(r, "scale.pairs")) > 0;
    if (pairs && recipe_is(r, "scale.start", "ones"))
        return err_make(ERR_USAGE, "scale.start", "use scale.start=closed",
                        "scales of ones change nothing, and nothing learns them further");
    if (!pairs && !recipe_is(r, "scale.start", "ones"))
        return err_make(ERR_USAGE, "scale.pairs", "name pairs, as scale.pairs=[norm, ud]",
                        "scale.start is %s, and no pair is named", recipe_str(r, "scale.start"));
    return err_none();
}

static rotation_r2 r2_of(const recipe *r) {
    if (recipe_is(r, "rotate.r2", "head")) return R2_HEAD;
    return recipe_is(r, "rotate.r2", "layer") ? R2_LAYER : R2_NONE;
}

/* Random orthogonal R1 (unless it comes later) and R2 in place of the Hadamard ones. */
static err random_start(rotation_set *set, bool r1_later) {
    const rotation_sizes *z = rotation_set_sizes(set);
    uint64_t seed = rotation_set_options(set)->seed;
    int64_t d = z->head_dim, most = z->hidden > d ? z->hidden : d,
            heads = rotation_set_r2_count(set);
    rotation *r = NULL;
    void *buf;
    err e = mem_alloc(most * most, sizeof(double), "random rotation", &buf);
    if (!e.code && rotation_set_r1(set) && !r1_later) {
        e = start_orthogonal(z->hidden, seed, RNG_R1_NORMAL, 0, buf);
        if (!e.code) e = rotation_create_dense(z->hidden, buf, &r);
        if (!e.code) e = rotation_set_put_r1(set, &r);
    }
    for (int64_t i = 0; i < z->layers * heads && !e.code; i++) {
        e = rotation_set_prepare_r2(set, i / heads);
        if (!e.code) e = start_orthogonal(d, seed, RNG_R2_NORMAL, (uint64_t)(i * d * d), buf);
        if (!e.code) e = rotation_create_dense(d, buf, &r);
        if (!e.code) e = rotation_set_put_r2(set, i / heads, i % heads, &r);
    }
    rotation_destroy(&r);
    mem_free(buf);
    return e;
}

static const char *const start_words[] = {"had", "identity", "orthogonal", "pca", "womi"};

bool setup_start_is_file(const recipe *r) {
    for (size_t i = 0; i < sizeof start_words / sizeof *start_words; i++)
        if (recipe_is(r, "rotate.start", start_words[i])) return false;
    return true;
}

bool setup_starts_at(const recipe *r, const char *word) {
    return recipe_is(r, "rotate.start", word) || recipe_is(r, "rotate.start_r2", word);
}

err setup_rotations(const comm *c, const recipe *r, const source *s, bool r1_later,
                    rotation_set **out) {
    const llama_config *cfg = &s->cfg;
    rotation_options o = {
        .r1 = recipe_bool(r, "rotate.r1"),
        .r2 = r2_of(r),
        .r3 = recipe_list_has(r, "rotate.online", "r3"),
        .r4 = recipe_list_has(r, "rotate.online", "r4"),
        .r4_block = json_is_integer(recipe_get(r, "rotate.r4_block"))
                        ? recipe_int(r, "rotate.r4_block")
                        : 0,
        .start = recipe_is(r, "rotate.start", "identity") ? START_IDENTITY : START_HAD,
        .seed = (uint64_t)recipe_int(r, "seed"),
    };
    rotation_sizes z = {
        .hidden = cfg->hidden,
        .layers = cfg->layers,
        .heads = cfg->heads,
        .kv_heads = cfg->kv_heads,
        .head_dim = cfg->head_dim,
        .intermediate = cfg->intermediate,
    };
    /* pca and womi begin as a Hadamard set: its sizes are checked, its matrices replaced once there
     * are rows or weights. */
    if (setup_start_is_file(r))
        return rotation_file_read(c, recipe_str(r, "rotate.start"), &o, &z,
                                  s->form.packed ? NULL : s->ck, out);
    err e = rotation_set_create(&o, &z, out);
    if (!e.code && recipe_is(r, "rotate.start", "orthogonal")) e = random_start(*out, r1_later);
    return comm_agree(c, e, "making the rotations", NULL);
}

static bool divides_all(int64_t group, const llama_config *cfg) {
    return cfg->hidden % group == 0 && cfg->intermediate % group == 0 &&
           cfg->heads * cfg->head_dim % group == 0;
}

static scale_type scale_type_of(st_dtype t) {
    return t == ST_BF16 ? SCALE_BF16 : t == ST_F16 ? SCALE_FP16 : SCALE_F32;
}

err setup_weights(recipe *r, const llama_config *cfg, st_dtype store, wquant *out) {
    if (recipe_is(r, "weights.group", "auto")) {
        int64_t group = 0;
        for (int64_t g = 32; g <= 128; g *= 2)
            if (divides_all(g, cfg)) group = g;
        recipe_put(r, "weights.group", group ? json_integer(group) : json_string("channel"));
    }
    const json_t *group = recipe_get(r, "weights.group");
    *out = (wquant){
        .bits = (int)recipe_int(r, "weights.bits"),
        .group = json_is_integer(group) ? json_integer_value(group) : 0,
        .symmetric = recipe_bool(r, "weights.symmetric"),
        .search = recipe_is(r, "weights.scale", "search"),
        .scale_type = scale_type_of(store),
    };
    if (out->group && !divides_all(out->group, cfg))
        return err_make(ERR_USAGE, "weights.group",
                        "use weights.group=auto, a divisor of all three, or channel",
                        "%" PRId64 " does not divide the inputs of every linear (hidden %" PRId64
                        ", attention output %" PRId64 ", intermediate %" PRId64 ")",
                        out->group, cfg->hidden, cfg->heads * cfg->head_dim, cfg->intermediate);
    return err_none();
}

st_dtype setup_store_dtype(const recipe *r, const source *s) {
    if (recipe_is(r, "archive.dtype", "bf16")) return ST_BF16;
    if (recipe_is(r, "archive.dtype", "fp16")) return ST_F16;
    const hf_tensor *t = hf_checkpoint_find(s->ck, "model.embed_tokens.weight");
    return t ? t->info.dtype : ST_BF16;
}

layout_options setup_layout(const recipe *r, const wquant *how, st_dtype store, bool untied) {
    return (layout_options){
        .bits = how->bits,
        .group = how->group,
        .symmetric = how->symmetric,
        .scale_dtype = store,
        .store_dtype = store,
        .int8 = recipe_is(r, "archive.form", "int-quantized"),
        .untied = untied,
        .shard_bytes = recipe_bytes(r, "archive.shard_bytes"),
    };
}

static aquant aquant_of(const recipe *r, const char *section) {
    char bits[40], symmetric[40], clip[40];
    snprintf(bits, sizeof bits, "%s.bits", section);
    snprintf(symmetric, sizeof symmetric, "%s.symmetric", section);
    snprintf(clip, sizeof clip, "%s.clip", section);
    return (aquant){
        .bits = (int)recipe_int(r, bits),
        .symmetric = recipe_bool(r, symmetric),
        .clip = (float)recipe_real(r, clip),
        .compressed_tensors_scale = recipe_is(r, "activations.scale", "compressed-tensors"),
    };
}

static err check_bits(const char *key, int bits) {
    if (bits <= 8 || bits == 16) return err_none();
    return err_make(ERR_USAGE, key, "use 2 to 8, or 16 for none", "%d bits are not offered", bits);
}

err setup_sites(const recipe *r, const llama_config *cfg, rotation_set *set, bool fused,
                bool r4_fused, llama_sites *out, const rotation ***r2) {
    *out = llama_sites_none();
    *r2 = NULL;
    out->act = aquant_of(r, "activations");
    out->kv = aquant_of(r, "kv");
    const json_t *down = recipe_get(r, "activations.down_bits");
    out->down_bits = json_is_integer(down) ? (int)json_integer_value(down) : 0;
    out->o_per_head = recipe_is(r, "activations.o_group", "head");
    err e = check_bits("activations.bits", out->act.bits);
    if (!e.code) e = check_bits("kv.bits", out->kv.bits);
    if (!e.code && out->down_bits) e = check_bits("activations.down_bits", out->down_bits);
    if (e.code) return e;
    out->R3 = rotation_set_r3(set);
    out->R4 = rotation_set_r4(set);
    out->r4_fused = r4_fused;
    if (fused) return e;
    out->R1 = rotation_set_r1(set);
    out->scales = rotation_set_scales(set);
    int64_t heads = rotation_set_r2_count(set);
    if (!heads) return e;
    out->r2_per_head = heads > 1;
    *r2 = calloc((size_t)(cfg->layers * heads), sizeof **r2);
    if (!*r2) abort();
    for (int64_t l = 0; l < cfg->layers && !e.code; l++) {
        e = rotation_set_prepare_r2(set, l);
        for (int64_t h = 0; h < heads && !e.code; h++)
            (*r2)[l * heads + h] = rotation_set_r2(set, l, h);
    }
    out->R2 = *r2;
    return e;
}

bos_mode setup_bos(const recipe *r) {
    bos_mode mode = BOS_AUTO;
    err e = bos_mode_parse(recipe_str(r, "calib.bos"), &mode);
    if (e.code) abort(); /* the recipe's table let it pass */
    return mode;
}

/* Names are base names of printable ASCII without spaces. */
err setup_name(recipe *r, const char *model_dir, const wquant *how) {
    char name[160] = "";
    if (recipe_is(r, "archive.name", "auto")) {
        char *real = realpath(model_dir, NULL);
        const char *base = real ? strrchr(real, '/') : NULL;
        size_t n = 0;
        for (base = base ? base + 1 : "model"; *base && n < 100; base++)
            name[n++] = isalnum((unsigned char)*base) || strchr("._-", *base) ? *base : '-';
        if (name[0] == '.') name[0] = '-';
        const char *inputs = recipe_is(r, "archive.form", "int-quantized") ? "a8" : "";
        if (how->group)
            snprintf(name + n, sizeof name - n, "-w%d%s-g%" PRId64, how->bits, inputs, how->group);
        else
            snprintf(name + n, sizeof name - n, "-w%d%s-channel", how->bits, inputs);
        free(real);
        recipe_put(r, "archive.name", json_string(name));
    }
    const char *fault = entry_base_fault(recipe_str(r, "archive.name"));
    if (!fault && strlen(recipe_str(r, "archive.name")) > 150)
        fault = "is longer than 150 characters";
    if (!fault) return err_none();
    return err_make(ERR_USAGE, "archive.name", NULL, "\"%.80s\" %s", recipe_str(r, "archive.name"),
                    fault);
}
