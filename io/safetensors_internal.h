/* safetensors_internal - the body of a header, shared by the reader of its text
 * (safetensors_parse.c) and the checks and questions (safetensors.c). Not for anybody else. */
#ifndef SPINSHARD_IO_SAFETENSORS_INTERNAL_H
#define SPINSHARD_IO_SAFETENSORS_INTERNAL_H

#include "io/safetensors.h"

#include <stdbool.h>

typedef struct st_pair {
    const char *key, *value;
} st_pair;

struct st_header {
    char *strings; /* names and metadata, decoded, each with a NUL */
    st_tensor *tensors;
    int64_t n_tensors, room_tensors;
    st_tensor **by_name;
    st_pair *pairs;
    int64_t n_pairs, room_pairs;
    st_pair *by_key;
    uint64_t data_offset, data_bytes;
    char sha256[SHA256_HEX];
};

/* Local. Fill strings, tensors and pairs of a zeroed header in the order of the text. Checks the
 * grammar and each field; sizes, offsets and duplicate names are left to the caller, who also
 * destroys h on failure. Fails with ERR_INPUT. */
err st_parse_text(const char *text, size_t len, const char *where, st_header *h);

/* Local. The type of a name; false where it is not one. */
bool st_dtype_parse(const char *name, st_dtype *out);

/* Local. Put '?' for control bytes in a text that quotes a file, so that it cannot steer a
 * terminal. */
void st_make_printable(char *text);

#endif
