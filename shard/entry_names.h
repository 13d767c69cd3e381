/* entry_names - the rules for names of archive entries, shared by writer, reader and manifest.
 * An entry is "<folder>/<base name>" in printable ASCII. Not about tensors. */
#ifndef SPINSHARD_SHARD_ENTRY_NAMES_H
#define SPINSHARD_SHARD_ENTRY_NAMES_H

#include "base/err.h"

#include <stdint.h>

/* Local. NULL for "<folder>/<base name>", else what is wrong with it, to follow the name in a
 * message. */
const char *entry_name_fault(const char *name);

/* Local. NULL for one plain path component in printable ASCII, else what is wrong with it. */
const char *entry_base_fault(const char *name);

/* Local. The part after the '/'. */
const char *entry_base(const char *name);

/* Local. Fails with ERR_VERIFY, naming both, where two names are equal or differ by case alone:
 * such files overwrite each other on some file systems. */
err entry_names_distinct(const char *const *names, int64_t n, const char *where);

#endif
