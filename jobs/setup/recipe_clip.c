/* Every form becomes two ends for each word. */
#include "jobs/setup/recipe_clip.h"

#include "jobs/setup/recipe_words.h"

#include <string.h>

static bool fits_end(const json_t *v, double lo, double hi) {
    return json_is_number(v) && json_number_value(v) >= lo && json_number_value(v) <= hi;
}

/* One number for both ends, or both: [low, high]. */
static bool fits_ends(const json_t *v, double lo, double hi) {
    if (!json_is_array(v)) return fits_end(v, lo, hi);
    return json_array_size(v) == 2 && fits_end(json_array_get(v, 0), lo, hi) &&
           fits_end(json_array_get(v, 1), lo, hi);
}

bool recipe_clip_fits(const json_t *v, double lo, double hi, const char *words) {
    const char *place;
    json_t *ends;
    if (json_is_string(v)) return !strcmp(json_string_value(v), "search");
    if (!json_is_object(v)) return fits_end(v, lo, hi);
    json_object_foreach((json_t *)(uintptr_t)v, place, ends) {
        if (!recipe_is_word(place, words) || !fits_ends(ends, lo, hi)) return false;
    }
    return true;
}

void recipe_clip_store(const json_t *v, const char *words, clip_setting *to) {
    const char *place;
    json_t *ends;
    *to = (clip_setting){.from = json_is_string(v)   ? CLIPS_SEARCH
                                 : json_is_object(v) ? CLIPS_BY_PLACE
                                                     : CLIPS_NUMBER};
    for (int i = 0; i < CLIP_WORDS; i++)
        to->ends[i][0] = to->ends[i][1] = json_is_number(v) ? json_number_value(v) : 1;
    json_object_foreach((json_t *)(uintptr_t)v, place, ends) {
        double *at = to->ends[recipe_word_index(place, words)];
        for (size_t i = 0; i < 2; i++)
            at[i] = json_number_value(json_is_array(ends) ? json_array_get(ends, i) : ends);
    }
}
