/* A kind of value is one case of each of three switches: does JSON fit, in words, into its field.
 */
#include "jobs/setup/recipe_key.h"

#include "base/size.h"
#include "jobs/setup/recipe_clip.h"
#include "jobs/setup/recipe_layers.h"
#include "jobs/setup/recipe_words.h"
#include "jobs/setup/settings.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool fits_number(const key *k, const json_t *v) {
    double d = json_number_value(v);
    return d >= k->lo && d <= k->hi;
}

static bool fits_list(const key *k, const json_t *v) {
    size_t i, j;
    json_t *item, *other;
    if (!json_is_array(v)) return false;
    json_array_foreach(v, i, item) {
        if (!json_is_string(item) || !recipe_is_word(json_string_value(item), k->words))
            return false;
        json_array_foreach(v, j, other) if (j < i && json_equal(item, other)) return false;
    }
    return true;
}

static bool fits_size(const key *k, const json_t *v) {
    uint64_t bytes = 0;
    if (json_is_integer(v)) return json_integer_value(v) >= (json_int_t)k->lo;
    if (!json_is_string(v)) return false;
    return !size_parse(json_string_value(v), &bytes).code && bytes >= (uint64_t)k->lo;
}

bool key_fits(const key *k, const json_t *v) {
    const char *s = json_is_string(v) ? json_string_value(v) : NULL;
    switch (k->kind) {
    case KIND_INT:
        return json_is_integer(v) && fits_number(k, v);
    case KIND_REAL:
        return json_is_number(v) && fits_number(k, v);
    case KIND_BOOL:
        return json_is_boolean(v);
    case KIND_WORD:
        return s && recipe_is_word(s, k->words);
    case KIND_WORD_OR_TEXT:
        return s && *s;
    case KIND_INT_OR_WORD:
        return (json_is_integer(v) && fits_number(k, v)) || (s && recipe_is_word(s, k->words));
    case KIND_WORDS:
        return fits_list(k, v);
    case KIND_SIZE:
        return fits_size(k, v);
    case KIND_CLIP:
        return recipe_clip_fits(v, k->lo, k->hi, k->words);
    case KIND_LAYERS:
        return recipe_layers_fit(v, k->words);
    case KIND_PHASES:
        return json_is_array(v);
    }
    return false;
}

void key_describe(const key *k, char *text, size_t n) {
    switch (k->kind) {
    case KIND_INT:
    case KIND_REAL:
        snprintf(text, n, "%s in %.16g..%.16g", k->kind == KIND_INT ? "a whole number" : "a number",
                 k->lo, k->hi);
        break;
    case KIND_BOOL:
        snprintf(text, n, "true or false");
        break;
    case KIND_WORD:
        snprintf(text, n, "%s", k->words);
        break;
    case KIND_WORD_OR_TEXT:
        snprintf(text, n, "%s or a text", k->words);
        break;
    case KIND_INT_OR_WORD:
        snprintf(text, n, "%s or a whole number in %.16g..%.16g", k->words, k->lo, k->hi);
        break;
    case KIND_WORDS:
        snprintf(text, n, "a list of %s, each once", k->words);
        break;
    case KIND_SIZE:
        snprintf(text, n, "a size as 4G, at least %.0f", k->lo);
        break;
    case KIND_CLIP:
        snprintf(text, n,
                 "a number in %.16g..%.16g, search, or a map of %s to a number or [low, high]",
                 k->lo, k->hi, k->words);
        break;
    case KIND_LAYERS:
        snprintf(text, n, "a map of %s to layers: all, a number, 5-19, or a list of these",
                 k->words);
        break;
    case KIND_PHASES:
        snprintf(text, n, "a list of phases");
        break;
    }
}

static uint64_t size_of(const json_t *v) {
    uint64_t bytes = 0;
    if (json_is_integer(v)) return (uint64_t)json_integer_value(v);
    if (size_parse(json_string_value(v), &bytes).code) abort(); /* the table let it pass */
    return bytes;
}

size_t key_kind_bytes(key_kind k) {
    static const size_t sizes[] = {[KIND_INT] = sizeof(int64_t),
                                   [KIND_REAL] = sizeof(double),
                                   [KIND_BOOL] = sizeof(bool),
                                   [KIND_WORD] = sizeof(objective_kind),
                                   [KIND_WORD_OR_TEXT] = sizeof(word_or_text),
                                   [KIND_INT_OR_WORD] = sizeof(int64_t),
                                   [KIND_WORDS] = sizeof(uint32_t),
                                   [KIND_SIZE] = sizeof(uint64_t),
                                   [KIND_CLIP] = sizeof(clip_setting),
                                   [KIND_LAYERS] = sizeof(input_eight),
                                   [KIND_PHASES] = sizeof(learn_settings *)};
    return sizes[k];
}

void key_store(const key *k, const json_t *v, void *to) {
    void *field = (char *)to + k->offset;
    const char *s = json_is_string(v) ? json_string_value(v) : NULL;
    size_t i;
    json_t *item;
    switch (k->kind) {
    case KIND_INT:
    case KIND_INT_OR_WORD:
        *(int64_t *)field = s ? -recipe_word_index(s, k->words) : json_integer_value(v);
        break;
    case KIND_REAL:
        *(double *)field = json_number_value(v);
        break;
    case KIND_BOOL:
        *(bool *)field = json_is_true(v);
        break;
    case KIND_WORD: {
        const int word = recipe_word_index(s, k->words);
        memcpy(field, &word, sizeof word); /* an enum */
        break;
    }
    case KIND_WORD_OR_TEXT:
        *(word_or_text *)field = (word_or_text){recipe_word_index(s, k->words), s};
        break;
    case KIND_WORDS:
        *(uint32_t *)field = 0;
        json_array_foreach(v, i, item) * (uint32_t *)field |=
            1u << recipe_word_index(json_string_value(item), k->words);
        break;
    case KIND_SIZE:
        *(uint64_t *)field = size_of(v);
        break;
    case KIND_CLIP:
        recipe_clip_store(v, k->words, field);
        break;
    case KIND_LAYERS:
        recipe_layers_store(v, k->words, field);
        break;
    case KIND_PHASES: /* read_settings */
        break;
    }
}
