/* Bits of each input by place and layer are asked of the settings. */
#include "jobs/setup/setup_eight.h"

#include "base/log.h"
#include "jobs/setup/recipe_layers.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Inputs of this place have 8 bits or more without being named: the key would change nothing, and
 * whoever set it expects that it does. */
static err check_place(const settings *s, input_place place) {
    const bool down = place == INPUT_DOWN && s->activations.down_bits;
    const int64_t bits = place == INPUT_DOWN ? settings_down_bits(s) : s->activations.bits;
    if (bits < INPUT_EIGHT_BITS) return err_none();
    return err_make(ERR_USAGE, "activations.eight",
                    down ? "leave down out of it, or set activations.down_bits=same"
                         : "set activations.bits=4, or leave out activations.eight",
                    "names layers of %s, whose inputs have %" PRId64 " bits without it",
                    input_place_name(place), bits);
}

/* The largest layer of a set; -1: none, or all that any model may have. */
static int64_t largest(const layer_flags *f) {
    int64_t most = -1, n = 0;
    for (int64_t l = 0; l < LLAMA_MAX_LAYERS; l++)
        if (layer_flags_has(f, l)) {
            most = l;
            n++;
        }
    return n == LLAMA_MAX_LAYERS ? -1 : most;
}

static err check_layers(const layer_flags *f, const llama_config *cfg) {
    if (largest(f) < cfg->layers) return err_none();
    return err_make(ERR_USAGE, "activations.eight", "layers are counted from 0",
                    "names layer %" PRId64 ", and the model has %" PRId64, largest(f), cfg->layers);
}

double setup_average_bits(const settings *s, const llama_config *cfg) {
    int64_t bits = 0, all = 0;
    for (int k = 0; k < INPUT_PLACES; k++)
        for (int64_t l = 0; l < cfg->layers; l++) {
            const int64_t n = input_products(cfg, (input_place)k);
            bits += n * settings_input_bits(s, (input_place)k, l);
            all += n;
        }
    return (double)bits / (double)all;
}

static err check_average(const settings *s, const llama_config *cfg) {
    const double least = setup_average_bits(s, cfg);
    if (s->activations.average == 0) return err_none();
    if (s->activations.bits >= INPUT_EIGHT_BITS)
        return err_make(ERR_USAGE, "activations.average",
                        "set activations.bits=4, or leave out activations.average",
                        "inputs have %" PRId64 " bits without it", s->activations.bits);
    if (s->activations.average >= least) return err_none();
    return err_make(ERR_USAGE, "activations.average", "ask for more, or for fewer bits elsewhere",
                    "is %.4g, and inputs have %.4g bits on average without it",
                    s->activations.average, least);
}

err setup_check_eight(const settings *s, const llama_config *cfg) {
    err e = err_none();
    for (int k = 0; k < INPUT_PLACES && !e.code; k++)
        e = check_layers(&s->activations.eight.at[k], cfg);
    return e;
}

static err check_places(const settings *s) {
    static const layer_flags none;
    err e = err_none();
    for (int k = 0; k < INPUT_PLACES && !e.code; k++)
        if (memcmp(&s->activations.eight.at[k], &none, sizeof none))
            e = check_place(s, (input_place)k);
    return e;
}

void setup_put_eight(recipe *r, const llama_config *cfg, const input_eight *e) {
    recipe_put(r, "activations.eight", recipe_layers_json(e, cfg->layers));
}

err setup_resolve_eight(recipe *r, const llama_config *cfg) {
    const input_eight eight = recipe_settings(r)->activations.eight;
    err e = setup_check_eight(recipe_settings(r), cfg);
    if (!e.code) e = check_places(recipe_settings(r));
    if (!e.code) e = check_average(recipe_settings(r), cfg);
    if (!e.code && input_eight_any(&eight)) setup_put_eight(r, cfg, &eight);
    return e;
}

void setup_eight_say(const settings *s, const llama_config *cfg) {
    char line[400] = "";
    size_t used = 0;
    for (int k = 0; k < INPUT_PLACES && used < sizeof line; k++) {
        char layers[160];
        const int64_t bits =
            k == INPUT_DOWN ? settings_down_bits(s) : s->activations.bits; /* without being named */
        if (bits >= INPUT_EIGHT_BITS) continue;
        layer_flags_text(&s->activations.eight.at[k], cfg->layers, layers, sizeof layers);
        if (*layers)
            used += (size_t)snprintf(line + used, sizeof line - used, "%s%s %s", used ? "; " : "",
                                     input_place_name((input_place)k), layers);
    }
    if (used)
        log_line(LOG_RUN,
                 "inputs of 8 bits: layers of %s; %.3g bits on average over the "
                 "multiplications of linears",
                 line, setup_average_bits(s, cfg));
}
