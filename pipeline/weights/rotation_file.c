/* Writing lists matrices and scales as F64 tensors, and copies a few rows at a time. Reading checks
 * origin, shapes and orthogonality, and replaces a matrix that is nearly orthogonal by
 * Newton-Schulz steps from it. */
#include "pipeline/weights/rotation_file.h"

#include "base/file.h"
#include "base/mem.h"
#include "base/size.h"
#include "io/safetensors.h"
#include "rotations/cayley.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_LEN = 80 };
#define MAX_FILE_BYTES (16ull << 30)

typedef enum matrix_kind { MATRIX_R1, MATRIX_R2, MATRIX_R3 } matrix_kind;

/* What a tensor is asked from when it is written. */
typedef struct matrix_origin {
    matrix_kind kind;
    int64_t layer;
} matrix_origin;

/* Nothing is copied: numbers are borrowed from the set, and rows of matrices are asked for when
 * they are written. */
typedef struct matrix_list {
    const rotation_set *set;
    bool fp32;
    st_tensor *tensors;
    const void **data; /* NULL: comes in rows from its origin */
    matrix_origin *origins;
    char (*names)[NAME_LEN];
    int64_t n;
} matrix_list;

static void list_clear(matrix_list *m) {
    free(m->tensors);
    free(m->data);
    free(m->origins);
    free(m->names);
}

/* The key of something that a layer has. */
static void layer_key(char name[NAME_LEN], int64_t layer, const char *what) {
    snprintf(name, NAME_LEN, "model.layers.%" PRId64 ".%s", layer, what);
}

/* Scales by kind: what follows model.layers.{i}. in the key. */
static const char *const scale_keys[SCALE_KINDS] = {"input_layernorm.S",
                                                    "post_attention_layernorm.S", "self_attn.S_vo",
                                                    "self_attn.S_qk", "mlp.S_ud"};

/* Clips by place, in the same way; [2] each. */
static const char *const clip_keys[CLIP_PLACES] = {
    "input_layernorm.clip", "post_attention_layernorm.clip",
    "self_attn.clip_o",     "mlp.clip",
    "self_attn.clip_k",     "self_attn.clip_v"};

static bool by_head(scale_kind kind) {
    return kind == SCALE_VO || kind == SCALE_QK;
}

static err list_init(matrix_list *m, const rotation_set *set, bool fp32) {
    const int64_t room = (2 + SCALE_KINDS + CLIP_PLACES) * rotation_set_sizes(set)->layers + 1;
    *m = (matrix_list){.set = set, .fp32 = fp32};
    m->tensors = calloc((size_t)room, sizeof *m->tensors);
    m->data = calloc((size_t)room, sizeof *m->data);
    m->origins = calloc((size_t)room, sizeof *m->origins);
    m->names = calloc((size_t)room, sizeof *m->names);
    if (m->tensors && m->data && m->origins && m->names) return err_none();
    list_clear(m);
    return err_make(ERR_NOFIT, "rotations", NULL, "no memory");
}

static void to_fp32(double *d, int64_t n) {
    float *f = (float *)d;
    for (int64_t i = 0; i < n; i++) {
        float x = (float)d[i]; /* read before the smaller element is written over it */
        memcpy(&f[i], &x, sizeof x);
    }
}

/* `heads` matrices of order n as one tensor: [n, n], or [heads, n, n] with more than one. */
static void list_add(matrix_list *m, const char *name, matrix_origin from, int64_t heads,
                     int64_t n) {
    const int64_t at = m->n++;
    snprintf(m->names[at], NAME_LEN, "%s", name);
    st_tensor t = {.name = m->names[at], .dtype = m->fp32 ? ST_F32 : ST_F64};
    if (heads > 1) t.shape[t.n_dims++] = heads;
    t.shape[t.n_dims++] = n;
    t.shape[t.n_dims++] = n;
    m->tensors[at] = t;
    m->origins[at] = from;
}

static const rotation *matrix_of(const rotation_set *set, matrix_origin from, int64_t head) {
    if (from.kind == MATRIX_R1) return rotation_set_r1(set);
    if (from.kind == MATRIX_R2) return rotation_set_r2(set, from.layer, head);
    return rotation_set_r3_heads(set)[from.layer * rotation_set_sizes(set)->kv_heads + head];
}

