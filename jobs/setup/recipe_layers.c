/* Each place has one item or a list of them; an item is a number, a range or "all". */
#include "jobs/setup/recipe_layers.h"

#include "jobs/setup/recipe_words.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Digits alone, up to the largest layer; *end stands behind them. */
static bool read_number(const char *s, const char **end, int64_t *out) {
    *out = 0;
    for (*end = s; **end >= '0' && **end <= '9'; ++*end) {
        *out = 10 * *out + (**end - '0');
        if (*out >= LLAMA_MAX_LAYERS) return false;
    }
    return *end > s;
}

/* Both ends of an item, the second included. */
static bool read_item(const json_t *v, int64_t *first, int64_t *last) {
    if (json_is_integer(v)) {
        *first = *last = json_integer_value(v);
        return *first >= 0 && *first < LLAMA_MAX_LAYERS;
    }
    const char *s = json_string_value(v), *rest;
    if (!s) return false;
    *first = 0;
    *last = LLAMA_MAX_LAYERS - 1;
    if (!strcmp(s, "all")) return true;
    if (!read_number(s, &rest, first)) return false;
    *last = *first;
    if (!*rest) return true;
    return *rest == '-' && read_number(rest + 1, &rest, last) && !*rest && *first <= *last;
}

static bool fits_items(const json_t *v) {
    int64_t first, last;
    size_t i;
    json_t *item;
    if (!json_is_array(v)) return read_item(v, &first, &last);
    json_array_foreach(v, i, item) {
        if (!read_item(item, &first, &last)) return false;
    }
    return json_array_size(v) > 0;
}

bool recipe_layers_fit(const json_t *v, const char *words) {
    const char *place;
    json_t *items;
    if (!json_is_object(v)) return false;
    json_object_foreach((json_t *)(uintptr_t)v, place, items) {
        if (!recipe_is_word(place, words) || !fits_items(items)) return false;
    }
    return true;
}

static void put_item(const json_t *item, layer_flags *to) {
    int64_t first, last;
    if (!read_item(item, &first, &last)) abort(); /* recipe_layers_fit let it pass */
    for (int64_t l = first; l <= last; l++) layer_flags_put(to, l, true);
}

void recipe_layers_store(const json_t *v, const char *words, input_eight *to) {
    const char *place;
    json_t *items, *item;
    size_t i;
    *to = (input_eight){0};
    json_object_foreach((json_t *)(uintptr_t)v, place, items) {
        layer_flags *at = &to->at[recipe_word_index(place, words)];
        if (!json_is_array(items)) put_item(items, at);
        json_array_foreach(items, i, item) put_item(item, at);
    }
}

/* "0-4, 7" as ["0-4", 7]; one item stands alone. */
static json_t *items_of(char *text) {
    json_t *list = json_array();
    for (char *next, *item = strtok_r(text, ", ", &next); item;
         item = strtok_r(NULL, ", ", &next)) {
        const bool number = strspn(item, "0123456789") == strlen(item);
        json_array_append_new(list, number ? json_integer(atoll(item)) : json_string(item));
    }
    json_t *one = json_array_size(list) == 1 ? json_incref(json_array_get(list, 0)) : NULL;
    if (!one) return list;
    json_decref(list);
    return one;
}

json_t *recipe_layers_json(const input_eight *e, int64_t layers) {
    enum { MOST = 8 * LLAMA_MAX_LAYERS }; /* every other layer, with comma and blank */
    json_t *map = json_object();
    char *text = malloc(MOST);
    if (!text) abort();
    for (int k = 0; k < INPUT_PLACES; k++) {
        layer_flags_text(&e->at[k], layers, text, MOST);
        if (*text) json_object_set_new(map, input_place_name((input_place)k), items_of(text));
    }
    free(text);
    return map;
}
