/* gguf_header - the first bytes of a GGUF file (version 3): key-value pairs, then name, sizes, type
 * and place of each tensor. Not the pairs themselves (gguf_metadata.h) and not the data. On the
 * way: shard bytes -> [gguf_header] -> archive entry. */
#ifndef SPINSHARD_SHARD_GGUF_HEADER_H
#define SPINSHARD_SHARD_GGUF_HEADER_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum { GGUF_ALIGN = 32 }; /* of the data section and of each tensor in it */

/* Types of values. */
typedef enum gguf_type {
    GGUF_U16 = 2,
    GGUF_U32 = 4,
    GGUF_I32 = 5,
    GGUF_F32 = 6,
    GGUF_BOOL = 7,
    GGUF_STRING = 8,
    GGUF_ARRAY = 9,
} gguf_type;

/* Local. Little-endian pieces of a header, into a stream in memory. */
void gguf_put_string(FILE *f, const char *text, size_t len);
void gguf_put_key(FILE *f, const char *key, gguf_type type);
void gguf_put_u32(FILE *f, const char *key, uint32_t v);
void gguf_put_f32(FILE *f, const char *key, float v);
void gguf_put_bool(FILE *f, const char *key, int v);
void gguf_put_text(FILE *f, const char *key, const char *text);
/* Key and length of an array; its n values follow, without types. */
void gguf_put_array(FILE *f, const char *key, gguf_type of, uint64_t n);

/* Local. A part as layout_shard_header gives it, padded to GGUF_ALIGN. The first part has the pairs
 * of the layout; where there are several, all say which they are. Caller frees *out. */
struct layout;
err gguf_header(const struct layout *l, int64_t part, char **out, size_t *len);

#endif