/* Rows of a tensor on their way to a file, those of its heads one after the other. */
static void get_rows(void *arg, int64_t i, int64_t row, int64_t rows, void *to) {
    const matrix_list *m = arg;
    const int64_t n = m->tensors[i].shape[m->tensors[i].n_dims - 1];
    double *d = to;
    for (int64_t done = 0, some; done < rows; done += some) {
        const int64_t at = (row + done) % n;
        some = size_min(rows - done, n - at);
        rotation_dense_rows(matrix_of(m->set, m->origins[i], (row + done) / n), at, some,
                            d + done * n);
    }
    if (m->fp32) to_fp32(d, rows * n);
}

static err add_r2(matrix_list *m, rotation_set *set, int64_t layer) {
    char name[NAME_LEN];
    layer_key(name, layer, "self_attn.R2");
    list_add(m, name, (matrix_origin){MATRIX_R2, layer}, rotation_set_r2_count(set),
             rotation_set_sizes(set)->head_dim);
    return rotation_set_prepare_r2(set, layer);
}

static void add_scales(matrix_list *m, const rotation_sizes *z, const scale_set *set,
                       scale_kind kind, int64_t layer) {
    const scale_vector *v = scale_set_get(set, kind, layer);
    const int64_t at = m->n++;
    layer_key(m->names[at], layer, scale_keys[kind]);
    st_tensor t = {.name = m->names[at], .dtype = ST_F64};
    if (by_head(kind)) t.shape[t.n_dims++] = z->kv_heads;
    t.shape[t.n_dims++] = by_head(kind) ? z->head_dim : v->n;
    m->tensors[at] = t;
    m->data[at] = v->s;
}

static void add_r3(matrix_list *m, const rotation_sizes *z, int64_t layer) {
    char name[NAME_LEN];
    layer_key(name, layer, "self_attn.R3");
    list_add(m, name, (matrix_origin){MATRIX_R3, layer}, z->kv_heads, z->head_dim);
}

static void add_clip(matrix_list *m, const clip_set *set, clip_place place, int64_t layer) {
    const int64_t at = m->n++;
    layer_key(m->names[at], layer, clip_keys[place]);
    m->tensors[at] = (st_tensor){.name = m->names[at], .dtype = ST_F64, .shape = {2}, .n_dims = 1};
    m->data[at] = clip_set_get(set, place, layer);
}

/* What SpinQuant's files do not have. */
static void add_more(matrix_list *m, const rotation_set *set) {
    const rotation_sizes *z = rotation_set_sizes(set);
    const clip_set *clips = rotation_set_clips(set);
    const scale_set *scales = rotation_set_scales(set);
    for (int64_t i = 0; i < SCALE_KINDS * z->layers; i++) {
        const scale_kind kind = (scale_kind)(i % SCALE_KINDS);
        if (scale_set_has(scales, kind)) add_scales(m, z, scales, kind, i / SCALE_KINDS);
    }
    for (int64_t l = 0; rotation_set_r3_heads(set) && l < z->layers; l++) add_r3(m, z, l);
    for (int64_t i = 0; clips && i < CLIP_PLACES * z->layers; i++)
        add_clip(m, clips, (clip_place)(i % CLIP_PLACES), i / CLIP_PLACES);
}

err rotation_file_write(const char *path, rotation_set *set, bool fp32,
                        const char *const *metadata) {
    const rotation_sizes *z = rotation_set_sizes(set);
    matrix_list m;
    err e = list_init(&m, set, fp32);
    if (e.code) return e;
    const st_rows rows = {.arg = &m, .get = get_rows};
    if (rotation_set_r1(set)) list_add(&m, "R1", (matrix_origin){MATRIX_R1, 0}, 1, z->hidden);
    if (rotation_set_r2_count(set) > 0)
        for (int64_t l = 0; l < z->layers && !e.code; l++) e = add_r2(&m, set, l);
    if (!e.code && !fp32) add_more(&m, set);
    if (!e.code) e = st_file_write(path, m.tensors, m.n, m.data, &rows, metadata, NULL);
    list_clear(&m);
    return e;
}

/* ---- reading ---- */

typedef struct rotation_text {
    const char *path;
    const st_header *header;
    const char *data; /* the data section */
} rotation_text;

static err bad_tensor(const rotation_text *f, const char *name, const char *what) {
    return err_at(err_make(ERR_INPUT, name, "the file may belong to another model", "%s", what),
                  f->path);
}

