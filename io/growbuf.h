/* growbuf - bytes or ids whose number is not known beforehand. Not a string type: NUL has no
 * meaning. Used between the steps of the tokenizer. */
#ifndef SPINSHARD_IO_GROWBUF_H
#define SPINSHARD_IO_GROWBUF_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

typedef struct growbuf {
    char *data; /* owns; aligned for any type */
    size_t len; /* bytes in use */
    size_t cap;
} growbuf;

/* Local. Room for `more` bytes behind len; grows by half. False where memory ends: a bool, since an
 * err is too large to be handed back for every word. growbuf_full makes the err of it. */
bool growbuf_reserve(growbuf *b, size_t more);
err growbuf_full(void);

void growbuf_clear(growbuf *b); /* local; frees; the zero value is ready for use again */

/* Local. Append, with room made; false where memory ends. */
static inline bool growbuf_add(growbuf *b, const void *from, size_t n) {
    if (b->cap - b->len < n && !growbuf_reserve(b, n)) return false;
    if (n) memcpy(b->data + b->len, from, n);
    b->len += n;
    return true;
}

#endif
