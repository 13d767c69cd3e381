/* text_word - a text as --text names it: FILE[,limit=N][,tail=N]. Not its reading (io/text.h). */
#ifndef SPINSHARD_JOBS_SETUP_TEXT_WORD_H
#define SPINSHARD_JOBS_SETUP_TEXT_WORD_H

#include "base/err.h"

typedef struct text_word {
    char *path;          /* owned (free) */
    int64_t limit, tail; /* windows, tokens; 0: not said */
} text_word;

/* Local. Words behind the last commas that read limit=N or tail=N are taken; all before them is the
 * path. Caller frees out->path, also after an error. ERR_USAGE for numbers below 1 or said twice.
 */
err text_word_parse(const char *word, text_word *out);

#endif
