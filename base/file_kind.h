/* file_kind - what a file is by its first bytes, where it is not what was asked for: a pointer to a
 * file that was not fetched, a page of a web server, something packed. Not a guess at encodings,
 * and not asked of a file that can be read. */
#ifndef SPINSHARD_BASE_FILE_KIND_H
#define SPINSHARD_BASE_FILE_KIND_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>

/* Local. The kind as in "is KIND", or NULL where none is known; *hint is then what to do with FILE.
 * A web page counts where no text is wanted, since a text may be one. */
const char *file_kind(const void *data, size_t len, bool text, const char **hint);

/* Local. ERR_INPUT where the kind is known: "is KIND, not WANTED". The first 32 bytes are enough.
 */
err file_kind_refuse(const char *where, const void *data, size_t len, bool text,
                     const char *wanted);

#endif