static double number_at(const rotation_text *f, const st_tensor *t, int64_t i) {
    const char *from = f->data + t->begin;
    double d;
    float x;
    if (t->dtype == ST_F64) {
        memcpy(&d, from + 8 * i, 8);
        return d;
    }
    memcpy(&x, from + 4 * i, 4);
    return x;
}

static err check_type(const rotation_text *f, const st_tensor *t) {
    if (t->dtype == ST_F64 || t->dtype == ST_F32) return err_none();
    return bad_tensor(f, t->name, "must be F64 or F32");
}

/* In place of *out the orthogonal matrix next to R: a step squares a defect of up to 1e-5. */
static err take_polished(int64_t n, double *R, rotation **out) {
    rotation_destroy(out);
    err e = cayley_polish(n, R);
    if (!e.code) e = cayley_polish(n, R);
    return e.code ? e : rotation_create_dense(n, R, out);
}

/* Matrix `index` of a tensor of n x n matrices as a rotation, checked. */
static err take_matrix(const rotation_text *f, const st_tensor *t, int64_t index, int64_t n,
                       rotation **out) {
    double *d;
    err e = MEM_NEW(&d, n * n, "rotation");
    if (e.code) return e;
    for (int64_t i = 0; i < n * n; i++) d[i] = number_at(f, t, index * n * n + i);
    e = rotation_create_dense(n, d, out);
    double off = 0;
    if (!e.code) e = rotation_orthogonality(*out, &off);
    if (!e.code && off > ROTATION_FILE_EXACT && off <= ROTATION_FILE_ORTHOGONAL)
        e = take_polished(n, d, out);
    mem_free(d);
    if (!e.code && !(off <= ROTATION_FILE_ORTHOGONAL)) {
        char what[160];
        snprintf(what, sizeof what,
                 "not orthogonal: max |R^T R - I| is %.3g, at most %.0e is allowed", off,
                 ROTATION_FILE_ORTHOGONAL);
        e = bad_tensor(f, t->name, what);
    }
    if (e.code) rotation_destroy(out);
    return e;
}

static err check_shape(const rotation_text *f, const st_tensor *t, int64_t heads, int64_t n) {
    err e = check_type(f, t);
    if (e.code) return e;
    int d = t->n_dims;
    bool square = d >= 2 && t->shape[d - 1] == n && t->shape[d - 2] == n;
    bool right = heads == 1 ? d == 2 : d == 3 && t->shape[0] == heads;
    if (square && right) return err_none();
    char what[160];
    snprintf(what, sizeof what,
             "has %d dimensions, the last %" PRId64 "; expected %s%" PRId64 " x %" PRId64, d,
             d ? t->shape[d - 1] : 0, heads == 1 ? "" : "[kv_heads] x ", n, n);
    return bad_tensor(f, t->name, what);
}

static err put_all(const rotation_text *f, rotation_set *set) {
    const rotation_sizes *z = rotation_set_sizes(set);
    const st_tensor *t = st_header_find(f->header, "R1");
    rotation *r = NULL;
    err e = err_none();
    if (t) {
        e = check_shape(f, t, 1, z->hidden);
        if (!e.code) e = take_matrix(f, t, 0, z->hidden, &r);
        if (!e.code) e = rotation_set_put_r1(set, &r);
    }
    int64_t heads = rotation_set_r2_count(set);
    for (int64_t l = 0; heads && l < z->layers && !e.code; l++) {
        char name[NAME_LEN];
        layer_key(name, l, "self_attn.R2");
        t = st_header_find(f->header, name);
        if (!t) return bad_tensor(f, name, "is missing");
        e = check_shape(f, t, heads, z->head_dim);
        if (!e.code) e = rotation_set_prepare_r2(set, l);
        for (int64_t h = 0; h < heads && !e.code; h++) {
            e = take_matrix(f, t, h, z->head_dim, &r);
            if (!e.code) e = rotation_set_put_r2(set, l, h, &r);
        }
    }
    rotation_destroy(&r);
    return e;
}

static bool holds_r3(const rotation_text *f) {
    return st_header_find(f->header, "model.layers.0.self_attn.R3") != NULL;
}

