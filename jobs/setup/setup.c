/* Words of the recipe to enums, numbers and rotations of the lower layers, with the refusals that
 * need the model's shapes. */
#include "jobs/setup/setup.h"

#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "io/utf8.h"
#include "jobs/setup/recipe_asks.h"
#include "jobs/setup/setup_eight.h"
#include "jobs/setup/setup_form.h"
#include "pipeline/weights/rotation_file.h"
#include "rotations/start.h"
#include "shard/entry_names.h"
#include "shard/stored_floats.h"

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

/* What a rotation spreads must be quantized: inputs of linears by R1 and R2, the cache by R2,
 * weights by both. Said here, before a text is captured for it. */
static err refuse_phase(const settings *s, const learn_settings *phase) {
    const bool act = s->activations.bits < 16,
               kv = learn_e2e_is(phase) ? s->kv.bits < 16 : settings_cache_has_ranges(s),
               r2 = s->rotate.r2 != R2_NONE,
               weights = phase->weights || learn_weights_count(s, phase);
    if (weights && !settings_round_weights(s))
        return err_make(ERR_USAGE, "learn",
                        "learn with weights.bits=4 first; then weights.bits=16 learn=[] "
                        "rotate.start=OUT/rotations.safetensors",
                        "weights.bits is 16: no rounding of weights is there to learn for");
    if (!weights && !act && !kv)
        return err_make(
            ERR_USAGE, "learn",
            "set activations.bits, kv.bits or weights: true, or use objective: range",
            "neither activations nor the cache are quantized: there is nothing to learn");
    if ((s->rotate.r1 && (act || weights)) || (r2 && (act || kv || weights))) return err_none();
    return err_make(
        ERR_USAGE, "learn", "set activations.bits or weights: true, or leave learn empty",
        "nothing that a rotation stands before is quantized: there is nothing to learn");
}

/* scale.start: smooth balances single channels of activations with columns of weights. A rotation
 * leaves no channel that stands out, and queries have no weights that keys could lean on. */
static err refuse_smooth(const settings *s) {
    static const struct {
        uint32_t pair;
        const char *key, *why;
    } all[] = {{PAIR_NORM, "rotate.r1", "R1 mixes the channels of \"norm\""},
               {PAIR_VO, "rotate.r2", "R2 mixes the channels of \"vo\""},
               {PAIR_UD, "rotate.online", "R4 mixes the channels of \"ud\""},
               {PAIR_QK, "scale.pairs", "\"qk\" has no weights on its other side"}};
    const bool mixed[] = {s->rotate.r1, s->rotate.r2 != R2_NONE, (s->rotate.online & ONLINE_R4),
                          true};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (mixed[i] && (s->scale.pairs & all[i].pair))
            return err_make(ERR_USAGE, all[i].key,
                            "use scale.start=closed, or smooth with rotate.r1=false rotate.r2=none "
                            "rotate.online=[]",
                            "scale.start is smooth, and %s", all[i].why);
    if (!s->scale.pairs)
        return err_make(ERR_USAGE, "scale.pairs", "name pairs, as scale.pairs=[norm]",
                        "scale.start is smooth, and no pair is named");
    return err_none();
}

/* One key that a cache of a runtime asks for. */
typedef struct cache_demand {
    const char *key, *want;
    bool met;
} cache_demand;

static err check_demands(const cache_demand *all, size_t n, const char *key, const char *what) {
    for (size_t i = 0; i < n; i++) {
        char hint[96];
        snprintf(hint, sizeof hint, "set %s=%s, or leave out %s", all[i].key, all[i].want, key);
        if (!all[i].met) return err_make(ERR_USAGE, all[i].key, hint, "%s", what);
    }
    return err_none();
}

