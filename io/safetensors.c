/* Header texts are parsed (safetensors_parse.c), then tensors are sorted by offset and must tile
 * the data section without gaps or overlaps, which bounds every later read. */
#include "io/safetensors.h"

#include "base/file.h"
#include "base/file_kind.h"
#include "base/size.h"
#include "io/safetensors_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "tensor data is used as it is in the file");

static const struct {
    const char *name;
    int bits;
} DTYPES[ST_N_DTYPES] = {
    [ST_BOOL] = {"BOOL", 8},
    [ST_U8] = {"U8", 8},
    [ST_I8] = {"I8", 8},
    [ST_I16] = {"I16", 16},
    [ST_U16] = {"U16", 16},
    [ST_F16] = {"F16", 16},
    [ST_BF16] = {"BF16", 16},
    [ST_I32] = {"I32", 32},
    [ST_U32] = {"U32", 32},
    [ST_F32] = {"F32", 32},
    [ST_F64] = {"F64", 64},
    [ST_I64] = {"I64", 64},
    [ST_U64] = {"U64", 64},
    [ST_F8_E4M3] = {"F8_E4M3", 8},
    [ST_F8_E5M2] = {"F8_E5M2", 8},
    [ST_F8_E8M0] = {"F8_E8M0", 8},
    [ST_F8_E4M3FNUZ] = {"F8_E4M3FNUZ", 8},
    [ST_F8_E5M2FNUZ] = {"F8_E5M2FNUZ", 8},
    [ST_C64] = {"C64", 64},
    [ST_F4] = {"F4", 4},
    [ST_F6_E2M3] = {"F6_E2M3", 6},
    [ST_F6_E3M2] = {"F6_E3M2", 6},
};

int st_dtype_bits(st_dtype t) {
    return DTYPES[t].bits;
}

int st_dtype_bytes(st_dtype t) {
    return DTYPES[t].bits / 8;
}

const char *st_dtype_name(st_dtype t) {
    return DTYPES[t].name;
}

bool st_dtype_parse(const char *name, st_dtype *out) {
    for (st_dtype t = 0; t < ST_N_DTYPES; t++) {
        if (strcmp(name, DTYPES[t].name)) continue;
        *out = t;
        return true;
    }
    return false;
}

void st_make_printable(char *text) {
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f) *text = '?';
}

static err bad_tensor(const char *where, const st_tensor *t, const char *hint, const char *why) {
    err e = err_make(ERR_INPUT, where, hint, "tensor \"%.160s\": %s", t->name, why);
    st_make_printable(e.what);
    return e;
}

/* The size that shape and type ask for; false where it overflows or is not whole bytes. */
static bool size_of(const st_tensor *t, uint64_t *bytes) {
    uint64_t n = 1;
    for (int i = 0; i < t->n_dims; i++)
        if (!size_mul(n, (uint64_t)t->shape[i], &n)) return false;
    if (!size_mul(n, (uint64_t)DTYPES[t->dtype].bits, &n) || n % 8) return false;
    *bytes = n / 8;
    return true;
}

static err check_size(const st_tensor *t, const char *where) {
    uint64_t want;
    char why[160];
    if (!size_of(t, &want))
        return bad_tensor(where, t, NULL, "its shape does not fit memory, or is not whole bytes");
    if (t->begin > t->end) return bad_tensor(where, t, NULL, "it ends before it begins");
    if (t->end - t->begin == want) return err_none();
    snprintf(why, sizeof why, "shape and type need %" PRIu64 " bytes, the offsets give %" PRIu64,
             want, t->end - t->begin);
    return bad_tensor(where, t, NULL, why);
}

static int by_offset(const void *a, const void *b) {
    const st_tensor *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end) return x->end < y->end ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int by_name(const void *a, const void *b) {
    return strcmp((*(st_tensor *const *)a)->name, (*(st_tensor *const *)b)->name);
}

static int by_key(const void *a, const void *b) {
    return strcmp(((const st_pair *)a)->key, ((const st_pair *)b)->key);
}