static err put_r3(const rotation_text *f, rotation_set *set) {
    const rotation_sizes *z = rotation_set_sizes(set);
    rotation *r = NULL;
    err e = err_none();
    for (int64_t l = 0; l < z->layers && !e.code; l++) {
        char name[NAME_LEN];
        layer_key(name, l, "self_attn.R3");
        const st_tensor *t = st_header_find(f->header, name);
        if (!t) return bad_tensor(f, name, "is missing, where other layers have it");
        e = check_shape(f, t, z->kv_heads, z->head_dim);
        for (int64_t h = 0; h < z->kv_heads && !e.code; h++) {
            e = take_matrix(f, t, h, z->head_dim, &r);
            if (!e.code) e = rotation_set_put_r3(set, l, h, &r);
        }
    }
    rotation_destroy(&r);
    return e;
}

/* ---- clips ---- */

static bool holds_clips(const rotation_text *f) {
    char name[NAME_LEN];
    layer_key(name, 0, clip_keys[CLIP_ATTN]);
    return st_header_find(f->header, name) != NULL;
}

static err take_clip(const rotation_text *f, clip_place place, int64_t layer, clip_set *to) {
    char name[NAME_LEN];
    layer_key(name, layer, clip_keys[place]);
    const st_tensor *t = st_header_find(f->header, name);
    if (!t) return bad_tensor(f, name, "is missing, where others are there");
    err e = check_type(f, t);
    if (e.code) return e;
    if (t->n_dims != 1 || t->shape[0] != 2) return bad_tensor(f, name, "must have shape [2]");
    const double ends[2] = {number_at(f, t, 0), number_at(f, t, 1)};
    e = clip_set_put(to, place, layer, ends);
    return e.code ? bad_tensor(f, name, e.what) : e;
}

static err put_clips(const rotation_text *f, rotation_set *set) {
    const int64_t layers = rotation_set_sizes(set)->layers;
    clip_set *clips;
    err e = clip_set_create(layers, &clips);
    for (int64_t i = 0; i < CLIP_PLACES * layers && !e.code; i++)
        e = take_clip(f, (clip_place)(i % CLIP_PLACES), i / CLIP_PLACES, clips);
    if (!e.code) rotation_set_put_clips(set, &clips);
    clip_set_destroy(&clips);
    return e;
}

/* ---- scales ---- */

static bool holds_scales(const rotation_text *f, scale_kind kind) {
    char name[NAME_LEN];
    layer_key(name, 0, scale_keys[kind]);
    return st_header_find(f->header, name) != NULL;
}

static err check_length(const rotation_text *f, const st_tensor *t, const rotation_sizes *z,
                        scale_kind kind, int64_t n) {
    err e = check_type(f, t);
    if (e.code) return e;
    const bool right =
        by_head(kind) ? t->n_dims == 2 && t->shape[0] == z->kv_heads && t->shape[1] == z->head_dim
                      : t->n_dims == 1 && t->shape[0] == n;
    if (right) return e;
    char what[160];
    snprintf(what, sizeof what, "has %d dimensions, the first %" PRId64 "; expected ", t->n_dims,
             t->n_dims ? t->shape[0] : 0);
    const size_t at = strlen(what);
    if (by_head(kind))
        snprintf(what + at, sizeof what - at, "[%" PRId64 ", %" PRId64 "]", z->kv_heads,
                 z->head_dim);
    else
        snprintf(what + at, sizeof what - at, "[%" PRId64 "]", n);
    return bad_tensor(f, t->name, what);
}

static err take_scales(const rotation_text *f, const rotation_sizes *z, scale_kind kind,
                       int64_t layer, scale_set *set, double *buf) {
    char name[NAME_LEN];
    layer_key(name, layer, scale_keys[kind]);
    const st_tensor *t = st_header_find(f->header, name);
    const int64_t n = scale_set_length(set, kind);
    if (!t) return bad_tensor(f, name, "is missing, where other layers have it");
    err e = check_length(f, t, z, kind, n);
    if (e.code) return e;
    for (int64_t i = 0; i < n; i++) buf[i] = number_at(f, t, i);
    e = scale_set_put(set, kind, layer, buf);
    return e.code ? bad_tensor(f, name, e.what) : e;
}

static err put_scales(const rotation_text *f, rotation_set *set) {
    const rotation_sizes *z = rotation_set_sizes(set);
    scale_set *scales;
    double *buf = NULL;
    err e = rotation_set_new_scales(set, &scales);
    for (int k = 0; k < SCALE_KINDS && !e.code; k++) {
        const scale_kind kind = (scale_kind)k;
        if (!holds_scales(f, kind)) continue;
        e = scale_set_add(scales, kind);
        if (!e.code) e = MEM_NEW(&buf, scale_set_length(scales, kind), "scales");
        for (int64_t l = 0; l < z->layers && !e.code; l++)
            e = take_scales(f, z, kind, l, scales, buf);
        mem_free(buf);
        buf = NULL;
    }
    if (!e.code) rotation_set_put_scales(set, &scales);
    scale_set_destroy(&scales);
    return e;
}

