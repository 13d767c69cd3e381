/* archive.form: what of a recipe an archive can say so that runtimes do it, and what only eval
 * does. */
#include "jobs/setup/setup_form.h"

#include "base/log.h"
#include "jobs/setup/recipe_asks.h"
#include "jobs/setup/recipe_layers.h"
#include "jobs/setup/recipe_words.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* One key that inputs which an archive can say ask for. */
typedef struct demand {
    const char *key, *want;
    bool met;
} demand;

int64_t setup_r4_block(const settings *s, int64_t intermediate) {
    enum { POW2_MOST = 4096 };
    if (s->rotate.r4_block == R4_BLOCK_AUTO) return intermediate;
    if (s->rotate.r4_block != R4_BLOCK_POW2) return s->rotate.r4_block;
    const int64_t power = intermediate & -intermediate;
    return power < POW2_MOST ? power : POW2_MOST;
}

form_online setup_online(const settings *s) {
    const int64_t n = s->rotate.r4_block;
    const bool power = n > 0 && n <= FORM_R4_MOST && !(n & (n - 1));
    if (!(s->rotate.online & ONLINE_R4)) return (form_online){.r4 = false};
    return (form_online){.r4 = true, .r4_block = power ? n : 0};
}

/* The first demand that the recipe does not meet; NULL where it meets all. Scales by max/7 and by
 * max/7.5 are both right: an archive cannot say which, each runtime has its own. */
static const char *first_unmet(const settings *s, const char **want) {
    const int64_t bits = s->activations.bits, down = settings_down_bits(s);
    const demand all[] = {
        {"activations.bits", "8 or 4", bits == 8 || bits == 4},
        {"activations.symmetric", "true", s->activations.symmetric},
        {"activations.o_group", "token",
         s->activations.group > 0 || s->activations.o_group == O_GROUP_TOKEN},
        {"activations.clip", "1.0", clip_setting_none(&s->activations.clip)},
        {"activations.down_bits", "same, 4, 8 or 16",
         down == bits || down == 8 || down == 4 || down == 16},
        {"weights.bits", "8 or less", settings_round_weights(s)},
        {"archive.form", "auto", !settings_fp16_scales(s)},
        {"weights.symmetric", "true", s->weights.symmetric},
        {"rotate.r4_block", "pow2", !setup_online(s).r4 || setup_online(s).r4_block},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        *want = all[i].want;
        if (!all[i].met) return all[i].key;
    }
    return NULL;
}

/* Demands of the form int-quantized: 8 bits by token. */
static const char *first_unmet_int8(const settings *s, const char **want) {
    *want = "8";
    if (s->activations.bits != 8) return "activations.bits";
    const char *key = first_unmet(s, want);
    if (key) return key;
    *want = "same";
    if (settings_down_bits(s) != 8) return "activations.down_bits";
    *want = "token";
    return s->activations.group ? "activations.group" : NULL;
}

form_inputs setup_inputs(const settings *s) {
    const char *want;
    if (first_unmet(s, &want)) return (form_inputs){.bits = 16};
    const int64_t bits = s->activations.bits, down = settings_down_bits(s);
    return (form_inputs){.bits = (int)bits,
                         .group = s->activations.group,
                         .down_bits = down == bits ? 0 : (int)down,
                         .eight = s->activations.eight};
}

const form *setup_form_of(const settings *s) {
    char name[32];
    if (s->archive.form != FORM_GGUF && !settings_round_weights(s)) return NULL;
    recipe_word_at(s->archive.form == FORM_AUTO ? FORM_PACK_QUANTIZED : (int)s->archive.form,
                   FORM_WORDS, name, sizeof name);
    return form_find(name);
}

/* A block that is a power of two, as a number: runtimes know these alone. */
static void resolve_r4(recipe *r, int64_t intermediate) {
    const settings *s = recipe_settings(r);
    const int64_t n = setup_r4_block(s, intermediate);
    if ((s->rotate.online & ONLINE_R4) && !(n & (n - 1)))
        recipe_put(r, "rotate.r4_block", json_integer(n));
}

/* What whoever knows the model loads, a plain folder or GGUF, must be that model and nothing more.
 */
