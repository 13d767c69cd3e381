/* Modules are put into parts in order, each part up to the bound; within a part wide types come
 * first, so that every tensor is aligned. */
#include "shard/layout.h"

#include "base/mem.h"
#include "base/size.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct layout {
    layout_options opts;
    llama_config cfg;
    layout_slot *slots;
    int64_t n, n_parts;
    int64_t *by_part;    /* slot indices, part by part in the order of the file */
    int64_t *part_first; /* [n_parts + 1] into by_part */
    int64_t *by_name;    /* slot indices sorted by name */
    int64_t *unit_first; /* [units + 1] into slots */
    layout_metadata meta;
};

static const uint64_t MAX_BYTES = (uint64_t)1 << 62;

static err bad_option(const char *key, const char *what) {
    return err_make(ERR_USAGE, key, NULL, "%s", what);
}

static bool is_float(st_dtype t) {
    return t == ST_BF16 || t == ST_F16 || t == ST_F32;
}

static err check_options(const layout_options *o) {
    const form_scheme *s = &o->linears;
    const bool whole = s->bits == 16 && form_has_files(s->form);
    if (s->form && (s->bits < 2 || s->bits > 8) && !whole)
        return bad_option("weights.bits", "must be 2 to 8");
    if (s->form && s->group < 0) return bad_option("weights.group", "must be positive or channel");
    if (!is_float(s->scale_dtype) || !is_float(o->store_dtype))
        return bad_option("archive.dtype", "must be BF16, F16 or F32");
    if (o->shard_bytes == 0) return bad_option("archive.shard_bytes", "must be positive");
    return s->form ? s->form->refuse(s) : err_none();
}

static err check_group(const form_scheme *s, const llama_tensor *t) {
    if (!s->group || t->cols % s->group == 0) return err_none();
    return err_make(ERR_USAGE, t->name, "choose a group that divides it, auto or channel",
                    "weights.group %" PRId64 " does not divide its input of %" PRId64, s->group,
                    t->cols);
}

static int64_t unit_of(const llama_config *cfg, const llama_tensor *t) {
    if (t->role == ROLE_EMBED) return 0;
    return t->layer >= 0 ? t->layer + 1 : cfg->layers + 1;
}

/* The name in the archive of a tensor, or of a part of a linear. */
static void name_slot(const layout *l, const llama_tensor *t, const form_slot *slot,
                      char name[160]) {
    const form *f = l->opts.linears.form;
    if (slot == &form_rope_slot)
        snprintf(name, 160, "%s", slot->suffix);
    else if (slot == &form_cache_slot)
        form_cache_name(t->name, name);
    else if (form_has_files(f))
        f->file.name(t, name);
    else if (slot)
        form_tensor_name(t->name, slot->suffix, name);
    else
        snprintf(name, 160, "%s", t->name);
}

/* Sizes stay exact: rows and cols fit 62 bits together (llama_config_parse). */
static err add_slot(layout *l, const llama_tensor *t, const form_slot *slot, int order) {
    layout_slot *s = &l->slots[l->n++];
    uint64_t n;
    *s = (layout_slot){.slot = slot, .order = order, .source = *t, .unit = unit_of(&l->cfg, t)};
    char name[160];
    form_shape shape = {l->opts.store_dtype, t->n_dims, {t->rows, t->n_dims == 1 ? 1 : t->cols}};
    if (t->n_dims == 1 && form_has_files(l->opts.linears.form)) shape.dtype = ST_F32;
    if (slot) shape = slot->shape(&l->opts.linears, t->rows, t->cols);
    name_slot(l, t, slot, name);
    snprintf(s->name, sizeof s->name, "%.127s", name);
    s->dtype = shape.dtype;
    s->n_dims = shape.n_dims;
    memcpy(s->shape, shape.shape, sizeof s->shape);
    if (!size_mul((uint64_t)s->shape[0], (uint64_t)s->shape[1], &n) ||
        !size_mul(n, (uint64_t)st_dtype_bytes(s->dtype), &s->bytes) || s->bytes > MAX_BYTES)
        return err_make(ERR_INPUT, s->name, NULL, "the size of this tensor overflows");
    return err_none();
}

