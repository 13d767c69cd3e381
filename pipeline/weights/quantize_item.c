/* One function for each kind of item walks its tensors in the order of read_ahead and hands fused,
 * then quantized rows to the sink. */
#include "pipeline/weights/quantize_item.h"

#include "base/mem.h"
#include "model/fuse.h"
#include "pipeline/weights/source_tensor.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct worker {
    const quantize_job *job;
    const quantize_sink *sink;
    read_ahead *reader;
    quantize_result *result;
    sha256 *hash;
} worker;

/* *out is borrowed until the next tensor is read. */
static err read_source(worker *w, const char *name, const void **out, fuse_dtype *dtype) {
    const hf_tensor *t;
    char hex[SHA256_HEX];
    err e = read_ahead_next(w->reader, name, &t, out, hex);
    if (e.code) return e;
    sha256_add(w->hash, hex, 64);
    *dtype = source_tensor_dtype(t->info.dtype);
    return e;
}

/* A vector as fp32 in fresh memory (mem_free). */
static err read_vector(worker *w, const llama_tensor *t, float **out) {
    const void *raw = NULL;
    float *to = NULL;
    fuse_dtype dtype = FUSE_F32;
    err e = read_source(w, t->name, &raw, &dtype);
    if (!e.code) e = source_tensor_refuse(t->name, fuse_count_non_finite(raw, dtype, t->rows));
    if (!e.code) e = MEM_NEW(&to, t->rows, t->name);
    if (!e.code) fuse_to_f32(raw, dtype, t->rows, to);
    *out = to;
    return e;
}

/* A norm: *gain is what is to be folded into the linears, NULL where nothing is; the archive gets
 * what is left of it: 1/S, or ones. */
static err do_norm(worker *w, llama_role role, int64_t layer, float **gain) {
    llama_tensor t;
    *gain = NULL;
    if (!llama_tensor_of(w->job->cfg, role, layer, &t)) return err_none();
    err e = read_vector(w, &t, gain);
    if (e.code) return e;
    if (!fuse_folds_gain(w->job->rotations, role, layer)) {
        e = w->sink->plain(w->sink->arg, &t, 0, t.rows, *gain);
        mem_free(*gain);
        *gain = NULL;
        return e;
    }
    float *left;
    e = MEM_NEW(&left, t.rows, "norm gains");
    if (e.code) return e;
    fuse_gain_left(w->job->rotations, role, layer, t.rows, left);
    e = w->sink->plain(w->sink->arg, &t, 0, t.rows, left);
    mem_free(left);
    return e;
}

/* Fused rows on their way into codes, or straight to the sink. */
typedef struct row_target {
    worker *w;
    const llama_tensor *tensor;
    qmatrix *q;     /* NULL: not quantized */
    qerror *errors; /* [rows] of them; NULL where q is */
} row_target;

/* Called by several threads, each with rows of its own, unless the sink wants them in order. */
static err take_rows(void *arg, int64_t row0, int64_t rows, const float *x) {
    row_target *r = arg;
    const quantize_sink *sink = r->w->sink;
    if (!llama_role_is_linear(r->tensor->role))
        return sink->plain(sink->arg, r->tensor, row0, rows, x);
    const int64_t cols = r->tensor->cols;
    err e = err_none();
    if (sink->fused) e = sink->fused(sink->arg, r->tensor, row0, rows, x);
    if (e.code || !r->q) return e;
    rtn_quantize_rows(&r->w->job->how, x, rows, cols, row0, r->q);
    for (int64_t i = 0; i < rows; i++)
        r->errors[row0 + i] = qmatrix_row_error(r->q, x + i * cols, row0 + i);
    return err_none();
}

static err fuse_rows(worker *w, const fused_source *from, row_target *target) {
    rotation_set *set = w->job->rotations;
    return w->sink->in_order ? fused_tensor_in_order(set, target->tensor, from, take_rows, target)
                             : fused_tensor_each(set, target->tensor, from, take_rows, target);
}

/* A bias, or a norm of heads. */
static err do_vector(worker *w, llama_role role, int64_t layer) {
    llama_tensor t;
    float *v;
    if (!llama_tensor_of(w->job->cfg, role, layer, &t)) return err_none();
    err e = read_vector(w, &t, &v);
    if (!e.code) e = fused_tensor_vector(w->job->rotations, &t, v);
    if (!e.code) e = w->sink->plain(w->sink->arg, &t, 0, t.rows, v);
    mem_free(v);
    return e;
}