static err refuse_plain(const settings *s) {
    const bool gguf = s->archive.form == FORM_GGUF;
    if (s->archive.form != FORM_AUTO && !gguf)
        return err_make(ERR_USAGE, "archive.form", "leave out archive.form",
                        "weights.bits is 16: nothing is quantized that a form could store");
    if (s->rotate.online & ONLINE_R4)
        return err_make(ERR_USAGE, "rotate.online", "set rotate.online=[], or another archive.form",
                        "%s cannot say that R4 must be applied while it runs",
                        gguf ? "GGUF" : "weights.bits is 16, and a plain folder");
    return err_none();
}

/* llama.cpp computes a file of the architecture "llama" as LLaMA and nothing else: what a model
 * does besides would be left out without a word. */
static err refuse_other_than_llama(const llama_config *cfg) {
    bool other = cfg->qk_norm || cfg->embed_scale > 0 || cfg->score_scale > 0 ||
                 cfg->logit_scale > 0 || cfg->rope.kind == ROPE_YARN ||
                 cfg->rope.kind == ROPE_DYNAMIC;
    for (int64_t l = 0; l < cfg->layers; l++) other = other || !llama_has_rope(cfg, l);
    if (!other) return err_none();
    return err_make(ERR_USAGE, "archive.form",
                    "use archive.form=auto, and convert the folder with llama.cpp's own script",
                    "GGUF is written here for models that compute as LLaMA does, and %s as "
                    "config.json sets it does not (norms of heads, multipliers, layers without "
                    "RoPE, rope scaling yarn or dynamic)",
                    cfg->architecture);
}

err setup_form(recipe *r, const llama_config *cfg) {
    const settings *s = recipe_settings(r);
    err e = s->archive.form == FORM_GGUF ? refuse_other_than_llama(cfg) : err_none();
    if (e.code) return e;
    resolve_r4(r, cfg->intermediate);
    if (!settings_round_weights(s) || s->archive.form == FORM_GGUF) return refuse_plain(s);
    const char *want, *key = first_unmet_int8(s, &want);
    if (s->archive.form == FORM_GPTQ)
        return form_find("gptq")->refuse(&(form_scheme){.bits = (int)s->weights.bits,
                                                        .symmetric = s->weights.symmetric,
                                                        .online = setup_online(s)});
    if (s->archive.form == FORM_AUTO) {
        const bool int8 = !key && s->weights.bits == 8;
        recipe_put(r, "archive.form", json_string(int8 ? "int-quantized" : "pack-quantized"));
    } else if (s->archive.form == FORM_INT_QUANTIZED && key) {
        char hint[160];
        snprintf(hint, sizeof hint, "set %s=%s, or archive.form=pack-quantized%s", key, want,
                 setup_inputs(s).bits < 16 ? "" : ", where only eval quantizes the inputs");
        return err_make(ERR_USAGE, key, hint,
                        "the form int-quantized says 8-bit symmetric inputs, one scale a token; no "
                        "runtime loads others");
    }
    return err_none();
}

void setup_cache_say(const settings *s) {
    if (s->kv.rotate == KV_ROTATE_RUNTIME && s->kv.bits >= 16)
        log_line(LOG_RUN, "kv.rotate is runtime, but kv.bits is 16: nothing of the cache is "
                          "quantized or turned; set kv.bits=4 for it, or leave out kv.rotate");
    if (s->kv.format == CACHE_FP8 && s->kv.bits >= 16)
        log_line(LOG_RUN, "kv.format is fp8, but kv.bits is 16: nothing of the cache is "
                          "quantized; set kv.bits=8 for it, or leave out kv.format");
}

