#include "jobs/setup/recipe_asks.h"

#include "base/size.h"
#include "jobs/setup/setup.h"

#include <string.h>

bool quantize_needs_calibration(const recipe *r) {
    return quantize_learns(r) || quantize_uses_gptq(r);
}

bool quantize_learns(const recipe *r) {
    return json_array_size(recipe_get(r, "learn")) || setup_starts_at(r, "pca") ||
           (!recipe_is(r, "scale.start", "ones") && json_array_size(recipe_get(r, "scale.pairs")));
}

bool quantize_uses_gptq(const recipe *r) {
    return !recipe_is(r, "weights.method", "rtn");
}

bool learn_e2e_is(const json_t *phase) {
    const char *objective = json_string_value(json_object_get(phase, "objective"));
    return objective && strcmp(objective, "range") != 0;
}

/* Phases and start points that need rows of the calibration text or of weights. */
bool learn_needs_rows(const recipe *r, int64_t first, bool fresh) {
    const json_t *phases = recipe_get(r, "learn");
    for (size_t k = (size_t)size_max(0, first); k < json_array_size(phases); k++)
        if (!learn_e2e_is(json_array_get(phases, k))) return true;
    return fresh && (setup_starts_at(r, "pca") || setup_starts_at(r, "womi"));
}

/* Where neither activations nor the cache are quantized, weights are all there is to learn for. */
bool learn_weights_count(const recipe *r, const json_t *phase) {
    if (strcmp(json_string_value(json_object_get(phase, "objective")), "range")) return false;
    return json_is_true(json_object_get(phase, "weights")) ||
           (recipe_int(r, "activations.bits") >= 16 && recipe_int(r, "kv.bits") >= 16);
}

bool learn_weights_needed(const recipe *r) {
    size_t i;
    json_t *phase;
    json_array_foreach(recipe_get(r, "learn"), i, phase) {
        if (learn_weights_count(r, phase)) return true;
    }
    return false;
}