static err target_codes(row_target *r) {
    err e = qmatrix_create(r->tensor->rows, r->tensor->cols, &r->w->job->how, &r->q);
    if (e.code) return e;
    e = MEM_NEW(&r->errors, r->tensor->rows, "errors of rows");
    if (e.code) qmatrix_destroy(&r->q);
    return e;
}

static err do_linear(worker *w, int k, int64_t layer, const float *gain) {
    const llama_role role = llama_linears[k];
    llama_tensor t;
    llama_tensor_of(w->job->cfg, role, layer, &t);
    fused_source from = {.gain = gain,
                         .spread = &w->result->spreads[k],
                         .how = w->sink->quantized ? &w->job->how : NULL};
    row_target target = {.w = w, .tensor = &t};
    err e = err_none();
    if (w->sink->quantized) e = target_codes(&target);
    if (e.code) return err_at(e, t.name);
    e = read_source(w, t.name, &from.raw, &from.dtype);
    if (!e.code) e = fuse_rows(w, &from, &target);
    if (!e.code && target.q) e = w->sink->quantized(w->sink->arg, &t, target.q);
    if (!e.code && target.q) qerror_add(target.errors, t.rows, &w->result->error);
    qmatrix_destroy(&target.q);
    mem_free(target.errors);
    return e.code ? e : do_vector(w, llama_role_bias(role), layer);
}

static err do_layer(worker *w, int64_t layer) {
    float *gains[LLAMA_NORMS] = {NULL};
    err e = err_none();
    for (int i = 0; i < LLAMA_NORMS && !e.code; i++)
        e = do_norm(w, llama_vectors[i], layer, &gains[i]);
    for (int i = LLAMA_HEAD_NORMS_AT; i < LLAMA_VECTORS && !e.code; i++)
        e = do_vector(w, llama_vectors[i], layer);
    for (int i = 0; i < LLAMA_LINEARS && !e.code; i++)
        e = do_linear(w, i, layer, fused_gain_of(llama_linears[i], gains));
    for (int i = 0; i < LLAMA_NORMS; i++) mem_free(gains[i]);
    return e;
}

/* The rows of a table of the vocabulary under the role it plays. */
static err do_table(worker *w, const llama_tensor *t, const fused_source *from) {
    row_target target = {.w = w, .tensor = t};
    return fuse_rows(w, from, &target);
}

/* The final norm of a tied model comes first: the table is borrowed until the next read. */
static err do_embedding(worker *w) {
    const llama_config *cfg = w->job->cfg;
    llama_tensor t;
    fused_source from = {.gain = NULL};
    float *gain = NULL;
    llama_tensor_of(cfg, ROLE_EMBED, -1, &t);
    err e = cfg->tied ? do_norm(w, ROLE_FINAL_NORM, -1, &gain) : err_none();
    if (!e.code) e = read_source(w, t.name, &from.raw, &from.dtype);
    if (!e.code) e = do_table(w, &t, &from);
    if (!e.code && w->job->untied) {
        llama_tensor head = t;
        head.role = ROLE_HEAD;
        from.gain = gain;
        e = do_table(w, &head, &from);
    }
    mem_free(gain);
    return e;
}

static err do_head(worker *w) {
    llama_tensor t;
    fused_source from = {.raw = NULL};
    float *gain;
    err e = do_norm(w, ROLE_FINAL_NORM, -1, &gain);
    llama_tensor_of(w->job->cfg, ROLE_HEAD, -1, &t);
    from.gain = gain;
    if (!e.code) e = read_source(w, t.name, &from.raw, &from.dtype);
    if (!e.code) e = do_table(w, &t, &from);
    mem_free(gain);
    return e;
}

int64_t quantize_item_count(const quantize_job *job) {
    return job->cfg->layers + (job->cfg->tied ? 1 : 2);
}

double quantize_item_cost(const quantize_job *job, int64_t item) {
    double table = (double)job->cfg->vocab * (double)job->cfg->hidden;
    if (item >= 1 && item <= job->cfg->layers) return (double)llama_layer_params(job->cfg);
    return job->cfg->tied && job->untied ? 2 * table : table;
}

