/* safetensors - the container of tensors: a strict reader of headers and a writer of them.
 * A file is 8 bytes of little-endian length N, N bytes of JSON, then the data section.
 * Not a loader: it reads no tensor data, maps nothing, and knows no model. Stands first on the way
 * (a tensor is found by its name) and last (a shard begins with the header written here).
 *
 * Refused, each with the tensor and the reason: a header above 100,000,000 bytes or past the end of
 * the file; anything but one JSON object; a name or field that occurs twice; numbers that are not
 * plain unsigned integers; a shape whose product or size overflows; sizes that disagree with shape
 * and type; holes, overlaps, bytes that no tensor names; invalid UTF-8; NUL in names; metadata that
 * is not text to text. White space around the object is fine. Our own refusals, where readers
 * differ: more than 8 dimensions (no weight has them), fields other than dtype, shape and
 * data_offsets (an unknown field may change what the bytes mean), and a product that overflows
 * before a zero factor. */
#ifndef SPINSHARD_IO_SAFETENSORS_H
#define SPINSHARD_IO_SAFETENSORS_H

#include "base/err.h"
#include "base/sha256.h"

#include <stddef.h>
#include <stdint.h>

enum { ST_MAX_DIMS = 8, ST_MAX_HEADER_BYTES = 100000000 };

/* Element types of the format. The last ones are known so that a size can be checked; nothing of
 * ours computes with them. */
typedef enum st_dtype {
    ST_BOOL,
    ST_U8,
    ST_I8,
    ST_I16,
    ST_U16,
    ST_F16,
    ST_BF16,
    ST_I32,
    ST_U32,
    ST_F32,
    ST_F64,
    ST_I64,
    ST_U64,
    ST_F8_E4M3,
    ST_F8_E5M2,
    ST_F8_E8M0,
    ST_F8_E4M3FNUZ,
    ST_F8_E5M2FNUZ,
    ST_C64,
    ST_F4,
    ST_F6_E2M3,
    ST_F6_E3M2,
    ST_N_DTYPES,
} st_dtype;

int st_dtype_bits(st_dtype t);         /* local; bits of one element; for tests */
int st_dtype_bytes(st_dtype t);        /* local; 0 for types below a byte */
const char *st_dtype_name(st_dtype t); /* local; "BF16" */

/* One tensor of a header. begin and end count from the start of the data section. */
typedef struct st_tensor {
    const char *name; /* borrowed from the header */
    st_dtype dtype;
    int n_dims; /* 0: a scalar */
    int64_t shape[ST_MAX_DIMS];
    uint64_t begin, end;
} st_tensor;

typedef struct st_header st_header;

/* Local. Parse the JSON of a header (without the 8 length bytes) of a file whose data section has
 * data_bytes bytes; `where` names the file in messages. Memory stays within a small multiple of
 * len. Caller owns *out (st_header_destroy). Fails with ERR_INPUT. */
err st_header_parse(const char *json, size_t len, uint64_t data_bytes, const char *where,
                    st_header **out);

/* Local. The JSON bytes of the file that takes `bytes` bytes of fd from `offset`, checked for size
 * only; caller frees *json (free). Names LFS pointers, web pages and pickles found instead. */
err st_header_read_text(int fd, const char *where, uint64_t offset, uint64_t bytes, char **json,
                        size_t *len);

/* Local. Both of the above. */
err st_header_read(int fd, const char *where, uint64_t offset, uint64_t bytes, st_header **out);
/* Local. The header of a file that is in memory, `bytes` bytes of it. Caller owns *out; fails as
 * st_header_read. */
err st_header_of_bytes(const void *file, size_t bytes, const char *where, st_header **out);
void st_header_destroy(st_header **h); /* local; NULL is fine; sets NULL */

int64_t st_header_count(const st_header *h); /* local */

/* Local. Tensor i in the order of the data section. */
const st_tensor *st_header_at(const st_header *h, int64_t i);

/* Local. NULL where there is none. O(log n). */
const st_tensor *st_header_find(const st_header *h, const char *name);

/* Local. Text-to-text metadata: the value of a key (NULL: none), the number, pair i in file order.
 */
const char *st_header_metadata(const st_header *h, const char *key);
int64_t st_header_metadata_count(const st_header *h);
void st_header_metadata_at(const st_header *h, int64_t i, const char **key, const char **value);

/* Local. 8 + length of the JSON: where the data section begins in the file. */
uint64_t st_header_data_offset(const st_header *h);
uint64_t st_header_data_bytes(const st_header *h); /* local; size of the data section; for tests */

/* Local. sha256 of the raw header, the 8 length bytes included. */
const char *st_header_sha256(const st_header *h);

/* Local. The header of a file that holds these tensors, in the given order with the begin and end
 * given: 8 length bytes and JSON, padded with spaces so that the data section begins at a multiple
 * of
 * 8. metadata: key, value, ..., NULL in the order to write (NULL: none). Same arguments, same
 * bytes. Caller frees *out (free). Fails with ERR_BUG where st_header_parse would refuse the
 * result. */
err st_header_write(const st_tensor *tensors, int64_t n, const char *const *metadata, char **out,
                    size_t *len);

/* Rows of a matrix, or of a stack of matrices one after the other, that is written in pieces: rows
 * [row, row + rows) of tensor i to `to`, where there is room for as many doubles as they have
 * elements. */
typedef struct st_rows {
    void *arg;
    void (*get)(void *arg, int64_t i, int64_t row, int64_t rows, void *to);
} st_rows;

/* Local. A whole file at once, for small ones (rotations): data[i] holds the bytes of tensor i, or
 * is NULL where it comes from `rows` (NULL: none does); the begin and end of the
 * tensors are computed here, in the given order. Published whole or not at all (base/file.h,
 * file_publish). sha256_hex (may be NULL) receives the hash of the file. */
err st_file_write(const char *path, const st_tensor *tensors, int64_t n, const void *const *data,
                  const st_rows *rows, const char *const *metadata, char sha256_hex[SHA256_HEX]);

#endif