static err add_tensor(layout *l, const llama_tensor *t) {
    const form_scheme *s = &l->opts.linears;
    if (form_has_files(s->form) && t->role == ROLE_FINAL_NORM && l->cfg.rope.kind == ROPE_LLAMA3) {
        llama_tensor pairs = *t;
        pairs.rows = l->cfg.head_dim / 2;
        err e = add_slot(l, &pairs, &form_rope_slot, 1);
        if (e.code) return e;
    }
    if (!form_rounds(s) || !llama_role_is_linear(t->role)) return add_slot(l, t, NULL, 0);
    const int n = s->form->n_slots;
    err e = check_group(s, t);
    if (!e.code && s->form->refuse_size) e = s->form->refuse_size(s, t->name, t->rows, t->cols);
    for (int i = 0; i < n && !e.code; i++)
        if (form_stores(s, &s->form->slots[i])) e = add_slot(l, t, &s->form->slots[i], i);
    if (!e.code && s->online.r4 && t->role == ROLE_DOWN && t->layer == 0)
        e = add_slot(l, t, &form_r4_slot, n);
    if (!e.code && s->fp8_cache && (t->role == ROLE_K || t->role == ROLE_V))
        e = add_slot(l, t, &form_cache_slot, n);
    return e;
}

/* Slots first..n - 1, one module, go to the part at hand, or to the next where that would be too
 * large. */
static void deal_to_part(layout *l, int64_t first, uint64_t *filled) {
    uint64_t bytes = 0;
    for (int64_t i = first; i < l->n; i++) bytes += l->slots[i].bytes;
    uint64_t room = *filled < l->opts.shard_bytes ? l->opts.shard_bytes - *filled : 0;
    if (*filled && bytes > room) {
        l->n_parts++;
        *filled = 0;
    }
    *filled += bytes;
    for (int64_t i = first; i < l->n; i++) l->slots[i].part = l->n_parts - 1;
}

static err list_slots(layout *l) {
    int64_t n_sources = llama_tensor_count(&l->cfg);
    const form *f = l->opts.linears.form;
    const int64_t more = 1 + 2 * l->cfg.layers; /* R4, and scales of a cache */
    err e = MEM_NEW(&l->slots, n_sources * (f ? f->n_slots : 1) + more, "layout");
    uint64_t filled = 0, total = 0;
    l->n_parts = 1;
    for (int64_t i = 0; i < n_sources && !e.code; i++) {
        llama_tensor t;
        int64_t first = l->n;
        llama_tensor_at(&l->cfg, i, &t);
        e = add_tensor(l, &t);
        for (int64_t k = first; k < l->n && !e.code; k++)
            if (!size_add(total, l->slots[k].bytes, &total) || total > MAX_BYTES)
                e = err_make(ERR_INPUT, t.name, NULL, "the size of the archive overflows");
        if (!e.code) deal_to_part(l, first, &filled);
    }
    return e;
}

/* Wide elements first, else as listed (source order, then that of the form): both orders are total.
 */
static int compare_width(const layout_slot *x, const layout_slot *y) {
    return st_dtype_bytes(y->dtype) - st_dtype_bytes(x->dtype);
}

static int compare_source(const layout_slot *x, const layout_slot *y) {
    if (x->unit != y->unit) return x->unit < y->unit ? -1 : 1;
    if (x->source.role != y->source.role) return x->source.role < y->source.role ? -1 : 1;
    return x->order - y->order;
}

static int compare_in_unit(const void *a, const void *b) {
    const layout_slot *x = a, *y = b;
    if (x->unit != y->unit) return x->unit < y->unit ? -1 : 1;
    int wide = compare_width(x, y);
    return wide ? wide : compare_source(x, y);
}

