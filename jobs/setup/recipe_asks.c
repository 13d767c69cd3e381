/* Yes or no from the settings alone: no model is looked at. */
#include "jobs/setup/recipe_asks.h"

#include "base/size.h"

bool quantize_starts_at(const settings *s, start_point point) {
    const start_point r2 = s->rotate.start_r2 == START_R2_SAME  ? (start_point)s->rotate.start.word
                           : s->rotate.start_r2 == START_R2_PCA ? START_POINT_PCA
                                                                : START_POINT_WOMI;
    return (start_point)s->rotate.start.word == point || r2 == point;
}

bool quantize_needs_calibration(const settings *s) {
    return quantize_learns(s) || quantize_uses_gptq(s);
}

bool quantize_learns(const settings *s) {
    return s->n_learn || quantize_starts_at(s, START_POINT_PCA) ||
           (s->scale.start != SCALES_ONES && s->scale.pairs) || quantize_judges_sites(s) ||
           quantize_scales_cache(s);
}

bool quantize_learns_r3(const settings *s) {
    return s->rotate.r3 != R3_HAD && (s->rotate.online & ONLINE_R3) && s->kv.bits < 16;
}

bool quantize_tunes_sites(const settings *s) {
    const bool inputs = s->activations.bits < 16 || settings_down_bits(s) < 16;
    return quantize_learns_r3(s) || (inputs && s->activations.clip.from == CLIPS_SEARCH) ||
           (s->kv.bits < 16 && s->kv.clip.from == CLIPS_SEARCH);
}

bool quantize_judges_sites(const settings *s) {
    return quantize_tunes_sites(s) || s->activations.average > 0;
}

bool quantize_scales_cache(const settings *s) {
    return settings_fp8_cache(s) && settings_round_weights(s) && !settings_fp16_scales(s);
}

bool quantize_uses_gptq(const settings *s) {
    return s->weights.method != METHOD_RTN && settings_round_weights(s);
}

const char *quantize_items_phase(const settings *s) {
    if (!settings_round_weights(s)) return "fuse";
    return quantize_uses_gptq(s) ? "gptq" : "round";
}

bool learn_e2e_is(const learn_settings *phase) {
    return e2e_objective_of(phase->objective) != NULL;
}

bool learn_scales_by(const settings *s, const learn_settings *phase) {
    return learn_e2e_is(phase) && phase->lr_scale > 0 && s->scale.pairs;
}

bool learn_scales_any(const settings *s) {
    for (int64_t k = 0; k < s->n_learn; k++)
        if (learn_scales_by(s, &s->learn[k])) return true;
    return false;
}

bool learn_needs_rows(const settings *s, int64_t first, bool fresh) {
    for (int64_t k = size_max(0, first); k < s->n_learn; k++)
        if (!learn_e2e_is(&s->learn[k])) return true;
    return fresh &&
           (quantize_starts_at(s, START_POINT_PCA) || quantize_starts_at(s, START_POINT_WOMI));
}

/* Where neither activations nor the cache have ranges, weights are all there is to learn for. */
bool learn_weights_count(const settings *s, const learn_settings *phase) {
    if (phase->objective != OBJECTIVE_RANGE) return false;
    return phase->weights || (s->activations.bits >= 16 && !settings_cache_has_ranges(s));
}

bool learn_weights_needed(const settings *s) {
    for (int64_t k = 0; k < s->n_learn; k++)
        if (learn_weights_count(s, &s->learn[k])) return true;
    return false;
}

bool learn_draws(const settings *s, const learn_settings *phase) {
    return phase->objective == OBJECTIVE_RANGE && phase->draw == DRAW_IMPORTANCE && s->rotate.r1 &&
           s->activations.bits < 16;
}

bool learn_draws_any(const settings *s) {
    for (int64_t k = 0; k < s->n_learn; k++)
        if (learn_draws(s, &s->learn[k])) return true;
    return false;
}
