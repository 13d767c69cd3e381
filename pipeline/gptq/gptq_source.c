/* Linears of a layer are dealt to ranks by size; each rank reads and fuses its own, and bands of
 * rows are broadcast in the order of use. Reading of the next layer runs beside. */
#include "pipeline/gptq/gptq_source.h"

#include "base/half.h"
#include "base/mem.h"
#include "base/size.h"
#include "model/fuse.h"
#include "pipeline/stages/partition.h"
#include "pipeline/weights/fused_tensor.h"
#include "pipeline/weights/read_ahead.h"
#include "pipeline/weights/source_tensor.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { BAND_BYTES = 4 << 20, HASHES = LLAMA_VECTORS + LLAMA_LINEARS };

struct gptq_source {
    const comm *c;
    const quantize_job *job;
    int owner[LLAMA_LINEARS]; /* rank that fuses it */
    read_ahead *reader;
    int64_t layer;
    float *fused[LLAMA_LINEARS]; /* owned; of this rank's linears until they are shared */
    char hashes[HASHES][SHA256_HEX];
    fused_spread spreads[LLAMA_LINEARS]; /* of the layer, on every rank */
};

int gptq_step_first(llama_step step) {
    static const int first[STEP_COUNT] = {0, 3, 4, 6};
    return first[step];
}

int gptq_step_count(llama_step step) {
    static const int count[STEP_COUNT] = {3, 1, 2, 1};
    return count[step];
}

static err copy_vector(const float *from, int64_t n, float **to) {
    if (!from) return err_none();
    err e = MEM_NEW(to, n, "norms and biases");
    if (!e.code) memcpy(*to, from, (size_t)n * sizeof *from);
    return e;
}

err gptq_layer_copy_vectors(const llama_config *cfg, llama_layer *from, llama_layer *to) {
    err e = err_none();
    for (int k = 0; k < LLAMA_VECTORS && !e.code; k++) {
        llama_tensor t;
        if (llama_tensor_of(cfg, llama_vectors[k], 0, &t))
            e = copy_vector(*llama_layer_vector(from, k), t.rows, llama_layer_vector(to, k));
    }
    return e;
}

static bool mine(const gptq_source *s, int linear) {
    return s->owner[linear] == comm_rank(s->c);
}

static err deal(const quantize_job *job, int ranks, int *owner) {
    double cost[LLAMA_LINEARS];
    for (int i = 0; i < LLAMA_LINEARS; i++) {
        llama_tensor t;
        llama_tensor_of(job->cfg, llama_linears[i], 0, &t);
        cost[i] = (double)t.rows * (double)t.cols;
    }
    return partition_items(cost, LLAMA_LINEARS, ranks, owner);
}

/* ---- reading ---- */

typedef struct name_list {
    char (*names)[96];
    int64_t n;
} name_list;

static void add_name(name_list *l, const llama_config *cfg, llama_role role, int64_t layer) {
    llama_tensor t;
    if (llama_tensor_of(cfg, role, layer, &t)) memcpy(l->names[l->n++], t.name, sizeof t.name);
}

/* Tensors that this rank reads, in the order in which gptq_source_next takes them. */
static name_list names_of(const quantize_job *job, const int *owner, int rank,
                          const int64_t *layers, int64_t n) {
    name_list l = {.names = calloc((size_t)n * HASHES + 1, sizeof *l.names)};
    if (!l.names) abort();
    for (int64_t i = 0; i < n; i++) {
        for (int k = 0; k < LLAMA_NORMS; k++) add_name(&l, job->cfg, llama_vectors[k], layers[i]);
        for (int k = LLAMA_HEAD_NORMS_AT; k < LLAMA_VECTORS; k++)
            add_name(&l, job->cfg, llama_vectors[k], layers[i]);
        for (int k = 0; k < LLAMA_LINEARS; k++) {
            if (owner[k] != rank) continue;
            add_name(&l, job->cfg, llama_linears[k], layers[i]);
            add_name(&l, job->cfg, llama_role_bias(llama_linears[k]), layers[i]);
        }
    }
    return l;
}

static char **pointers_to(const name_list *l) {
    char **p = calloc((size_t)l->n + 1, sizeof *p);
    if (!p) abort();
    for (int64_t i = 0; i < l->n; i++) p[i] = l->names[i];
    return p;
}

err gptq_source_create(const comm *c, const quantize_job *job, const int64_t *layers, int64_t n,
                       bool ahead, gptq_source **out) {
    gptq_source *s = calloc(1, sizeof *s);
    if (!s) abort();
    *s = (gptq_source){.c = c, .job = job};
    err e = deal(job, comm_size(c), s->owner);
    name_list l = names_of(job, s->owner, comm_rank(c), layers, n);
    char **names = pointers_to(&l);
    if (!e.code) e = read_ahead_create(job->checkpoint, names, l.n, ahead, &s->reader);
    free(names);
    free(l.names);
    e = comm_agree(c, e, "reading the weights", NULL);
    if (e.code) gptq_source_destroy(&s);
    *out = s;
    return e;
}

