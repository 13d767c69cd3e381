/* A header is built as text, padded to 8 bytes, read back by the strict reader, and followed by
 * the data in pieces; the file is published by rename. */
#include "io/safetensors.h"

#include "base/file.h"
#include "base/mem.h"
#include "base/size.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* open_memstream keeps the text growing; its failures show when it is closed. */
static void put_string(FILE *f, const char *s) {
    fputc('"', f);
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\')
            fprintf(f, "\\%c", c);
        else if (c < 0x20)
            fprintf(f, "\\u%04x", c);
        else
            fputc(c, f);
    }
    fputc('"', f);
}

static void put_metadata(FILE *f, const char *const *metadata) {
    fputs("\"__metadata__\":{", f);
    for (int i = 0; metadata[i]; i += 2) {
        if (i) fputc(',', f);
        put_string(f, metadata[i]);
        fputc(':', f);
        put_string(f, metadata[i + 1]);
    }
    fputc('}', f);
}

static void put_tensor(FILE *f, const st_tensor *t) {
    put_string(f, t->name);
    fprintf(f, ":{\"dtype\":\"%s\",\"shape\":[", st_dtype_name(t->dtype));
    for (int d = 0; d < t->n_dims; d++) fprintf(f, d ? ",%" PRId64 : "%" PRId64, t->shape[d]);
    fprintf(f, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", t->begin, t->end);
}

/* What is written must be what the strict reader takes: names, shapes and offsets of the caller are
 * checked by reading them back. */
static err check_by_reading(const char *json, size_t len, const st_tensor *tensors, int64_t n) {
    uint64_t data_bytes = 0;
    st_header *h;
    for (int64_t i = 0; i < n; i++)
        if (tensors[i].end > data_bytes) data_bytes = tensors[i].end;
    err e = st_header_parse(json, len, data_bytes, "a header to write", &h);
    st_header_destroy(&h);
    if (e.code == ERR_INPUT) e.code = ERR_BUG;
    return e;
}

err st_header_write(const st_tensor *tensors, int64_t n, const char *const *metadata, char **out,
                    size_t *len) {
    char *text = NULL;
    size_t size = 0;
    *out = NULL;
    *len = 0;
    FILE *f = open_memstream(&text, &size);
    if (!f) return err_make(ERR_NOFIT, NULL, NULL, "no memory for a header");
    fwrite("\0\0\0\0\0\0\0", 1, 8, f);
    fputc('{', f);
    bool any = metadata && metadata[0];
    if (any) put_metadata(f, metadata);
    for (int64_t i = 0; i < n; i++) {
        if (any || i) fputc(',', f);
        put_tensor(f, &tensors[i]);
    }
    fputc('}', f);
    while (ftell(f) % 8) fputc(' ', f);
    bool short_of_memory = ferror(f);
    if (fclose(f) || short_of_memory) {
        free(text);
        return err_make(ERR_NOFIT, NULL, NULL, "no memory for a header");
    }
    for (int i = 0; i < 8; i++) text[i] = (char)((uint64_t)(size - 8) >> 8 * i);
    err e = check_by_reading(text + 8, size - 8, tensors, n);
    if (e.code) {
        free(text);
        return e;
    }
    *out = text;
    *len = size;
    return e;
}

/* The tensors with begin and end one after the other. Caller frees *out. */
static err place_tensors(const char *path, const st_tensor *tensors, int64_t n, st_tensor **out) {
    uint64_t at = 0;
    st_tensor *t = calloc((size_t)n + 1, sizeof *t);
    *out = t;
    if (!t) return err_make(ERR_NOFIT, path, NULL, "no memory for a header");
    for (int64_t i = 0; i < n; i++) {
        uint64_t bytes = (uint64_t)st_dtype_bytes(tensors[i].dtype);
        bool fits = bytes > 0;
        for (int d = 0; d < tensors[i].n_dims; d++)
            fits = fits && tensors[i].shape[d] >= 0 &&
                   size_mul(bytes, (uint64_t)tensors[i].shape[d], &bytes);
        t[i] = tensors[i];
        t[i].begin = at;
        if (!fits || !size_add(at, bytes, &at))
            return err_make(ERR_BUG, path, NULL, "tensor %.160s has no size in bytes", t[i].name);
        t[i].end = at;
    }
    return err_none();
}

/* What is written, and where to. */
typedef struct writing {
    int fd;
    const char *path, *header;
    size_t len; /* of the header */
    const st_tensor *t;
    int64_t n;
    const void *const *data;
    const st_rows *rows;
    sha256 *hash;
} writing;

static err write_bytes(const writing *w, const void *bytes, uint64_t n, uint64_t at) {
    sha256_add(w->hash, bytes, n);
    return file_pwrite(w->fd, w->path, bytes, n, at);
}

/* A matrix a few rows at a time. */
static err write_rows(const writing *w, int64_t i) {
    enum { PIECE = 1 << 15 }; /* elements */
    const st_tensor *t = &w->t[i];
    const int64_t cols = t->shape[t->n_dims - 1], step = size_max(1, PIECE / size_max(1, cols));
    int64_t all = 1; /* rows of a stack of matrices, one after the other */
    for (int d = 0; d < t->n_dims - 1; d++) all *= t->shape[d];
    const uint64_t row_bytes = (uint64_t)cols * (uint64_t)st_dtype_bytes(t->dtype);
    double *piece;
    err e = MEM_NEW(&piece, size_min(step, all) * cols, t->name);
    for (int64_t row = 0; row < all && !e.code; row += step) {
        const int64_t rows = size_min(step, all - row);
        w->rows->get(w->rows->arg, i, row, rows, piece);
        e = write_bytes(w, piece, (uint64_t)rows * row_bytes,
                        w->len + t->begin + (uint64_t)row * row_bytes);
    }
    mem_free(piece);
    return e;
}

static err write_pieces(writing *w, char *sha256_hex) {
    char hex[SHA256_HEX];
    w->hash = sha256_create();
    err e = write_bytes(w, w->header, w->len, 0);
    for (int64_t i = 0; i < w->n && !e.code; i++) {
        const uint64_t bytes = w->t[i].end - w->t[i].begin;
        e = w->data[i] ? write_bytes(w, w->data[i], bytes, w->len + w->t[i].begin)
                       : write_rows(w, i);
    }
    sha256_finish(&w->hash, hex);
    if (!e.code) e = file_sync(w->fd, w->path);
    if (sha256_hex) memcpy(sha256_hex, hex, SHA256_HEX);
    return e;
}

static err sync_parent(const char *path) {
    const char *slash = strrchr(path, '/');
    if (!slash) return file_sync_dir(".");
    char *dir = strndup(path, slash == path ? 1 : (size_t)(slash - path));
    if (!dir) return err_make(ERR_NOFIT, path, NULL, "no memory for a path");
    err e = file_sync_dir(dir);
    free(dir);
    return e;
}

/* As file_publish, in pieces: the rotations of a large model need not be copied into one block. */
static err publish(const char *path, writing *w, char *sha256_hex) {
    char *aside;
    if (asprintf(&aside, "%s.%ld.new", path, (long)getpid()) < 0)
        return err_make(ERR_NOFIT, path, NULL, "no memory for a path");
    w->path = aside;
    err e = file_create(aside, &w->fd);
    if (!e.code) {
        e = write_pieces(w, sha256_hex);
        err closed = file_close(w->fd, aside);
        if (!e.code) e = closed;
        if (!e.code) e = file_rename(aside, path);
        if (e.code) unlink(aside);
    }
    if (!e.code) e = sync_parent(path);
    free(aside);
    return e;
}

err st_file_write(const char *path, const st_tensor *tensors, int64_t n, const void *const *data,
                  const st_rows *rows, const char *const *metadata, char sha256_hex[SHA256_HEX]) {
    st_tensor *placed;
    char *header = NULL;
    size_t len;
    err e = place_tensors(path, tensors, n, &placed);
    if (!e.code) e = st_header_write(placed, n, metadata, &header, &len);
    writing w = {.header = header, .len = len, .t = placed, .n = n, .data = data, .rows = rows};
    if (!e.code) e = publish(path, &w, sha256_hex);
    free(header);
    free(placed);
    return e;
}
