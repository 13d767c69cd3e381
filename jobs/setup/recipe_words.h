/* recipe_words - the words of a key as one text, "a|b|c". Not the keys (jobs/setup/recipe.h). */
#ifndef SPINSHARD_JOBS_SETUP_RECIPE_WORDS_H
#define SPINSHARD_JOBS_SETUP_RECIPE_WORDS_H

#include <stdbool.h>
#include <stddef.h>

/* Local. Is it one of the words (NULL: none)? */
bool recipe_is_word(const char *word, const char *words);
/* Local. Its place among them, from 0; their number where it is none of them. */
int recipe_word_index(const char *word, const char *words);
/* Local. The word at a place, into n bytes; empty where there are fewer. */
void recipe_word_at(int place, const char *words, char *to, size_t n);

#endif