void gptq_source_destroy(gptq_source **s) {
    if (!*s) return;
    for (int i = 0; i < LLAMA_LINEARS; i++) mem_free((*s)->fused[i]);
    read_ahead_destroy(&(*s)->reader);
    free(*s);
    *s = NULL;
}

/* *raw is borrowed until the next read. */
static err read_raw(gptq_source *s, const llama_tensor *t, int hash, const void **raw,
                    fuse_dtype *dtype) {
    const hf_tensor *found;
    err e = read_ahead_next(s->reader, t->name, &found, raw, s->hashes[hash]);
    if (!e.code) *dtype = source_tensor_dtype(found->info.dtype);
    return e;
}

static err read_vector(gptq_source *s, const llama_tensor *t, int hash, float *to) {
    const void *raw = NULL;
    fuse_dtype dtype = FUSE_F32;
    err e = read_raw(s, t, hash, &raw, &dtype);
    if (!e.code) e = source_tensor_refuse(t->name, fuse_count_non_finite(raw, dtype, t->rows));
    if (!e.code) fuse_to_f32(raw, dtype, t->rows, to);
    return e;
}

/* As the archive holds it. */
static void round_as_stored(scale_type type, int64_t n, float *v) {
    for (int64_t i = 0; i < n; i++) {
        if (type == SCALE_BF16) v[i] = half_from_bf16(half_to_bf16(v[i]));
        if (type == SCALE_FP16) v[i] = half_from_fp16(half_to_fp16(v[i]));
    }
}

/* Where the hash of a linear stands; that of its bias follows. Those of the norms are before all
 * linears, those of the norms of heads behind. */
static int hash_of(int linear) {
    return LLAMA_NORMS + 2 * linear;
}

/* *gain: what is folded into the linears after it, or NULL; *left: what stays, as stored. */
static err read_norm(gptq_source *s, llama_role role, int64_t layer, int hash, float **gain,
                     float **left) {
    llama_tensor t;
    if (!llama_tensor_of(s->job->cfg, role, layer, &t)) return err_none();
    err e = MEM_NEW(left, t.rows, t.name);
    if (!e.code) e = MEM_NEW(gain, t.rows, t.name);
    if (!e.code) e = read_vector(s, &t, hash, *left);
    if (e.code) return e;
    memcpy(*gain, *left, (size_t)t.rows * sizeof(float));
    if (fuse_folds_gain(s->job->rotations, role, layer)) {
        fuse_gain_left(s->job->rotations, role, layer, t.rows, *left);
    } else {
        mem_free(*gain);
        *gain = NULL;
    }
    round_as_stored(s->job->how.scale_type, t.rows, *left);
    return e;
}

/* ---- fusing ---- */

static err fuse_linear(gptq_source *s, int k, const float *gain) {
    llama_tensor t;
    fused_source from = {.gain = gain, .spread = &s->spreads[k], .how = &s->job->how};
    llama_tensor_of(s->job->cfg, llama_linears[k], s->layer, &t);
    err e = MEM_NEW(&s->fused[k], t.rows * t.cols, t.name);
    if (!e.code) e = read_raw(s, &t, hash_of(k), &from.raw, &from.dtype);
    return e.code ? e : fused_tensor_into(s->job->rotations, &t, &from, s->fused[k]);
}

/* A bias or a norm of heads, as it stands in the archive. */
static err fuse_vector(gptq_source *s, int hash, const llama_tensor *t, float *v) {
    err e = read_vector(s, t, hash, v);
    if (!e.code) e = fused_tensor_vector(s->job->rotations, t, v);
    if (!e.code) round_as_stored(s->job->how.scale_type, t->rows, v);
    return e;
}

/* Every rank reads norms of heads, as it does the other norms. */
static err do_head_norm(gptq_source *s, int k, llama_layer *to) {
    llama_tensor t;
    float *v;
    if (!llama_tensor_of(s->job->cfg, llama_vectors[k], s->layer, &t)) return err_none();
    err e = MEM_NEW(&v, t.rows, t.name);
    if (e.code) return e;
    *llama_layer_vector(to, k) = v;
    return fuse_vector(s, LLAMA_LINEARS + k, &t, v);
}

static bool has_bias(const gptq_source *s, int k, llama_tensor *t) {
    return llama_tensor_of(s->job->cfg, llama_role_bias(llama_linears[k]), s->layer, t);
}

/* What this rank has to do of a layer. */
static err do_own(gptq_source *s, llama_layer *to) {
    float *gains[LLAMA_NORMS] = {NULL};
    err e = err_none();
    for (int k = 0; k < LLAMA_NORMS && !e.code; k++)
        e = read_norm(s, llama_vectors[k], s->layer, k, &gains[k], llama_layer_vector(to, k));
    for (int k = LLAMA_HEAD_NORMS_AT; k < LLAMA_VECTORS && !e.code; k++) e = do_head_norm(s, k, to);
    for (int k = 0; k < LLAMA_LINEARS && !e.code; k++) {
        llama_tensor bias;
        float *b = NULL;
        const bool biased = has_bias(s, k, &bias);
        if (biased) e = MEM_NEW(&b, bias.rows, bias.name);
        *llama_layer_bias(to, k) = b;
        if (e.code || !mine(s, k)) continue;
        e = fuse_linear(s, k, fused_gain_of(llama_linears[k], gains));
        if (!e.code && biased) e = fuse_vector(s, hash_of(k) + 1, &bias, b);
    }
    for (int k = 0; k < LLAMA_NORMS; k++) mem_free(gains[k]);
    return e;
}

