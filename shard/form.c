/* The table of forms, and what is the same for all: tensors of a linear are found by the suffixes
 * of its form, held against the shapes that the form gives, and unpacked one after the other. */
#include "shard/form.h"

#include "base/mem.h"
#include "base/size.h"
#include "shard/form_internal.h"
#include "shard/stored_floats.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* Each in its own source. */
extern const form form_packed, form_int8, form_gguf, form_gptq;
static const form *const forms[] = {&form_packed, &form_int8, &form_gguf, &form_gptq};
enum { N_FORMS = sizeof forms / sizeof *forms };

const form *form_find(const char *name) {
    for (int i = 0; i < N_FORMS; i++)
        if (!strcmp(forms[i]->name, name)) return forms[i];
    return NULL;
}

const form *form_find_method(const char *method) {
    for (int i = 0; i < N_FORMS; i++)
        if (forms[i]->method.name && !strcmp(forms[i]->method.name, method)) return forms[i];
    return NULL;
}

const char *form_method_name(const form *f) {
    return f->method.name ? f->method.name : "compressed-tensors";
}

const form_slot *form_part_slot(const form *f, form_part part) {
    for (int i = 0; i < f->n_slots; i++)
        if (f->slots[i].part == part) return &f->slots[i];
    return NULL;
}

bool form_stores(const form_scheme *s, const form_slot *slot) {
    return !slot->stored || slot->stored(s);
}

bool form_has_files(const form *f) {
    return f && f->file.ending;
}

int64_t form_row_run(const form *f, const llama_config *cfg, llama_role role, int64_t row,
                     int64_t n, int64_t *place) {
    int64_t run = 1;
    *place = row;
    if (!form_has_files(f)) return n;
    *place = f->file.row_place(cfg, role, row);
    while (run < n && f->file.row_place(cfg, role, row + run) == *place + run) run++;
    return run;
}

void form_rows_to_file(const form *f, const llama_config *cfg, llama_role role, const void *from,
                       int64_t n, int64_t size, void *to) {
    for (int64_t i = 0, run, place; i < n; i += run) {
        run = form_row_run(f, cfg, role, i, n - i, &place);
        memcpy((char *)to + place * size, (const char *)from + i * size, (size_t)(run * size));
    }
}

void form_rows_from_file(const form *f, const llama_config *cfg, llama_role role, const void *from,
                         int64_t n, int64_t size, void *to) {
    for (int64_t i = 0, run, place; i < n; i += run) {
        run = form_row_run(f, cfg, role, i, n - i, &place);
        memcpy((char *)to + i * size, (const char *)from + place * size, (size_t)(run * size));
    }
}

void form_tensor_name(const char *weight, const char *suffix, char name[160]) {
    const size_t n = strlen(weight) - strlen(".weight");
    snprintf(name, 160, "%.*s%s", (int)n, weight, suffix);
}

/* R4 */

static form_shape r4_shape(const form_scheme *s, int64_t rows, int64_t cols) {
    (void)rows;
    (void)cols;
    const int64_t n = s->online.r4_block ? s->online.r4_block : 1;
    return (form_shape){s->scale_dtype, 2, {n, n}};
}

const form_slot form_r4_slot = {.part = FORM_R4, .suffix = FORM_R4_SUFFIX, .shape = r4_shape};

/* The cache */

static form_shape cache_shape(const form_scheme *s, int64_t rows, int64_t cols) {
    (void)s;
    (void)rows;
    (void)cols;
    return (form_shape){ST_F32, 1, {1, 1}};
}

const form_slot form_cache_slot = {.part = FORM_CACHE, .suffix = "_scale", .shape = cache_shape};

void form_cache_name(const char *weight, char name[160]) {
    const size_t n = strlen(weight) - strlen("_proj.weight");
    snprintf(name, 160, "%.*s%s", (int)n, weight, form_cache_slot.suffix);
}

static form_shape rope_shape(const form_scheme *s, int64_t rows, int64_t cols) {
    (void)s;
    (void)cols;
    return (form_shape){ST_F32, 1, {rows, 1}};
}

const form_slot form_rope_slot = {
    .part = FORM_ROPE, .suffix = "rope_freqs.weight", .shape = rope_shape};

void form_r4_row(int64_t i, int64_t n, float *to) {
    for (int64_t j = 0; j < n; j++) to[j] = __builtin_parityll((uint64_t)(i & j)) ? -1.0f : 1.0f;
}

/* Scales */

form_shape form_scale_shape(const form_scheme *s, int64_t rows, int64_t cols) {
    return (form_shape){s->scale_dtype, 2, {rows, form_groups(s, cols)}};
}

void form_scale_pack(const qmatrix *q, void *to) {
    stored_floats_put(q->scales, q->rows * q->n_groups, stored_scale_dtype(q->scale_type), to);
}

err form_scale_unpack(const void *from, st_dtype dtype, const char *where, qmatrix *q) {
    (void)where;
    stored_floats_take(from, q->rows * q->n_groups, dtype, q->scales);
    return err_none();
}

/* Scales are numbers of their stored type, so they come back bit for bit. */
err form_scale_same(const void *from, const qmatrix *q, bool *same, int64_t *row) {
    enum { PIECE = 1024 };
    const st_dtype dtype = stored_scale_dtype(q->scale_type);
    const int64_t n = q->rows * q->n_groups, size = st_dtype_bytes(dtype);
    float inverse[PIECE];
    *row = -1;
    *same = true;
    for (int64_t i = 0; i < n && *same; i += PIECE) {
        const int64_t m = size_min(PIECE, n - i);
        stored_floats_take((const char *)from + i * size, m, dtype, inverse);
        *same = !memcmp(inverse, q->scales + i, (size_t)m * sizeof *inverse);
    }
    return err_none();
}

