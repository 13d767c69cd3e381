/* text_kind - the text of a file that is given as text: people give what their data set came as.
 * JSON lines are read; other kinds are named by base/file_kind.h. Before the tokenizer. */
#ifndef SPINSHARD_IO_TEXT_KIND_H
#define SPINSHARD_IO_TEXT_KIND_H

#include "base/err.h"

#include <stddef.h>

/* Local. A UTF-8 byte order mark goes, in place. */
void text_kind_drop_mark(char *text, size_t *len);

/* Local. Where the first line is a JSON object the file is JSON lines: *text (malloc) becomes what
 * their "text" say, a line feed after each; empty lines do not count. Other texts stay. Fails with
 * ERR_INPUT: a line that is no object with "text", or a JSON array. */
err text_kind_unfold(const char *path, char **text, size_t *len);

#endif
