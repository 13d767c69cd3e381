/* archive.form: what of a recipe an archive can say so that runtimes do it, and what only eval
 * does. */
#include "jobs/setup/setup_form.h"

#include "base/log.h"

#include <stdio.h>
#include <string.h>

enum { FORM_BITS = 8 };

/* One key that the form int-quantized asks for. */
typedef struct demand {
    const char *key, *want;
    bool met;
} demand;

/* The first demand that the recipe does not meet; NULL where it meets all. */
static const char *first_unmet(const settings *s, const char **want) {
    const demand all[] = {
        {"activations.bits", "8", s->activations.bits == FORM_BITS},
        {"activations.symmetric", "true", s->activations.symmetric},
        {"activations.o_group", "token", s->activations.o_group == O_GROUP_TOKEN},
        {"activations.scale", "compressed-tensors",
         s->activations.scale == INPUT_SCALE_COMPRESSED_TENSORS},
        {"activations.clip", "1.0", s->activations.clip == 1},
        {"activations.down_bits", "same",
         !s->activations.down_bits || s->activations.down_bits == FORM_BITS},
        {"weights.symmetric", "true", s->weights.symmetric},
        {"rotate.online", "[] or [r3]", !(s->rotate.online & ONLINE_R4)},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        *want = all[i].want;
        if (!all[i].met) return all[i].key;
    }
    return NULL;
}

form_inputs setup_inputs(const settings *s) {
    return (form_inputs){.bits = s->archive.form == FORM_INT_QUANTIZED ? FORM_BITS : 16};
}

const form *setup_form_of(const settings *s) {
    return form_find(s->archive.form == FORM_INT_QUANTIZED ? "int-quantized" : "pack-quantized");
}

err setup_form(recipe *r) {
    const settings *s = recipe_settings(r);
    const char *want, *key = first_unmet(s, &want);
    if (s->archive.form == FORM_AUTO)
        recipe_put(r, "archive.form", json_string(key ? "pack-quantized" : "int-quantized"));
    else if (s->archive.form == FORM_INT_QUANTIZED && key) {
        char hint[160];
        snprintf(hint, sizeof hint,
                 "set %s=%s, or archive.form=pack-quantized, where only eval quantizes the inputs",
                 key, want);
        return err_make(ERR_USAGE, key, hint,
                        "the form int-quantized says 8-bit symmetric inputs, one scale a token; no "
                        "runtime loads others");
    }
    return err_none();
}

void setup_form_say(const settings *s) {
    const char *want, *key = first_unmet(s, &want);
    const int64_t bits = s->activations.bits;
    if (s->archive.form == FORM_INT_QUANTIZED || !settings_quantize_at_run_time(s)) return;
    if (bits == FORM_BITS && key)
        log_line(
            LOG_RUN,
            "8-bit inputs as set here load in no runtime: the archive holds the weights alone, "
            "and `spinshard eval` quantizes the inputs. With %s=%s (activations: {bits: 8, "
            "symmetric: true, o_group: token, scale: compressed-tensors}) transformers and "
            "vLLM load both",
            key, want);
    else
        log_line(LOG_RUN, "activations and cache below 16 bits run in no common runtime today: the "
                          "archive holds the weights; `spinshard eval` quantizes the rest");
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
    static const char *const rotate[] = {"online", "r4_block", NULL};
    static const char *const inputs[] = {"bits",      "symmetric", "clip", "o_group",
                                         "down_bits", "scale",     NULL};
    static const char *const cache[] = {"bits", "symmetric", "clip", NULL};
    if (!settings_quantize_at_run_time(s) && !s->rotate.online) return NULL;
    return json_pack("{s:o, s:o, s:o}", "rotate", section(r, "rotate", rotate), "activations",
                     section(r, "activations", inputs), "kv", section(r, "kv", cache));
}

json_t *setup_eval_keys_of(const json_t *config, const form_inputs *inputs) {
    const json_t *own = json_object_get(json_object_get(config, "spinshard"), "eval");
    if (json_is_object(own)) return json_deep_copy(own);
    if (inputs->bits >= 16) return NULL;
    return json_pack("{s:{s:i, s:b, s:s, s:s}}", "activations", "bits", inputs->bits, "symmetric",
                     true, "o_group", "token", "scale", "compressed-tensors");
}