err form_check(const form_slot *slot, const qmatrix *q, const void *from, const char *what) {
    static const char *const hint = "the memory of the node may be faulty: leave it out";
    bool same;
    int64_t row;
    err e = slot->same(from, q, &same, &row);
    if (e.code || same) return e;
    if (row < 0) return err_make(ERR_NUMERICS, what, hint, "what was packed is not what is stored");
    return err_make(ERR_NUMERICS, what, hint,
                    "the packed words of row %" PRId64 " do not unpack to its codes", row);
}

/* Reading back. */

/* One tensor of a linear, of the type and shape that it must have; scales may be of any type that
 * holds them. */
static err find_part(const hf_checkpoint *ck, const char *weight, const form_scheme *s,
                     const form_slot *slot, int64_t rows, int64_t cols, const hf_tensor **out) {
    char name[160];
    scale_type any;
    form_tensor_name(weight, slot->suffix, name);
    const form_shape want = slot->shape(s, rows, cols);
    const hf_tensor *t = *out = hf_checkpoint_find(ck, name);
    if (!t) return err_make(ERR_VERIFY, name, NULL, "is missing");
    const bool right_type = slot->part == FORM_SCALES ? stored_scale_type(t->info.dtype, &any)
                                                      : t->info.dtype == want.dtype;
    if (!right_type)
        return err_make(ERR_VERIFY, name, NULL, "is %s, not %s", st_dtype_name(t->info.dtype),
                        st_dtype_name(want.dtype));
    if (t->info.n_dims != want.n_dims || t->info.shape[0] != want.shape[0] ||
        (want.n_dims == 2 && t->info.shape[1] != want.shape[1]))
        return err_make(ERR_VERIFY, name, NULL, "has another shape than [%" PRId64 ", %" PRId64 "]",
                        want.shape[0], want.shape[1]);
    return err_none();
}

static err read_part(const hf_checkpoint *ck, const hf_tensor *t, const form_slot *slot,
                     qmatrix *q) {
    void *bytes;
    err e = mem_alloc((int64_t)hf_tensor_bytes(t), 1, t->info.name, &bytes);
    if (!e.code) e = hf_checkpoint_read(ck, t, bytes, NULL);
    if (!e.code) e = slot->unpack(bytes, t->info.dtype, t->info.name, q);
    mem_free(bytes);
    return e;
}

static err check_scheme(const char *weight, const form_scheme *s, int64_t cols) {
    if (s->bits >= 2 && s->bits <= 8 && s->group >= 0 && (!s->group || cols % s->group == 0))
        return err_none();
    return err_make(ERR_VERIFY, weight, NULL, "the group of config.json does not divide its input");
}

err form_read(const hf_checkpoint *ck, const char *weight, const form_scheme *s, int64_t rows,
              int64_t cols, qmatrix **out) {
    wquant how = {.bits = s->bits, .group = s->group, .symmetric = s->symmetric};
    const form *f = s->form;
    const hf_tensor *t;
    *out = NULL;
    err e = check_scheme(weight, s, cols);
    for (int i = 0; i < f->n_slots && !e.code; i++) {
        if (!form_stores(s, &f->slots[i])) continue;
        e = find_part(ck, weight, s, &f->slots[i], rows, cols, &t);
        if (!e.code && f->slots[i].part == FORM_SCALES)
            stored_scale_type(t->info.dtype, &how.scale_type);
    }
    if (!e.code) e = qmatrix_create(rows, cols, &how, out);
    for (int i = 0; i < f->n_slots && !e.code; i++) {
        if (!form_stores(s, &f->slots[i])) continue;
        e = find_part(ck, weight, s, &f->slots[i], rows, cols, &t);
        if (!e.code) e = read_part(ck, t, &f->slots[i], *out);
    }
    if (e.code) qmatrix_destroy(out);
    return e;
}

static err check_finite(const float *scales, int64_t n, const char *where) {
    int64_t bad = 0;
    for (int64_t i = 0; i < n; i++) bad += !isfinite(scales[i]);
    if (!bad) return err_none();
    return err_make(ERR_INPUT, where, NULL, "holds %" PRId64 " values that are NaN or infinite",
                    bad);
}

err form_read_words(const hf_checkpoint *ck, const char *weight, const form_scheme *s, int64_t rows,
                    int64_t cols, const form_words *to) {
    const form *f = s->form;
    qmatrix view = {.rows = rows,
                    .cols = cols,
                    .group = s->group ? s->group : cols,
                    .n_groups = form_groups(s, cols),
                    .bits = s->bits,
                    .symmetric = s->symmetric,
                    .scales = to->scales,
                    .zeros = to->zeros};
    err e = check_scheme(weight, s, cols);
    for (int i = 0; i < f->n_slots && !e.code; i++) {
        const form_slot *slot = &f->slots[i];
        const hf_tensor *t;
        if (!form_stores(s, slot)) continue;
        e = find_part(ck, weight, s, slot, rows, cols, &t);
        if (e.code) return e;
        e = slot->part == FORM_CODES ? slot->words(ck, t, s->bits, rows, cols, to->words)
                                     : read_part(ck, t, slot, &view);
        if (!e.code && slot->part == FORM_SCALES)
            e = check_finite(to->scales, rows * view.n_groups, t->info.name);
    }
    return e;
}
