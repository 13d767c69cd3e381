/* entry_names - the rules for names of archive entries, shared by writer, reader and manifest.
 * An entry is "<folder>/<file>" in printable ASCII, where <file> is a base name or one below
 * FILESET_TEMPLATES (io/fileset.h). Not about tensors. */
#ifndef SPINSHARD_SHARD_ENTRY_NAMES_H
#define SPINSHARD_SHARD_ENTRY_NAMES_H

#include "base/err.h"

#include <stdint.h>

/* Local. NULL for "<folder>/<file>", else what is wrong with it, to follow the name in a message.
 */
const char *entry_name_fault(const char *name);

/* Local. NULL for one plain path component in printable ASCII, else what is wrong with it. */
const char *entry_base_fault(const char *name);

/* Local. NULL for a <file> as above, else what is wrong with it. */
const char *entry_file_fault(const char *name);

/* Local. The <file> of an entry: what stands after the first '/'. */
const char *entry_file(const char *name);

/* Local. Fails with ERR_VERIFY, naming both, where two names are equal or differ by case alone:
 * such files overwrite each other on some file systems. */
err entry_names_distinct(const char *const *names, int64_t n, const char *where);

#endif
