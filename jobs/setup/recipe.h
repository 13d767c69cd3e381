/* recipe - how to quantize, as one tree of keys: defaults, then a YAML file, then --set, then
 * flags. Every key has a type, a default and bounds in one table; an unknown key is an error that
 * names the nearest one. Not the command line (jobs/setup/options.h), and not the values as others
 * see them (jobs/setup/settings.h). The resolved tree goes into
 * the output. */
#ifndef SPINSHARD_JOBS_SETUP_RECIPE_H
#define SPINSHARD_JOBS_SETUP_RECIPE_H

#include "base/err.h"
#include "base/json.h"
#include "jobs/setup/options.h"
#include "jobs/setup/settings.h"

#include <stdint.h>

typedef struct recipe recipe;

/* Local. Resolve from options; `file_text` is the text of the --recipe file (NULL: none) and
 * file_name its name for messages; `base` (may be NULL) is a resolved tree that replaces the
 * defaults (the recipe of an archive). Caller owns *out. Fails with ERR_USAGE. */
err recipe_create(const options *o, const char *file_text, const char *file_name,
                  const json_t *base, recipe **out);
recipe *recipe_copy(const recipe *r); /* local; caller owns it */
void recipe_destroy(recipe **r);      /* local; NULL is fine; sets NULL */

/* Local. What it says, as a struct; true as long as r lives, also after recipe_put. */
const settings *recipe_settings(const recipe *r);

/* Local. A value as JSON, by dotted path; asking for a key that is not in the table is a bug
 * (abort). */
const json_t *recipe_get(const recipe *r, const char *path);

/* Local. Replace a value while resolving ("auto" by what was chosen). Takes over `value`. */
void recipe_put(recipe *r, const char *path, json_t *value);

const json_t *recipe_tree(const recipe *r); /* local; borrowed */

/* Local. Where a --recipe argument points: itself if it is a path, else the built-in of that name.
 * Caller frees. Fails with ERR_USAGE, naming the built-in ones. */
err recipe_find_file(const char *arg, char **path);

/* Local. The table of keys on stdout, for --help. */
void recipe_help(void);

#endif
