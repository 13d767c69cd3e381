/* utf8 - is a text UTF-8, and its characters one by one. Not Unicode: what a character is
 * (letter, space) is told by io/normalize.h. First thing done to a text that was read. */
#ifndef SPINSHARD_IO_UTF8_H
#define SPINSHARD_IO_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* Local. Offset of the first byte that is not part of a valid sequence (surrogates and overlong
 * forms are not valid), or len. */
size_t utf8_check(const char *text, size_t len);

/* Local. Bytes of the character that begins with this byte of valid UTF-8. */
static inline size_t utf8_width(char lead) {
    unsigned char c = (unsigned char)lead;
    return c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
}

/* Local. The character at p of valid UTF-8; *width gets its bytes. */
static inline uint32_t utf8_at(const char *p, size_t *width) {
    const unsigned char *c = (const unsigned char *)p;
    *width = utf8_width(*p);
    switch (*width) {
    case 1:
        return c[0];
    case 2:
        return (c[0] & 0x1fu) << 6 | (c[1] & 0x3fu);
    case 3:
        return (c[0] & 0x0fu) << 12 | (c[1] & 0x3fu) << 6 | (c[2] & 0x3fu);
    default:
        return (c[0] & 0x07u) << 18 | (c[1] & 0x3fu) << 12 | (c[2] & 0x3fu) << 6 | (c[3] & 0x3fu);
    }
}

/* Local. Start of the character that ends just before p; begin < p. */
static inline const char *utf8_before(const char *begin, const char *p) {
    do p--;
    while (p > begin && ((unsigned char)*p & 0xc0u) == 0x80u);
    return p;
}

/* Local. Write a character below 0x110000; returns its bytes. */
size_t utf8_put(uint32_t c, char to[4]);

#endif