/* Tensors in order of offsets must tile the data section. */
static err check_tiling(const st_header *h, const char *where) {
    uint64_t at = 0;
    char why[120];
    for (int64_t i = 0; i < h->n_tensors; i++) {
        const st_tensor *t = &h->tensors[i];
        snprintf(why, sizeof why,
                 "it begins at byte %" PRIu64 " of the data, the one before ends at %" PRIu64,
                 t->begin, at);
        if (t->begin != at) return bad_tensor(where, t, "fetch the file again", why);
        at = t->end;
    }
    if (at == h->data_bytes) return err_none();
    return err_make(ERR_INPUT, where, "fetch the file again",
                    at > h->data_bytes ? "truncated: the tensors need %" PRIu64
                                         " bytes of data, the file has %" PRIu64
                                       : "the tensors take %" PRIu64
                                         " bytes of data, the file has %" PRIu64,
                    at, h->data_bytes);
}

static err sort_names(st_header *h, const char *where) {
    h->by_name = calloc((size_t)h->n_tensors + 1, sizeof *h->by_name);
    h->by_key = calloc((size_t)h->n_pairs + 1, sizeof *h->by_key);
    if (!h->by_name || !h->by_key)
        return err_make(ERR_NOFIT, where, NULL, "no memory for the header");
    for (int64_t i = 0; i < h->n_tensors; i++) h->by_name[i] = &h->tensors[i];
    qsort(h->by_name, (size_t)h->n_tensors, sizeof *h->by_name, by_name);
    for (int64_t i = 1; i < h->n_tensors; i++)
        if (!strcmp(h->by_name[i]->name, h->by_name[i - 1]->name))
            return bad_tensor(where, h->by_name[i], NULL, "the name occurs twice");
    if (h->n_pairs) memcpy(h->by_key, h->pairs, (size_t)h->n_pairs * sizeof *h->pairs);
    qsort(h->by_key, (size_t)h->n_pairs, sizeof *h->by_key, by_key);
    for (int64_t i = 1; i < h->n_pairs; i++)
        if (!strcmp(h->by_key[i].key, h->by_key[i - 1].key))
            return err_make(ERR_INPUT, where, NULL, "__metadata__ has a key twice");
    return err_none();
}

static err check_header(st_header *h, const char *where) {
    err e = err_none();
    for (int64_t i = 0; i < h->n_tensors && !e.code; i++) e = check_size(&h->tensors[i], where);
    if (e.code) return e;
    if (h->n_tensors) qsort(h->tensors, (size_t)h->n_tensors, sizeof *h->tensors, by_offset);
    e = sort_names(h, where); /* before the tiling: a name given twice is the better message */
    if (!e.code) e = check_tiling(h, where);
    return e;
}

static void hash_header(st_header *h, const char *json, size_t len) {
    unsigned char n[8];
    for (int i = 0; i < 8; i++) n[i] = (unsigned char)((uint64_t)len >> 8 * i);
    sha256 *s = sha256_create();
    sha256_add(s, n, sizeof n);
    sha256_add(s, json, len);
    sha256_finish(&s, h->sha256);
}

err st_header_parse(const char *json, size_t len, uint64_t data_bytes, const char *where,
                    st_header **out) {
    *out = NULL;
    if (len > ST_MAX_HEADER_BYTES)
        return err_make(ERR_INPUT, where, NULL, "a header of %zu bytes; at most %d are read", len,
                        ST_MAX_HEADER_BYTES);
    st_header *h = calloc(1, sizeof *h);
    if (!h) return err_make(ERR_NOFIT, where, NULL, "no memory for the header");
    h->data_offset = 8 + (uint64_t)len;
    h->data_bytes = data_bytes;
    err e = st_parse_text(json, len, where, h);
    if (!e.code) e = check_header(h, where);
    if (e.code) {
        st_header_destroy(&h);
        return e;
    }
    hash_header(h, json, len);
    *out = h;
    return e;
}

void st_header_destroy(st_header **h) {
    if (!*h) return;
    free((*h)->strings);
    free((*h)->tensors);
    free((*h)->by_name);
    free((*h)->pairs);
    free((*h)->by_key);
    free(*h);
    *h = NULL;
}

/* What is often found where a shard should be. Asked only once the length has been found
 * impossible, since any 8 bytes could be a length. */
