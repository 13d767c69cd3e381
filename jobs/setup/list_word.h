/* list_word - a word of the command line that is a list: names with commas between them. Not
 * whether a file has that very name, which is for the caller to ask. */
#ifndef SPINSHARD_JOBS_SETUP_LIST_WORD_H
#define SPINSHARD_JOBS_SETUP_LIST_WORD_H

/* Local. The next name of the list, "" between two commas; *at goes behind it, and is NULL after
 * the last. NULL where *at is. Caller frees. */
char *list_word_next(const char **at);

#endif