static int compare_in_part(const void *a, const void *b, void *arg) {
    const layout_slot *slots = arg;
    const layout_slot *x = &slots[*(const int64_t *)a], *y = &slots[*(const int64_t *)b];
    if (x->part != y->part) return x->part < y->part ? -1 : 1;
    int wide = compare_width(x, y);
    return wide ? wide : compare_source(x, y);
}

static int compare_name(const void *a, const void *b, void *arg) {
    const layout_slot *slots = arg;
    return strcmp(slots[*(const int64_t *)a].name, slots[*(const int64_t *)b].name);
}

static void place_in_units(layout *l) {
    qsort(l->slots, (size_t)l->n, sizeof *l->slots, compare_in_unit);
    int64_t i = 0;
    for (int64_t u = 0; u < layout_units(l); u++) {
        uint64_t at = 0;
        l->unit_first[u] = i;
        for (; i < l->n && l->slots[i].unit == u; i++) {
            l->slots[i].unit_offset = at;
            at += l->slots[i].bytes;
        }
    }
    l->unit_first[layout_units(l)] = l->n;
}

/* Up to where the next tensor of a part may begin. */
static uint64_t aligned(const layout *l, uint64_t at) {
    const form *f = l->opts.linears.form;
    const uint64_t align = form_has_files(f) ? (uint64_t)f->file.align : 1;
    return (at + align - 1) / align * align;
}

static void place_in_parts(layout *l) {
    for (int64_t i = 0; i < l->n; i++) l->by_part[i] = l->by_name[i] = i;
    qsort_r(l->by_part, (size_t)l->n, sizeof *l->by_part, compare_in_part, l->slots);
    qsort_r(l->by_name, (size_t)l->n, sizeof *l->by_name, compare_name, l->slots);
    int64_t i = 0;
    for (int64_t p = 0; p < l->n_parts; p++) {
        uint64_t at = 0;
        l->part_first[p] = i;
        for (; i < l->n && l->slots[l->by_part[i]].part == p; i++) {
            at = aligned(l, at);
            l->slots[l->by_part[i]].part_offset = at;
            at += l->slots[l->by_part[i]].bytes;
        }
    }
    l->part_first[l->n_parts] = l->n;
}

err layout_create(const llama_config *cfg, const layout_options *opts, layout **out) {
    *out = NULL;
    err e = check_options(opts);
    if (e.code) return e;
    layout *l = calloc(1, sizeof *l);
    if (!l) abort();
    l->opts = *opts;
    l->cfg = *cfg;
    if (opts->untied) l->cfg.tied = false;
    if (cfg->mlp_bias) l->opts.linears.online.r4_block = 0; /* no runtime rotates before a bias */
    e = list_slots(l);
    if (!e.code) e = MEM_NEW(&l->by_part, l->n, "layout");
    if (!e.code) e = MEM_NEW(&l->by_name, l->n, "layout");
    if (!e.code) e = MEM_NEW(&l->part_first, l->n_parts + 1, "layout");
    if (!e.code) e = MEM_NEW(&l->unit_first, cfg->layers + 3, "layout");
    if (e.code) {
        layout_destroy(&l);
        return e;
    }
    place_in_units(l);
    place_in_parts(l);
    *out = l;
    return e;
}

void layout_destroy(layout **l) {
    if (!*l) return;
    mem_free((*l)->slots);
    mem_free((*l)->by_part);
    mem_free((*l)->by_name);
    mem_free((*l)->part_first);
    mem_free((*l)->unit_first);
    free((*l)->meta.bytes);
    free(*l);
    *l = NULL;
}

const layout_options *layout_opts(const layout *l) {
    return &l->opts;
}
const llama_config *layout_config(const layout *l) {
    return &l->cfg;
}
int64_t layout_count(const layout *l) {
    return l->n;
}
const layout_slot *layout_tensor(const layout *l, int64_t i) {
    return &l->slots[i];
}
int64_t layout_units(const layout *l) {
    return l->cfg.layers + 2;
}
int64_t layout_parts(const layout *l) {
    return l->n_parts;
}