static err not_safetensors(const char *where, const unsigned char *head, size_t n, uint64_t length,
                           uint64_t bytes) {
    const char *hint, *kind = file_kind(head, n, false, &hint);
    if (kind && !memcmp(head, "PK", 2)) /* as torch.save writes them, unpacking does not help */
        return err_make(ERR_INPUT, where, "save it with safe_serialization=True",
                        "is a pickled PyTorch file, not a safetensors file");
    if (kind) return err_make(ERR_INPUT, where, hint, "is %s, not a safetensors file", kind);
    if (n < 8)
        return err_make(ERR_INPUT, where, "fetch the file again",
                        "%" PRIu64 " bytes are not a safetensors file", bytes);
    if (length > ST_MAX_HEADER_BYTES)
        return err_make(ERR_INPUT, where, "fetch the file again",
                        "a header of %" PRIu64 " bytes; at most %d are read", length,
                        ST_MAX_HEADER_BYTES);
    return err_make(ERR_INPUT, where, "fetch the file again",
                    "truncated: a header of %" PRIu64 " bytes in a file of %" PRIu64, length,
                    bytes);
}

/* Length of the JSON, from the first n bytes of a file of `bytes` bytes. */
static err read_length(const char *where, const unsigned char *head, size_t n, uint64_t bytes,
                       uint64_t *length) {
    *length = 0;
    for (int i = 7; i >= 0 && n >= 8; i--) *length = *length << 8 | head[i];
    return n < 8 || *length > ST_MAX_HEADER_BYTES || *length > bytes - 8
               ? not_safetensors(where, head, n, *length, bytes)
               : err_none();
}

err st_header_read_text(int fd, const char *where, uint64_t offset, uint64_t bytes, char **json,
                        size_t *len) {
    unsigned char head[32];
    size_t n = bytes < sizeof head ? (size_t)bytes : sizeof head;
    uint64_t length;
    *json = NULL;
    *len = 0;
    err e = file_pread(fd, where, head, n, offset);
    if (!e.code) e = read_length(where, head, n, bytes, &length);
    if (e.code) return e;
    char *text = malloc(length + 1);
    if (!text)
        return err_make(ERR_NOFIT, where, NULL, "no memory for a header of %" PRIu64 " bytes",
                        length);
    e = file_pread(fd, where, text, length, offset + 8);
    if (e.code) {
        free(text);
        return e;
    }
    text[length] = 0;
    *json = text;
    *len = length;
    return e;
}

err st_header_read(int fd, const char *where, uint64_t offset, uint64_t bytes, st_header **out) {
    char *json;
    size_t len;
    *out = NULL;
    err e = st_header_read_text(fd, where, offset, bytes, &json, &len);
    if (!e.code) e = st_header_parse(json, len, bytes - 8 - len, where, out);
    free(json);
    return e;
}

err st_header_of_bytes(const void *file, size_t bytes, const char *where, st_header **out) {
    uint64_t length;
    *out = NULL;
    err e = read_length(where, file, bytes < 32 ? bytes : 32, bytes, &length);
    return e.code ? e
                  : st_header_parse((const char *)file + 8, length, bytes - 8 - length, where, out);
}

int64_t st_header_count(const st_header *h) {
    return h->n_tensors;
}

const st_tensor *st_header_at(const st_header *h, int64_t i) {
    return &h->tensors[i];
}

const st_tensor *st_header_find(const st_header *h, const char *name) {
    const st_tensor key = {.name = name}, *k = &key;
    st_tensor **found = bsearch(&k, h->by_name, (size_t)h->n_tensors, sizeof *h->by_name, by_name);
    return found ? *found : NULL;
}

const char *st_header_metadata(const st_header *h, const char *key) {
    const st_pair k = {.key = key};
    const st_pair *found = bsearch(&k, h->by_key, (size_t)h->n_pairs, sizeof k, by_key);
    return found ? found->value : NULL;
}

int64_t st_header_metadata_count(const st_header *h) {
    return h->n_pairs;
}

void st_header_metadata_at(const st_header *h, int64_t i, const char **key, const char **value) {
    *key = h->pairs[i].key;
    *value = h->pairs[i].value;
}

uint64_t st_header_data_offset(const st_header *h) {
    return h->data_offset;
}

uint64_t st_header_data_bytes(const st_header *h) {
    return h->data_bytes;
}

const char *st_header_sha256(const st_header *h) {
    return h->sha256;
}
