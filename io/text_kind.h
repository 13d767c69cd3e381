/* text_kind - what a file that is given as text really is, by its first bytes: people give what
 * their data set came as. Not a reader of those kinds, but for JSON lines. Before the tokenizer. */
#ifndef SPINSHARD_IO_TEXT_KIND_H
#define SPINSHARD_IO_TEXT_KIND_H

#include "base/err.h"

#include <stddef.h>

/* Local. ERR_INPUT for a file of a kind that is no text, naming the kind and how to make a text of
 * it: compressed, parquet, Arrow, HDF5, SQLite, zip (NumPy), pickle, UTF-16. */
err text_kind_refuse(const char *path, const char *text, size_t len);

/* Local. A UTF-8 byte order mark goes, in place. */
void text_kind_drop_mark(char *text, size_t *len);

/* Local. Where the first line is a JSON object the file is JSON lines: *text (malloc) becomes what
 * their "text" say, a line feed after each; empty lines do not count. Other texts stay. Fails with
 * ERR_INPUT: a line that is no object with "text", or a JSON array. */
err text_kind_unfold(const char *path, char **text, size_t *len);

#endif