const layout_slot *layout_find(const layout *l, const char *name) {
    int64_t lo = 0, hi = l->n;
    while (lo < hi) {
        int64_t middle = lo + (hi - lo) / 2;
        const layout_slot *s = &l->slots[l->by_name[middle]];
        int order = strcmp(s->name, name);
        if (order == 0) return s;
        if (order < 0)
            lo = middle + 1;
        else
            hi = middle;
    }
    return NULL;
}

const layout_slot *layout_find_role(const layout *l, llama_role role, int64_t layer,
                                    const form_slot *slot) {
    llama_tensor t;
    char name[160];
    if (!llama_tensor_of(&l->cfg, role, layer, &t)) return NULL;
    if (llama_role_in_layer(role) && (layer < 0 || layer >= l->cfg.layers)) return NULL;
    name_slot(l, &t, slot, name);
    const layout_slot *s = layout_find(l, name);
    return s && s->slot == slot ? s : NULL; /* plain tensors and codes may share their names */
}

void layout_unit_range(const layout *l, int64_t unit, int64_t *first, int64_t *count) {
    *first = l->unit_first[unit];
    *count = l->unit_first[unit + 1] - *first;
}

uint64_t layout_unit_bytes(const layout *l, int64_t unit) {
    const layout_slot *last = &l->slots[l->unit_first[unit + 1] - 1]; /* no unit is empty */
    return last->unit_offset + last->bytes;
}

uint64_t layout_part_bytes(const layout *l, int64_t part) {
    const layout_slot *last = &l->slots[l->by_part[l->part_first[part + 1] - 1]];
    return aligned(l, last->part_offset + last->bytes);
}

uint64_t layout_total_bytes(const layout *l) {
    uint64_t sum = 0;
    for (int64_t p = 0; p < l->n_parts; p++) sum += layout_part_bytes(l, p);
    return sum;
}

void layout_shard_name(const layout *l, int64_t part, char name[64]) {
    const form *f = l->opts.linears.form;
    snprintf(name, 64, "model-%05" PRId64 "-of-%05" PRId64 ".%s", part + 1, l->n_parts,
             form_has_files(f) ? f->file.ending : "safetensors");
}

int64_t layout_part_count(const layout *l, int64_t part) {
    return l->part_first[part + 1] - l->part_first[part];
}

const layout_slot *layout_part_tensor(const layout *l, int64_t part, int64_t i) {
    return &l->slots[l->by_part[l->part_first[part] + i]];
}

void layout_put_inputs(layout *l, form_inputs inputs) {
    l->opts.linears.inputs = inputs;
}

void layout_put_meta(layout *l, const layout_metadata *m) {
    free(l->meta.bytes);
    l->meta = *m;
}

const layout_metadata *layout_meta(const layout *l) {
    return &l->meta;
}

err layout_shard_header(const layout *l, int64_t part, char **out, size_t *len) {
    if (form_has_files(l->opts.linears.form))
        return l->opts.linears.form->file.header(l, part, out, len);
    /* transformers refuses a file that does not say which framework it is for. */
    static const char *const metadata[] = {"format", "pt", NULL};
    const int64_t n = layout_part_count(l, part);
    st_tensor *tensors;
    *out = NULL;
    err e = MEM_NEW(&tensors, n, "shard header");
    if (e.code) return e;
    for (int64_t i = 0; i < n; i++) {
        const layout_slot *s = layout_part_tensor(l, part, i);
        tensors[i] = (st_tensor){.name = s->name,
                                 .dtype = s->dtype,
                                 .n_dims = s->n_dims,
                                 .shape = {s->shape[0], s->shape[1]},
                                 .begin = s->part_offset,
                                 .end = s->part_offset + s->bytes};
    }
    e = st_header_write(tensors, n, metadata, out, len);
    mem_free(tensors);
    return e;
}