/* A runtime's cache has one way alone. */
static err check_cache(const settings *s) {
    const bool plain = clip_setting_none(&s->kv.clip), r3 = s->rotate.online & ONLINE_R3;
    const cache_demand int4[] = {{"kv.bits", "4", s->kv.bits == 4},
                                 {"kv.format", "int", s->kv.format == CACHE_INT},
                                 {"kv.symmetric", "false", !s->kv.symmetric},
                                 {"kv.clip", "1.0", plain},
                                 {"rotate.online", "[r4] or []", !r3}};
    const cache_demand fp8[] = {{"kv.bits", "8", s->kv.bits == 8},
                                {"kv.clip", "1.0", plain},
                                {"rotate.online", "[r4] or []", !r3}};
    if (settings_runtime_cache(s))
        return check_demands(int4, sizeof int4 / sizeof *int4, "kv.rotate",
                             "kv.rotate is runtime: keys and values of 4 bits with zero points, "
                             "not clipped, turned by the runtime itself and not by R3");
    if (settings_fp8_cache(s))
        return check_demands(fp8, sizeof fp8 / sizeof *fp8, "kv.format",
                             "kv.format is fp8: keys and values of 8 bits, not clipped, as a "
                             "runtime stores them, and R3 runs in no runtime");
    return err_none();
}

err setup_refuse_missing(const settings *s) {
    if (s->n_learn && !s->rotate.r1 && s->rotate.r2 == R2_NONE)
        return err_make(ERR_USAGE, "learn", "set rotate.r1=true or rotate.r2=layer",
                        "nothing is rotated: there is nothing to learn");
    for (int64_t k = 0; k < s->n_learn; k++) {
        err e = refuse_phase(s, &s->learn[k]);
        if (e.code) return e;
    }
    err cache = check_cache(s);
    if (cache.code) return cache;
    if (s->scale.start == SCALES_SMOOTH) return refuse_smooth(s);
    const bool pairs = s->scale.pairs > 0;
    if (pairs && s->scale.start == SCALES_ONES && !learn_scales_any(s))
        return err_make(ERR_USAGE, "scale.start",
                        "use scale.start=closed, or lr_scale in a phase ce or kl-top",
                        "scales of ones change nothing, and no phase learns them");
    if (!pairs && s->scale.start != SCALES_ONES)
        return err_make(ERR_USAGE, "scale.pairs", "name pairs, as scale.pairs=[norm, ud]",
                        "scale.start is %s, and no pair is named",
                        s->scale.start == SCALES_CLOSED ? "closed" : "smooth");
    return err_none();
}

/* A pair helps where what stands between its two layers is quantized, or where scales are learned
 * with weights in the loop: of a row of weights that nothing mixes they change nothing, so not qk.
 */
static uint32_t pairs_that_help(const settings *s) {
    const bool act = s->activations.bits < 16, kv = s->kv.bits < 16;
    uint32_t weights = 0;
    for (int64_t k = 0; k < s->n_learn; k++)
        if (learn_scales_by(s, &s->learn[k]) && s->learn[k].weights)
            weights = PAIR_NORM | PAIR_VO | PAIR_UD;
    return weights | (act ? PAIR_NORM : 0u) | (act || kv ? PAIR_VO : 0u) | (kv ? PAIR_QK : 0u) |
           (settings_down_bits(s) < 16 ? PAIR_UD : 0u);
}

void setup_resolve_scales(recipe *r) {
    static const char *const words[] = {"norm", "vo", "qk", "ud"};
    const settings *s = recipe_settings(r);
    const uint32_t asked = s->scale.pairs, kept = asked & pairs_that_help(s);
    json_t *list = json_array();
    for (int i = 0; i < 4; i++) {
        if (kept >> i & 1u) json_array_append_new(list, json_string(words[i]));
        if ((asked & ~kept) >> i & 1u)
            log_line(LOG_RUN, "scale.pairs: nothing is quantized that \"%s\" helps: left out",
                     words[i]);
    }
    if (!kept) recipe_put(r, "scale.start", json_string("ones"));
    if (kept != asked)
        recipe_put(r, "scale.pairs", list);
    else
        json_decref(list);
}