int quantize_item_units(const quantize_job *job, int64_t item, int64_t units[2]) {
    units[0] = item;
    units[1] = job->cfg->layers + 1;
    return item == 0 && job->cfg->tied ? 2 : 1;
}

/* Names of tensors in the order in which they are read. */
typedef struct name_list {
    const llama_config *cfg;
    char **names;
    int64_t n;
} name_list;

static void add_name(name_list *l, llama_role role, int64_t layer) {
    llama_tensor t;
    if (!llama_tensor_of(l->cfg, role, layer, &t)) return;
    l->names = realloc(l->names, (size_t)(l->n + 1) * sizeof *l->names);
    if (!l->names || !(l->names[l->n++] = strdup(t.name))) abort();
}

static void add_item_names(name_list *l, int64_t item) {
    if (item == 0) {
        if (l->cfg->tied) add_name(l, ROLE_FINAL_NORM, -1);
        add_name(l, ROLE_EMBED, -1);
    } else if (item <= l->cfg->layers) {
        for (int i = 0; i < LLAMA_NORMS; i++) add_name(l, llama_vectors[i], item - 1);
        for (int i = LLAMA_HEAD_NORMS_AT; i < LLAMA_VECTORS; i++)
            add_name(l, llama_vectors[i], item - 1);
        for (int i = 0; i < LLAMA_LINEARS; i++) {
            add_name(l, llama_linears[i], item - 1);
            add_name(l, llama_role_bias(llama_linears[i]), item - 1);
        }
    } else {
        add_name(l, ROLE_FINAL_NORM, -1);
        add_name(l, ROLE_HEAD, -1);
    }
}

static name_list names_of(const quantize_job *job, const int64_t *items, int64_t n) {
    name_list l = {.cfg = job->cfg};
    for (int64_t i = 0; i < n; i++) add_item_names(&l, items[i]);
    return l;
}

static void clear_names(name_list *l) {
    for (int64_t i = 0; i < l->n; i++) free(l->names[i]);
    free(l->names);
}

err quantize_item_read_ahead(const quantize_job *job, const int64_t *items, int64_t n, bool ahead,
                             read_ahead **out) {
    name_list l = names_of(job, items, n);
    err e = read_ahead_create(job->checkpoint, l.names, l.n, ahead, out);
    clear_names(&l);
    return e;
}

uint64_t quantize_item_read_bytes(const quantize_job *job, const int64_t *items, int64_t n,
                                  bool ahead) {
    name_list l = names_of(job, items, n);
    uint64_t bytes = read_ahead_bytes(job->checkpoint, l.names, l.n, ahead);
    clear_names(&l);
    return bytes;
}

err quantize_item(const quantize_job *job, int64_t item, read_ahead *reader,
                  const quantize_sink *sink, quantize_result *out) {
    memset(out, 0, sizeof *out);
    worker w = {.job = job, .sink = sink, .reader = reader, .result = out, .hash = sha256_create()};
    err e;
    if (item == 0)
        e = do_embedding(&w);
    else if (item <= job->cfg->layers)
        e = do_layer(&w, item - 1);
    else
        e = do_head(&w);
    sha256_finish(&w.hash, out->source_sha256);
    return e;
}

/* The largest tensor of an item decides: tensors follow each other. */
quantize_memory quantize_item_memory(const quantize_job *job, int64_t item) {
    quantize_memory most = {0};
    for (int64_t i = 0; i < llama_tensor_count(job->cfg); i++) {
        llama_tensor t;
        llama_tensor_at(job->cfg, i, &t);
        bool mine = t.layer == item - 1 && item > 0;
        if (t.role == ROLE_EMBED) mine = item == 0;
        if (t.role == ROLE_HEAD) mine = item == job->cfg->layers + 1;
        const hf_tensor *found = hf_checkpoint_find(job->checkpoint, t.name);
        if (!mine || t.n_dims != 2 || !found) continue;
        quantize_memory m = {
            .fusion = fused_tensor_bytes(job->rotations, &t, source_tensor_dtype(found->info.dtype),
                                         job->r1_dense),
        };
        if (llama_role_is_linear(t.role) && job->how.bits < 16)
            m.codes = qmatrix_bytes(t.rows, t.cols, &job->how) + (uint64_t)t.rows * sizeof(qerror);
        if (m.fusion + m.codes > most.fusion + most.codes) most = m;
    }
    return most;
}
