/* Written into a stream in memory, field after field. */
#include "shard/gguf_header.h"

#include "shard/layout.h"

#include <stdlib.h>
#include <string.h>

/* Types of tensors. */
enum { TYPE_F32 = 0, TYPE_F16 = 1, TYPE_Q4_0 = 2, TYPE_Q8_0 = 8, TYPE_BF16 = 30 };

static void put(FILE *f, const void *bytes, size_t n) {
    fwrite(bytes, 1, n, f);
}

void gguf_put_string(FILE *f, const char *text, size_t len) {
    const uint64_t n = len;
    put(f, &n, sizeof n);
    put(f, text, len);
}

void gguf_put_key(FILE *f, const char *key, gguf_type type) {
    const uint32_t t = type;
    gguf_put_string(f, key, strlen(key));
    put(f, &t, sizeof t);
}

void gguf_put_u32(FILE *f, const char *key, uint32_t v) {
    gguf_put_key(f, key, GGUF_U32);
    put(f, &v, sizeof v);
}

void gguf_put_f32(FILE *f, const char *key, float v) {
    gguf_put_key(f, key, GGUF_F32);
    put(f, &v, sizeof v);
}

void gguf_put_bool(FILE *f, const char *key, int v) {
    const uint8_t byte = v != 0;
    gguf_put_key(f, key, GGUF_BOOL);
    put(f, &byte, sizeof byte);
}

void gguf_put_text(FILE *f, const char *key, const char *text) {
    gguf_put_key(f, key, GGUF_STRING);
    gguf_put_string(f, text, strlen(text));
}

void gguf_put_array(FILE *f, const char *key, gguf_type of, uint64_t n) {
    const uint32_t t = of;
    gguf_put_key(f, key, GGUF_ARRAY);
    put(f, &t, sizeof t);
    put(f, &n, sizeof n);
}

static void put_u16(FILE *f, const char *key, uint16_t v) {
    gguf_put_key(f, key, GGUF_U16);
    put(f, &v, sizeof v);
}

static uint32_t type_of(const layout *l, const layout_slot *s) {
    if (s->slot && s->slot->part == FORM_CODES)
        return layout_opts(l)->linears.bits == 4 ? TYPE_Q4_0 : TYPE_Q8_0;
    return s->dtype == ST_F32 ? TYPE_F32 : s->dtype == ST_F16 ? TYPE_F16 : TYPE_BF16;
}

/* Sizes begin with the innermost; of blocks in numbers, not in bytes. */
static void put_tensor(FILE *f, const layout *l, const layout_slot *s) {
    const bool codes = s->slot && s->slot->part == FORM_CODES;
    const uint32_t dims = (uint32_t)s->n_dims, type = type_of(l, s);
    const int64_t inner = codes ? s->source.cols : s->shape[1];
    gguf_put_string(f, s->name, strlen(s->name));
    put(f, &dims, sizeof dims);
    if (s->n_dims == 2) put(f, &inner, sizeof inner);
    put(f, &s->shape[0], sizeof s->shape[0]);
    put(f, &type, sizeof type);
    put(f, &s->part_offset, sizeof s->part_offset);
}

err gguf_header(const layout *l, int64_t part, char **out, size_t *len) {
    const int64_t parts = layout_parts(l), n = layout_part_count(l, part);
    const layout_metadata none = {0}, *m = part == 0 ? layout_meta(l) : &none;
    const uint32_t version = 3;
    const uint64_t tensors = (uint64_t)n, pairs = m->pairs + (parts > 1 ? 3 : 0);
    *out = NULL;
    FILE *f = open_memstream(out, len);
    if (!f) return err_make(ERR_NOFIT, "GGUF header", NULL, "no memory for it");
    put(f, "GGUF", 4);
    put(f, &version, sizeof version);
    put(f, &tensors, sizeof tensors);
    put(f, &pairs, sizeof pairs);
    put(f, m->bytes, m->len);
    if (parts > 1) {
        const int32_t all = (int32_t)layout_count(l);
        put_u16(f, "split.no", (uint16_t)part);
        put_u16(f, "split.count", (uint16_t)parts);
        gguf_put_key(f, "split.tensors.count", GGUF_I32);
        put(f, &all, sizeof all);
    }
    for (int64_t i = 0; i < n; i++) put_tensor(f, l, layout_part_tensor(l, part, i));
    for (fflush(f); *len % GGUF_ALIGN; fflush(f)) fputc(0, f);
    const bool failed = ferror(f);
    if (!fclose(f) && !failed) return err_none();
    free(*out);
    *out = NULL;
    return err_make(ERR_NOFIT, "GGUF header", NULL, "no memory for it");
}