void setup_form_say(const settings *s) {
    const char *want, *key = first_unmet(s, &want);
    if (!settings_round_weights(s) && s->archive.form != FORM_GGUF)
        log_line(LOG_RUN, "weights.bits is 16: a plain folder of the fused model; nothing is "
                          "rounded in it, and weights.method does not matter");
    else if (key && s->activations.bits < 16)
        log_line(LOG_RUN,
                 "%" PRId64 "-bit inputs as set here load in no runtime: the archive holds the "
                 "weights alone, and `spinshard eval` quantizes the inputs. With %s=%s "
                 "(activations: {bits: 8 or 4, symmetric: true, o_group: token}) the archive says "
                 "them to transformers and vLLM",
                 s->activations.bits, key, want);
    if ((s->rotate.online & ONLINE_R4) && !setup_online(s).r4_block)
        log_line(LOG_RUN, "R4 in these blocks runs in `spinshard eval` alone; with "
                          "rotate.r4_block=pow2 vLLM applies it on GPUs");
    setup_cache_say(s);
    if (settings_runtime_cache(s))
        log_line(LOG_RUN, "the 4-bit cache is no part of an archive: vLLM has it on GPUs with "
                          "--kv-cache-dtype int4_per_token_head, and `spinshard eval` does the "
                          "same");
    else if (quantize_scales_cache(s))
        log_line(LOG_RUN, "the archive holds scales of an FP8 cache (kv_cache_scheme), which vLLM "
                          "then keeps by itself, and `spinshard eval` does the same");
    else if (settings_fp8_cache(s))
        log_line(LOG_RUN, "the FP8 cache is no part of this form: vLLM has it with "
                          "--kv-cache-dtype fp8, and `spinshard eval` does the same");
    else if (s->kv.bits < 16)
        log_line(LOG_RUN, "a cache below 16 bits is no part of an archive: `spinshard eval` "
                          "quantizes it; runtimes do so by an option of theirs, if at all");
}

/* Copies of the keys of a section that the archive's config.json carries. */
static json_t *section(const recipe *r, const char *name, const char *const *keys) {
    json_t *out = json_object();
    for (; *keys; keys++) {
        char path[64];
        snprintf(path, sizeof path, "%s.%s", name, *keys);
        json_object_set(out, *keys, (json_t *)(uintptr_t)recipe_get(r, path));
    }
    return out;
}

json_t *setup_eval_keys(const recipe *r) {
    const settings *s = recipe_settings(r);
    static const char *const all[] = {"r3", "online", "r4_block", NULL};
    const char *const *rotate = s->rotate.r3 == R3_HAD ? all + 1 : all;
    static const char *const inputs[] = {"eight",   "bits",      "symmetric", "clip", "group",
                                         "o_group", "down_bits", "scale",     NULL};
    const bool eight = input_eight_any(&s->activations.eight);
    static const char *const cache[] = {"bits", "symmetric", "clip", "rotate", NULL};
    static const char *const own_cache[] = {"bits", "symmetric", "clip", NULL};
    static const char *const fp8[] = {"bits", "format", NULL};
    /* A plain folder runs as it is, and no GGUF is read here. */
    if (!settings_round_weights(s) || s->archive.form == FORM_GGUF) return NULL;
    if (!settings_quantize_at_run_time(s) && !s->rotate.online) return NULL;
    return json_pack("{s:o, s:o, s:o}", "rotate", section(r, "rotate", rotate), "activations",
                     section(r, "activations", eight ? inputs : inputs + 1), "kv",
                     section(r, "kv",
                             settings_runtime_cache(s) ? cache
                             : settings_fp8_cache(s)   ? fp8
                                                       : own_cache));
}

json_t *setup_eval_keys_of(const json_t *config, const form_scheme *linears, int64_t layers) {
    const json_t *own = json_object_get(json_object_get(config, "spinshard"), "eval");
    const form_inputs *inputs = &linears->inputs;
    if (json_is_object(own)) return json_deep_copy(own);
    if (inputs->bits >= 16 && !linears->fp8_cache) return NULL;
    json_t *all = json_object();
    json_t *down = inputs->down_bits ? json_integer(inputs->down_bits) : json_string("same");
    json_t *group = inputs->group ? json_integer(inputs->group) : json_string("token");
    json_object_set_new(all, "activations",
                        json_pack("{s:i, s:b, s:s, s:o, s:o, s:s}", "bits", inputs->bits,
                                  "symmetric", true, "o_group", "token", "group", group,
                                  "down_bits", down, "scale", "compressed-tensors"));
    if (input_eight_any(&inputs->eight))
        json_object_set_new(json_object_get(all, "activations"), "eight",
                            recipe_layers_json(&inputs->eight, layers));
    if (linears->fp8_cache)
        json_object_set_new(all, "kv", json_pack("{s:i, s:s}", "bits", 8, "format", "fp8"));
    return all;
}
