/* Capacity grows by half, with checked arithmetic. */
#include "io/growbuf.h"

#include "base/size.h"

#include <stdlib.h>

bool growbuf_reserve(growbuf *b, size_t more) {
    uint64_t need;
    if (b->data && b->cap - b->len >= more) return true;
    if (!size_add(b->len, more, &need) || need > INT64_MAX / 2) return false;
    uint64_t cap = b->cap + b->cap / 2;
    if (cap < need) cap = need;
    if (cap < 256) cap = 256;
    char *grown = realloc(b->data, cap);
    if (!grown) return false;
    b->data = grown;
    b->cap = cap;
    return true;
}

err growbuf_full(void) {
    return err_make(ERR_NOFIT, "text", "use a shorter text", "no memory for the tokens of a text");
}

void growbuf_clear(growbuf *b) {
    free(b->data);
    *b = (growbuf){0};
}