void setup_resolve_rotations(recipe *r, const rotation_set *set) {
    static const char *const words[] = {
        [R2_NONE] = "none", [R2_LAYER] = "layer", [R2_HEAD] = "head"};
    const settings *s = recipe_settings(r);
    const rotation_options *o = rotation_set_options(set);
    if (o->r1 == s->rotate.r1 && o->r2 == s->rotate.r2) return;
    log_line(LOG_RUN, "%s: it decides: rotate.r1 is %s, rotate.r2 is %s", s->rotate.start.text,
             o->r1 ? "true" : "false", words[o->r2]);
    recipe_put(r, "rotate.r1", json_boolean(o->r1));
    recipe_put(r, "rotate.r2", json_string(words[o->r2]));
}

/* Random orthogonal R1 (unless it comes later) and R2 in place of the identities. */
static err random_start(rotation_set *set, bool r1_later) {
    const rotation_sizes *z = rotation_set_sizes(set);
    uint64_t seed = rotation_set_options(set)->seed;
    int64_t d = z->head_dim, most = z->hidden > d ? z->hidden : d,
            heads = rotation_set_r2_count(set);
    rotation *r = NULL;
    double *buf;
    err e = MEM_NEW(&buf, most * most, "random rotation");
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

/* Where the recipe says numbers: these, and 1 where a search is to come. A recipe that says nothing
 * leaves the clips of a file of rotations. */
static err put_clips(const settings *s, rotation_set *set) {
    const clip_set *old = rotation_set_clips(set);
    const int64_t layers = rotation_set_sizes(set)->layers;
    clip_set *clips;
    err e = clip_set_create(layers, &clips);
    bool any = false;
    for (int64_t i = 0; i < layers * CLIP_PLACES && !e.code; i++) {
        const clip_place place = (clip_place)(i % CLIP_PLACES);
        const double *ends;
        const clip_setting *said = settings_clip(s, place, &ends);
        const bool silent = said->from == CLIPS_NUMBER && clip_setting_none(said),
                   of_file = old && (silent || said->from == CLIPS_SEARCH);
        any |= of_file || (said->from != CLIPS_SEARCH && !clip_setting_none(said));
        if (of_file) ends = clip_set_get(old, place, i / CLIP_PLACES);
        e = clip_set_put(clips, place, i / CLIP_PLACES, ends);
    }
    if (!e.code && !any) clip_set_destroy(&clips);
    if (!e.code) rotation_set_put_clips(set, &clips);
    clip_set_destroy(&clips);
    return e;
}

err setup_rotations(const comm *c, const settings *s, const source *from, bool r1_later,
                    rotation_set **out) {
    const llama_config *cfg = &from->cfg;
    rotation_options o = {
        .r1 = s->rotate.r1,
        .r2 = s->rotate.r2,
        .r3 = (s->rotate.online & ONLINE_R3),
        .r4 = (s->rotate.online & ONLINE_R4),
        .cache = settings_runtime_cache(s),
        .r4_block = s->rotate.r4_block == R4_BLOCK_AUTO ? 0 : setup_r4_block(s, cfg->intermediate),
        .start = s->rotate.start.word == START_POINT_HAD ? START_HAD : START_IDENTITY,
        .r2_later = s->rotate.start_r2 != START_R2_SAME,
        .seed = (uint64_t)s->seed,
    };
    rotation_sizes z = {
        .hidden = cfg->hidden,
        .layers = cfg->layers,
        .heads = cfg->heads,
        .kv_heads = cfg->kv_heads,
        .head_dim = cfg->head_dim,
        .intermediate = cfg->intermediate,
        .qk_norm = cfg->qk_norm,
    };
    /* pca and womi begin as identities, which are replaced once there are rows or weights. */
    err e = s->rotate.start.word == START_POINT_FILE
                ? rotation_file_read(c, s->rotate.start.text, &o, &z,
                                     from->linears.form || from->ar ? NULL : from->ck, out)
                : rotation_set_create(&o, &z, out);
    if (!e.code && s->rotate.start.word == START_POINT_ORTHOGONAL) e = random_start(*out, r1_later);
    if (!e.code) e = put_clips(s, *out);
    return comm_agree(c, e, "making the rotations", NULL);
}

static bool divides_all(int64_t group, const llama_config *cfg) {
    return cfg->hidden % group == 0 && cfg->intermediate % group == 0 &&
           cfg->heads * cfg->head_dim % group == 0;
}

/* Type of the scales in the archive, where other tensors are of type `store`. */
static scale_type scale_type_of(const settings *s, st_dtype store) {
    scale_type t = SCALE_F32;
    if (settings_fp16_scales(s)) return SCALE_FP16;
    stored_scale_type(store, &t);
    return t;
}

/* weights.group as a number; 0: channel. */
static int64_t weights_group(const settings *s, const llama_config *cfg) {
    int64_t most = 0;
    if (s->weights.group != GROUP_AUTO) return s->weights.group;
    if (s->archive.form == FORM_GGUF) return 32; /* its blocks */
    for (int64_t g = 32; g <= 128; g *= 2)
        if (divides_all(g, cfg)) most = g;
    return most;
}

static err check_bits(const char *key, int bits) {
    if (bits <= 8 || bits == 16) return err_none();
    return err_make(ERR_USAGE, key, "use 2 to 8, or 16 for none", "%d bits are not offered", bits);
}

err setup_weights(recipe *r, const llama_config *cfg, st_dtype store, wquant *out) {
    const settings *s = recipe_settings(r);
    if (s->weights.group == GROUP_AUTO) {
        const int64_t group = weights_group(s, cfg);
        recipe_put(r, "weights.group", group ? json_integer(group) : json_string("channel"));
    }
    *out = (wquant){
        .bits = (int)s->weights.bits,
        .group = s->weights.group,
        .symmetric = s->weights.symmetric,
        .search = s->weights.scale == WEIGHTS_SCALE_SEARCH,
        .scale_type = scale_type_of(s, store),
    };
    err e = check_bits("weights.bits", out->bits);
    if (e.code) return e;
    if (settings_round_weights(s) && out->group && !divides_all(out->group, cfg))
        return err_make(ERR_USAGE, "weights.group",
                        "use weights.group=auto, a divisor of all three, or channel",
                        "%" PRId64 " does not divide the inputs of every linear (hidden %" PRId64
                        ", attention output %" PRId64 ", intermediate %" PRId64 ")",
                        out->group, cfg->hidden, cfg->heads * cfg->head_dim, cfg->intermediate);
    return err_none();
}

st_dtype setup_store_dtype(const settings *s, const source *from) {
    if (s->archive.dtype == DTYPE_BF16) return ST_BF16;
    if (s->archive.dtype == DTYPE_FP16) return ST_F16;
    const hf_tensor *t = hf_checkpoint_find(from->ck, "model.embed_tokens.weight");
    return t ? t->info.dtype : ST_BF16;
}

layout_options setup_layout(const settings *s, const wquant *how, st_dtype store, bool untied) {
    return (layout_options){
        .linears = {.form = setup_form_of(s),
                    .bits = how->bits,
                    .group = how->group,
                    .symmetric = how->symmetric,
                    .scale_dtype = stored_scale_dtype(how->scale_type),
                    .inputs = setup_inputs(s),
                    .fp8_cache = quantize_scales_cache(s),
                    .online = setup_online(s)},
        .store_dtype = store,
        .untied = untied,
        .shard_bytes = s->archive.shard_bytes,
    };
}

static aquant aquant_of(const settings *s, int64_t bits, bool symmetric) {
    return (aquant){
        .bits = (int)bits,
        .symmetric = symmetric,
        .clip = {1, 1}, /* llama_sites.clips has them */
        .compressed_tensors_scale = s->activations.scale == INPUT_SCALE_COMPRESSED_TENSORS,
    };
}

/* activations.group as a number; 0: token. */
static int64_t inputs_group(const settings *s, const llama_config *cfg) {
    return s->activations.group == INPUTS_AS_WEIGHTS ? weights_group(s, cfg) : s->activations.group;
}

static err check_inputs_group(int64_t group, const llama_config *cfg) {
    if (!group || divides_all(group, cfg)) return err_none();
    return err_make(ERR_USAGE, "activations.group", "use a divisor of all three, or token",
                    "%" PRId64 " does not divide the inputs of every linear (hidden %" PRId64
                    ", attention output %" PRId64 ", intermediate %" PRId64 ")",
                    group, cfg->hidden, cfg->heads * cfg->head_dim, cfg->intermediate);
}

err setup_inputs_group(recipe *r, const llama_config *cfg) {
    const int64_t group = inputs_group(recipe_settings(r), cfg);
    recipe_put(r, "activations.group", group ? json_integer(group) : json_string("token"));
    return check_inputs_group(group, cfg);
}

err setup_sites(const settings *s, const llama_config *cfg, rotation_set *set, weights_hold held,
                llama_sites *out, const rotation ***r2) {
    *out = llama_sites_none();
    *r2 = NULL;
    out->act = aquant_of(s, s->activations.bits, s->activations.symmetric);
    out->act.group = inputs_group(s, cfg);
    out->kv = aquant_of(s, s->kv.bits, s->kv.symmetric);
    if (settings_runtime_cache(s)) out->kv.rule = AQUANT_CACHE_INT4;
    if (settings_fp8_cache(s)) out->kv.rule = AQUANT_FP8;
    out->kv.cache_scale = 1;
    out->down_bits = (int)s->activations.down_bits;
    out->eight = s->activations.eight;
    out->o_per_head = s->activations.o_group == O_GROUP_HEAD;
    err e = check_inputs_group(out->act.group, cfg);
    if (!e.code) e = check_bits("activations.bits", out->act.bits);
    if (!e.code) e = check_bits("kv.bits", out->kv.bits);
    if (!e.code) e = check_cache(s);
    if (!e.code) e = setup_check_eight(s, cfg);
    if (!e.code && out->down_bits) e = check_bits("activations.down_bits", out->down_bits);
    if (e.code) return e;
    out->cache_rotation = rotation_set_cache(set);
    out->cache_scales = rotation_set_cache_scales(set);
    out->R3 = rotation_set_r3(set);
    out->R3_heads = rotation_set_r3_heads(set);
    out->clips = rotation_set_clips(set);
    out->R4 = rotation_set_r4(set);
    out->r4_fused = held == HOLD_R1_R2_R4;
    if (held != HOLD_NONE) return e;
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

/* The last component of a path, or of a snapshot in a cache of Hugging Face
 * (models--ORG--NAME/snapshots/ HASH) NAME. Cuts the path. */
static const char *name_in(char *path) {
    char *last = strrchr(path, '/'), *above, *top;
    if (!last) return "";
    *last = 0;
    above = strrchr(path, '/');
    if (!above || strcmp(above, "/snapshots") != 0) return last + 1;
    *above = 0;
    top = strrchr(path, '/');
    if (!top || strncmp(top, "/models--", 9) != 0) return last + 1;
    const char *name = top + 9;
    for (const char *next; (next = strstr(name, "--"));) name = next + 2;
    return *name ? name : last + 1;
}

/* At most 100 characters of ASCII for a folder's name; other characters by their number, as u6a21,
 * and bytes of no UTF-8 as xff. Never empty, and never begins with what a shell or a tool takes for
 * an option or for hidden. */
static size_t name_of_model(const char *path, char to[160]) {
    char *copy = strdup(path);
    if (!copy) abort();
    const char *from = name_in(copy);
    size_t n = 0, width = 1, len = strlen(from);
    const bool known = utf8_check(from, len) == len;
    const unsigned char first = (unsigned char)*from;
    if (first < 0x80 && !isalnum(first) && first != '_') n = (size_t)snprintf(to, 160, "model");
    for (; *from && n < 100; from += width) {
        const unsigned char c = (unsigned char)*from;
        width = known ? utf8_width(*from) : 1;
        if (isalnum(c) || (c < 0x80 && strchr("._-", c)))
            to[n++] = (char)c;
        else if (c < 0x80)
            to[n++] = '-';
        else if (!known)
            n += (size_t)snprintf(to + n, 160 - n, "x%02x", c);
        else
            n += (size_t)snprintf(to + n, 160 - n, "u%04x", utf8_at(from, &width));
    }
    to[n] = 0;
    free(copy);
    return n;
}

/* ORG/NAME of a snapshot in a cache of Hugging Face; false: the path says none. */
static bool hub_id_of(const char *path, char to[160]) {
    const char *top = strstr(path, "/models--"), *dashes = top ? strstr(top + 9, "--") : NULL;
    const size_t org = dashes ? (size_t)(dashes - top - 9) : 0;
    const size_t name = dashes ? strcspn(dashes + 2, "/") : 0;
    if (!org || !name || org + name > 150 || strncmp(dashes + 2 + name, "/snapshots/", 11))
        return false;
    snprintf(to, 160, "%.*s/%.*s", (int)org, top + 9, (int)name, dashes + 2);
    return true;
}

static bool is_hub_id(const char *s) {
    static const char *const ALLOWED =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    const size_t org = strspn(s, ALLOWED), name = s[org] == '/' ? strspn(s + org + 1, ALLOWED) : 0;
    return org && name && !s[org + 1 + name] && org + name <= 150;
}

err setup_base_model(recipe *r, const char *model_dir) {
    const settings *s = recipe_settings(r);
    char id[160];
    if (s->archive.base_model.word != WORD_AUTO) {
        if (is_hub_id(s->archive.base_model.text)) return err_none();
        return err_make(ERR_USAGE, "archive.base_model", "say ORG/NAME",
                        "\"%.80s\" is not the id of a model", s->archive.base_model.text);
    }
    char *real = realpath(model_dir, NULL);
    if (real && hub_id_of(real, id) && is_hub_id(id))
        recipe_put(r, "archive.base_model", json_string(id));
    free(real);
    return err_none();
}

/* Names are base names of printable ASCII without spaces. */
err setup_name(recipe *r, const char *model_dir, const wquant *how) {
    const settings *s = recipe_settings(r);
    char name[160] = "";
    if (s->archive.name.word == WORD_AUTO) {
        char *real = realpath(model_dir, NULL);
        size_t n = name_of_model(real ? real : "", name);
        char inputs[8] = "";
        if (setup_inputs(s).bits < 16) snprintf(inputs, sizeof inputs, "a%d", setup_inputs(s).bits);
        if (!settings_round_weights(s))
            snprintf(name + n, sizeof name - n, "-w16");
        else if (how->group)
            snprintf(name + n, sizeof name - n, "-w%d%s-g%" PRId64, how->bits, inputs, how->group);
        else
            snprintf(name + n, sizeof name - n, "-w%d%s-channel", how->bits, inputs);
        free(real);
        recipe_put(r, "archive.name", json_string(name));
    }
    const char *fault = entry_base_fault(s->archive.name.text);
    if (!fault && strlen(s->archive.name.text) > 150) fault = "is longer than 150 characters";
    if (!fault) return err_none();
    return err_make(ERR_USAGE, "archive.name", NULL, "\"%.80s\" %s", s->archive.name.text, fault);
}
