/* recipe_key - what a row of the recipe's tables says of a key, and what its kind of value takes:
 * which JSON fits, how that is told, and how it goes into a field of the settings. Not the tables
 * (jobs/setup/recipe.c). */
#ifndef SPINSHARD_JOBS_SETUP_RECIPE_KEY_H
#define SPINSHARD_JOBS_SETUP_RECIPE_KEY_H

#include "base/json.h"

#include <stdbool.h>
#include <stddef.h>

typedef enum key_kind {
    KIND_INT,
    KIND_REAL,
    KIND_BOOL,
    KIND_WORD, /* one of `words` */
    KIND_WORD_OR_TEXT,
    KIND_INT_OR_WORD, /* a whole number in lo..hi, or one of `words` */
    KIND_WORDS,       /* a list of `words` */
    KIND_SIZE,
    KIND_CLIP,   /* a number in lo..hi, "search", or numbers or pairs of them by `words` */
    KIND_LAYERS, /* layers by `words` */
    KIND_PHASES,
} key_kind;

typedef struct key {
    const char *path;
    size_t offset, size; /* of its field */
    key_kind kind;
    const char *standard; /* the default, as YAML */
    double lo, hi;
    const char *words; /* separated by '|' */
    const char *help;
} key;

/* Local. Does the value fit the key? */
bool key_fits(const key *k, const json_t *v);

/* Local. What fits it, in words of n bytes, for messages and --help. */
void key_describe(const key *k, char *text, size_t n);

/* Local. Bytes of the field of a kind. */
size_t key_kind_bytes(key_kind k);

/* Local. A value that fits its key into the key's field of the struct `to`; texts are borrowed from
 * v. A word among numbers is minus its place. Phases of learn are read by the caller. */
void key_store(const key *k, const json_t *v, void *to);

#endif
