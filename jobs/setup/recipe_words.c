/* A word ends at the next bar or at the end. */
#include "jobs/setup/recipe_words.h"

#include <stdio.h>
#include <string.h>

bool recipe_is_word(const char *word, const char *words) {
    size_t n = strlen(word);
    for (const char *w = words; w; w = strchr(w, '|')) {
        if (*w == '|') w++;
        if (n && !strncmp(w, word, n) && (!w[n] || w[n] == '|')) return true;
    }
    return false;
}

int recipe_word_index(const char *word, const char *words) {
    const size_t n = strlen(word);
    int at = 0;
    for (const char *w = words; w; w = strchr(w, '|'), at++) {
        if (*w == '|') w++;
        if (!strncmp(w, word, n) && (!w[n] || w[n] == '|')) return at;
    }
    return at;
}

void recipe_word_at(int place, const char *words, char *to, size_t n) {
    const char *w = words;
    for (; place && (w = strchr(w, '|')); place--) w++;
    snprintf(to, n, "%.*s", w ? (int)strcspn(w, "|") : 0, w ? w : "");
}
