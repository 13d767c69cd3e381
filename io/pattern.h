/* pattern - a regular expression of a tokenizer.json, written for Oniguruma with Ruby syntax, as
 * one for PCRE2 (with UTF, UCP and MULTILINE) that matches the same. Not a matcher. Used once,
 * while a tokenizer is loaded. */
#ifndef SPINSHARD_IO_PATTERN_H
#define SPINSHARD_IO_PATTERN_H

#include "io/growbuf.h"

/* Local. Append the translation and a NUL to out. Fails with ERR_INPUT for a construct whose
 * meaning differs and that is not translated, naming it. */
err pattern_translate(const char *onig, const char *where, growbuf *out);

#endif
