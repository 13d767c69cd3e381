/* sha256 - the one door to the hash library. Not a general digest interface. */
#ifndef SPINSHARD_BASE_SHA256_H
#define SPINSHARD_BASE_SHA256_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

enum { SHA256_HEX = 65 }; /* 64 lower-case digits and a NUL */

typedef struct sha256 sha256;

sha256 *sha256_create(void); /* local; aborts where memory ends */
void sha256_add(sha256 *h, const void *data, size_t len);
/* Local. The digest as hex; frees the state and sets it NULL. */
void sha256_finish(sha256 **h, char hex[SHA256_HEX]);
void sha256_of(const void *data, size_t len, char hex[SHA256_HEX]);

/* Local. Hash n bytes of an open file from offset. */
err sha256_of_range(int fd, const char *path, uint64_t offset, uint64_t n, char hex[SHA256_HEX]);

/* Local. Hash a whole regular file. Fails with ERR_INPUT. */
err sha256_of_file(const char *path, char hex[SHA256_HEX]);

#endif