err gptq_source_next(gptq_source *s, int64_t layer, llama_layer *to, char hex[SHA256_HEX]) {
    s->layer = layer;
    memset(s->hashes, 0, sizeof s->hashes);
    err e = comm_agree(s->c, do_own(s, to), "reading the weights", NULL);
    if (e.code) return e;
    for (int k = 0; k < LLAMA_LINEARS; k++) {
        llama_tensor bias;
        comm_bcast(s->c, s->hashes[hash_of(k)], 2 * SHA256_HEX, s->owner[k]);
        comm_bcast(s->c, &s->spreads[k], sizeof s->spreads[k], s->owner[k]);
        if (has_bias(s, k, &bias))
            comm_bcast(s->c, *llama_layer_bias(to, k), (uint64_t)bias.rows * sizeof(float),
                       s->owner[k]);
    }
    sha256 *hash = sha256_create();
    for (int i = 0; i < HASHES; i++)
        if (s->hashes[i][0]) sha256_add(hash, s->hashes[i], 64);
    sha256_finish(&hash, hex);
    return e;
}

const fused_spread *gptq_source_spreads(const gptq_source *s) {
    return s->spreads;
}

err gptq_source_share(gptq_source *s, int k, gptq_band_sink take, void *arg) {
    llama_tensor t;
    float *band = NULL;
    llama_tensor_of(s->job->cfg, llama_linears[k], s->layer, &t);
    const int64_t step =
        size_min(t.rows, size_max(1, BAND_BYTES / (t.cols * (int64_t)sizeof(float))));
    err e = err_none();
    if (!mine(s, k)) e = MEM_NEW(&band, step * t.cols, "rows of a linear");
    e = comm_agree(s->c, e, t.name, NULL);
    if (e.code) return e;
    for (int64_t row = 0; row < t.rows; row += step) {
        const int64_t rows = size_min(step, t.rows - row);
        float *w = mine(s, k) ? s->fused[k] + row * t.cols : band;
        comm_bcast(s->c, w, (uint64_t)(rows * t.cols) * sizeof(float), s->owner[k]);
        if (!e.code) e = take(arg, row, rows, w);
    }
    mem_free(band);
    mem_free(s->fused[k]);
    s->fused[k] = NULL;
    return comm_agree(s->c, e, t.name, NULL);
}

static int step_of(int linear) {
    int step = STEP_QKV;
    while (linear >= gptq_step_first((llama_step)step) + gptq_step_count((llama_step)step)) step++;
    return step;
}

/* Of the first n layers. */
static uint64_t reader_bytes_of(const quantize_job *job, const int *owner, int rank, int64_t n,
                                bool ahead) {
    int64_t *layers = calloc((size_t)n, sizeof *layers);
    if (!layers) abort();
    for (int64_t i = 0; i < n; i++) layers[i] = i;
    name_list l = names_of(job, owner, rank, layers, n);
    char **names = pointers_to(&l);
    const uint64_t bytes = read_ahead_bytes(job->checkpoint, names, l.n, ahead);
    free(names);
    free(l.names);
    free(layers);
    return bytes;
}

/* Of large layers two say it; a plan of many ranks is not to look at all. */
static uint64_t reader_bytes(const quantize_job *job, const int *owner, int rank, bool ahead) {
    uint64_t before = 0, bytes = reader_bytes_of(job, owner, rank, 1, ahead);
    for (int64_t n = 1; n < job->cfg->layers && bytes != before;) {
        n = size_min(2 * n, job->cfg->layers);
        before = bytes;
        bytes = reader_bytes_of(job, owner, rank, n, ahead);
    }
    return bytes;
}

void gptq_source_bytes(const quantize_job *job, int ranks, int rank, bool ahead,
                       gptq_source_sizes *out) {
    int owner[LLAMA_LINEARS];
    *out = (gptq_source_sizes){.reader = 0};
    if (deal(job, ranks, owner).code) return;
    for (int k = 0; k < LLAMA_LINEARS; k++) {
        llama_tensor t;
        if (owner[k] != rank) continue;
        llama_tensor_of(job->cfg, llama_linears[k], 0, &t);
        out->fused[step_of(k)] += (uint64_t)(t.rows * t.cols) * sizeof(float);
        const uint64_t bytes = fused_tensor_bytes(job->rotations, &t, FUSE_BF16, job->r1_dense);
        out->fusion = bytes > out->fusion ? bytes : out->fusion;
    }
    out->reader = reader_bytes(job, owner, rank, ahead);
}
