/* text - text files and token-id files, and their cut into windows of equal length.
 * Not a data loader: a text is read whole, windows do not overlap, order is the file's.
 * Stands between the tokenizer and the forward pass of eval and calibration. */
#ifndef SPINSHARD_IO_TEXT_H
#define SPINSHARD_IO_TEXT_H

#include "base/err.h"
#include "io/tokenizer.h"

#include <stddef.h>
#include <stdint.h>

/* What stands at the start of each window. */
typedef enum bos_mode {
    BOS_AUTO,        /* what the tokenizer's post-processor adds in front */
    BOS_NONE,        /* nothing */
    BOS_EACH_WINDOW, /* as AUTO; where that adds nothing, the explicit BOS id */
} bos_mode;

/* Local. A whole text file, without a byte order mark. JSON lines (the first line is an object with
 * "text") are read as texts, one a line, with a line feed after each. Caller frees *text (free),
 * which has a NUL after the last byte. Fails with ERR_INPUT: unreadable, a file of another kind
 * (gzip, zstd, parquet, a JSON array, ...: named by its first bytes, with the way out), or not
 * UTF-8 (with the byte offset). */
err text_read(const char *path, char **text, size_t *len);

/* Local. A text file as text_read has it, but JSON stays as it stands: for files whose lines have a
 * grammar of their own. */
err text_read_lines(const char *path, char **text, size_t *len);

/* Local. Token ids as integers between white space or commas, or as one JSON array; each must lie
 * in 0..vocab-1. Caller frees *ids (free). Fails with ERR_INPUT and the place. */
err text_read_ids(const char *path, int64_t vocab, int32_t **ids, int64_t *n);

typedef struct text_windows text_windows;

/* Local. Cut n ids into windows of `window` tokens, BOS included: k tokens of BOS and window - k of
 * text; what is left at the end is dropped. tail > 0 keeps only the last `tail` ids before the cut;
 * limit > 0 keeps the first `limit` windows. bos_id is used by BOS_EACH_WINDOW alone (-1: none
 * known). t may be NULL: no post-processor. `where` names the text. ids is copied.
 * Caller owns *out (text_windows_destroy). Fails with ERR_INPUT where the text has less than one
 * window (tokens found and needed), or BOS_EACH_WINDOW has no token to put; ERR_USAGE for a
 * window too short to predict anything. */
err text_windows_create(const int32_t *ids, int64_t n, int64_t window, int64_t limit, int64_t tail,
                        bos_mode mode, int32_t bos_id, const tokenizer *t, const char *where,
                        text_windows **out);
void text_windows_destroy(text_windows **w); /* local; NULL is fine; sets NULL */

int64_t text_windows_count(const text_windows *w); /* local */
int64_t
text_windows_length(const text_windows *w); /* local; tokens in a window, BOS included; for tests */

/* Local. Window i: text_windows_length ids. Borrowed from w. */
const int32_t *text_window_at(const text_windows *w, int64_t i);

/* Local. For people: "none", or the token and its id, as in "<s> (1)". Borrowed. */
const char *text_windows_bos(const text_windows *w);

#endif