static err set_from_text(const rotation_text *f, const rotation_options *opts,
                         const rotation_sizes *sizes, rotation_set **out) {
    const st_tensor *r2 = st_header_find(f->header, "model.layers.0.self_attn.R2");
    rotation_options o = *opts;
    o.r1 = st_header_find(f->header, "R1") != NULL;
    o.r2 = !r2 ? R2_NONE : r2->n_dims == 3 && r2->shape[0] > 1 ? R2_HEAD : R2_LAYER;
    o.start = START_LATER;
    bool scales = false;
    for (int k = 0; k < SCALE_KINDS; k++) scales |= holds_scales(f, (scale_kind)k);
    if (!o.r1 && !r2 && !scales && !holds_r3(f) && !holds_clips(f))
        return err_make(ERR_INPUT, f->path,
                        "a rotation file has R1 and model.layers.N.self_attn.R2",
                        "holds no rotation");
    err e = rotation_set_create(&o, sizes, out);
    if (!e.code) e = put_all(f, *out);
    if (!e.code && scales) e = put_scales(f, *out);
    if (!e.code && o.r3 && holds_r3(f)) e = put_r3(f, *out);
    if (!e.code && holds_clips(f)) e = put_clips(f, *out);
    if (e.code) rotation_set_destroy(out);
    return e;
}

static err refuse_pickle(const char *path) {
    const char *dot = strrchr(path, '.');
    if (!dot || (strcmp(dot, ".bin") && strcmp(dot, ".pt") && strcmp(dot, ".pth")))
        return err_none();
    return err_make(
        ERR_INPUT, path,
        "convert it: python -c \"import torch, sys; from safetensors.torch import save_file; "
        "save_file({k: v.contiguous() for k, v in torch.load(sys.argv[1]).items()}, sys.argv[2])\" "
        "R.bin rotations.safetensors",
        "a pickled file runs code when read, so it is refused");
}

/* Names of files are left aside: a file may be renamed. */
static bool source_has(const hf_checkpoint *source, const char *header_sha256) {
    for (int i = 0; i < hf_checkpoint_shards(source); i++)
        if (!strcmp(hf_checkpoint_header_sha256(source, i), header_sha256)) return true;
    return false;
}

static err check_origin(const rotation_text *f, const hf_checkpoint *source) {
    for (int64_t i = 0; source && i < st_header_metadata_count(f->header); i++) {
        const char *key, *value;
        st_header_metadata_at(f->header, i, &key, &value);
        const size_t n = strlen(key);
        if (n < 12 || strcmp(key + n - 12, ".safetensors") != 0 || source_has(source, value))
            continue;
        return err_make(
            ERR_INPUT, f->path,
            "learn them on this model; or, to use them all the same, give the twin that "
            "`spinshard inspect --export-spinquant FILE` writes",
            "these are the rotations of another model: the header of its %.80s has the "
            "sha256 %.12s..., which no file here has",
            key, value);
    }
    return err_none();
}

err rotation_file_read(const comm *c, const char *path, const rotation_options *opts,
                       const rotation_sizes *sizes, const hf_checkpoint *source,
                       rotation_set **out) {
    void *blob = NULL;
    char *text = NULL;
    size_t len = 0;
    *out = NULL;
    err e = refuse_pickle(path);
    if (!e.code && comm_rank(c) == 0) e = file_read_all(path, MAX_FILE_BYTES, &text, &len);
    e = comm_agree(c, e, "reading the rotations", NULL);
    if (e.code) {
        free(text);
        return e;
    }
    blob = text;
    comm_bcast_blob(c, &blob, &len, 0);
    st_header *header;
    e = st_header_of_bytes(blob, len, path, &header);
    rotation_text f = {.path = path, .header = header};
    if (!e.code) f.data = (char *)blob + st_header_data_offset(header);
    if (!e.code) e = check_origin(&f, source);
    if (!e.code) e = set_from_text(&f, opts, sizes, out);
    st_header_destroy(&header);
    free(blob);
    e = comm_agree(c, e, "reading the rotations", NULL);
    if (e.code) rotation_set_destroy(out);
    return e;
}
