/* Well-formed byte sequences by the Unicode Standard, table 3-7; eight ASCII bytes are skipped at
 * a time. */
#include "io/utf8.h"

#include <stdbool.h>
#include <string.h>

static bool continues(unsigned char c) {
    return (c & 0xc0u) == 0x80u;
}

/* Bytes of the sequence at c, 0 where it is not valid (The Unicode Standard, table 3-7). */
static size_t sequence(const unsigned char *c, size_t left) {
    if (c[0] < 0x80) return 1;
    if (c[0] < 0xc2 || c[0] > 0xf4) return 0;
    size_t n = utf8_width((char)c[0]);
    if (left < n) return 0;
    for (size_t i = 1; i < n; i++)
        if (!continues(c[i])) return 0;
    if (c[0] == 0xe0 && c[1] < 0xa0) return 0; /* overlong */
    if (c[0] == 0xed && c[1] > 0x9f) return 0; /* surrogates */
    if (c[0] == 0xf0 && c[1] < 0x90) return 0; /* overlong */
    if (c[0] == 0xf4 && c[1] > 0x8f) return 0; /* above 0x10ffff */
    return n;
}

size_t utf8_check(const char *text, size_t len) {
    size_t i = 0;
    while (i < len) {
        uint64_t eight;
        if (len - i >= 8) {
            memcpy(&eight, text + i, 8);
            if (!(eight & 0x8080808080808080u)) {
                i += 8;
                continue;
            }
        }
        size_t n = sequence((const unsigned char *)text + i, len - i);
        if (n == 0) return i;
        i += n;
    }
    return len;
}

size_t utf8_put(uint32_t c, char to[4]) {
    if (c < 0x80) {
        to[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        to[0] = (char)(0xc0u | c >> 6);
        to[1] = (char)(0x80u | (c & 0x3fu));
        return 2;
    }
    if (c < 0x10000) {
        to[0] = (char)(0xe0u | c >> 12);
        to[1] = (char)(0x80u | (c >> 6 & 0x3fu));
        to[2] = (char)(0x80u | (c & 0x3fu));
        return 3;
    }
    to[0] = (char)(0xf0u | c >> 18);
    to[1] = (char)(0x80u | (c >> 12 & 0x3fu));
    to[2] = (char)(0x80u | (c >> 6 & 0x3fu));
    to[3] = (char)(0x80u | (c & 0x3fu));
    return 4;
}
