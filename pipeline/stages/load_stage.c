/* The tensor list of the config is walked; each tensor is read into a slot as it is, or packed, or
 * fused on the way. Non-finite values are counted in the raw bytes. */
#include "pipeline/stages/load_stage.h"

#include "base/mem.h"
#include "base/size.h"
#include "model/fuse.h"
#include "model/tensors.h"
#include "pipeline/weights/fused_tensor.h"
#include "pipeline/weights/source_tensor.h"
#include "quant/pack.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

err embed_rows_init(const int32_t *ids, int64_t n_ids, int64_t vocab, embed_rows *out) {
    memset(out, 0, sizeof *out);
    out->row = malloc((size_t)vocab * sizeof *out->row);
    out->id = malloc((size_t)vocab * sizeof *out->id);
    if (!out->row || !out->id) abort();
    memset(out->row, 0xff, (size_t)vocab * sizeof *out->row);
    for (int64_t i = 0; i < n_ids; i++) {
        if (ids[i] < 0 || ids[i] >= vocab) {
            embed_rows_clear(out);
            return err_make(ERR_INPUT, "token ids", "the tokenizer belongs to another model",
                            "token id %d is outside the vocabulary of %" PRId64, ids[i], vocab);
        }
        out->row[ids[i]] = 0;
    }
    for (int32_t id = 0; id < vocab; id++) {
        if (out->row[id] < 0) continue;
        out->row[id] = (int32_t)out->n;
        out->id[out->n++] = id;
    }
    return err_none();
}

void embed_rows_clear(embed_rows *r) {
    free(r->row);
    free(r->id);
    memset(r, 0, sizeof *r);
}

static wmat_kind kind_of(st_dtype t) {
    return t == ST_BF16 ? WMAT_BF16 : t == ST_F16 ? WMAT_F16 : WMAT_F32;
}

/* The raw bytes of a plain tensor in fresh memory (mem_free), checked for NaN and Inf. */
static err read_checked(const hf_checkpoint *ck, const char *name, const hf_tensor **found,
                        void **out) {
    *out = NULL;
    err e = source_tensor_find(ck, name, found);
    if (e.code) return e;
    e = mem_alloc((int64_t)hf_tensor_bytes(*found), 1, name, out);
    if (!e.code) e = hf_checkpoint_read(ck, *found, *out, NULL);
    if (!e.code) {
        st_dtype t = (*found)->info.dtype;
        int64_t n = (int64_t)hf_tensor_bytes(*found) / st_dtype_bytes(t);
        e = source_tensor_refuse(name, fuse_count_non_finite(*out, source_tensor_dtype(t), n));
    }
    if (e.code) {
        mem_free(*out);
        *out = NULL;
    }
    return e;
}

static err read_vector(const hf_checkpoint *ck, const char *name, int64_t n, float **out) {
    const hf_tensor *t;
    void *raw;
    float *to = NULL;
    err e = read_checked(ck, name, &t, &raw);
    if (!e.code) e = MEM_NEW(&to, n, name);
    if (!e.code) fuse_to_f32(raw, source_tensor_dtype(t->info.dtype), n, to);
    mem_free(raw);
    *out = to;
    return e;
}

static err read_plain(const hf_checkpoint *ck, const char *name, int64_t rows, int64_t cols,
                      wmat *w) {
    const hf_tensor *t;
    err e = source_tensor_find(ck, name, &t);
    if (e.code) return e;
    st_dtype type = t->info.dtype;
    e = wmat_init(w, kind_of(type), rows, cols, name);
    if (!e.code) e = hf_checkpoint_read(ck, t, w->data, NULL);
    if (!e.code)
        e = source_tensor_refuse(
            name, fuse_count_non_finite(w->data, source_tensor_dtype(type), rows * cols));
    return e;
}

/* ---- quantized linears of an archive ---- */

static err read_quantized(const load_options *o, const llama_tensor *want, wmat *w) {
    const form_scheme *s = &o->linears;
    err e = wmat_init_packed(w, want->rows, want->cols, s->bits, s->group ? s->group : want->cols,
                             s->symmetric, want->name);
    const form_words to = {.words = w->data, .scales = w->scales, .zeros = w->zeros};
    return e.code ? e : form_read_words(o->checkpoint, want->name, s, want->rows, want->cols, &to);
}

/* ---- weights with gains and rotations folded in ---- */

static err read_fused(const load_options *o, const llama_tensor *want, const float *gain, wmat *w) {
    const hf_tensor *t;
    void *raw;
    err e = read_checked(o->checkpoint, want->name, &t, &raw);
    if (!e.code) e = wmat_init(w, WMAT_F32, want->rows, want->cols, want->name);
    if (!e.code) {
        const fused_source from = {
            .raw = raw, .dtype = source_tensor_dtype(t->info.dtype), .gain = gain};
        e = fused_tensor_into(o->fuse, want, &from, w->data);
    }
    mem_free(raw);
    return e;
}

/* ---- a layer ---- */

typedef struct slot {
    llama_role role;
    wmat *w;
    const float *gain; /* folded in when fusing */
} slot;

static err load_linear(const load_options *o, const slot *s, int64_t layer) {
    llama_tensor want;
    if (!llama_tensor_of(o->cfg, s->role, layer, &want))
        return err_make(ERR_BUG, llama_role_name(s->role), NULL, "no such tensor");
    err e;
    if (o->fuse)
        e = read_fused(o, &want, s->gain, s->w);
    else if (o->linears.form)
        e = read_quantized(o, &want, s->w);
    else
        e = read_plain(o->checkpoint, want.name, want.rows, want.cols, s->w);
    if (!e.code) e = wmat_prepare(s->w, o->compute);
    return e;
}

static bool folds_gain(const load_options *o, llama_role norm, int64_t layer) {
    return o->fuse && fuse_folds_gain(o->fuse, norm, layer);
}

static err load_vectors(const load_options *o, int64_t layer, llama_layer *L) {
    llama_tensor t;
    err e = err_none();
    for (int i = 0; i < LLAMA_VECTORS && !e.code; i++)
        if (llama_tensor_of(o->cfg, llama_vectors[i], layer, &t))
            e = read_vector(o->checkpoint, t.name, t.rows, llama_layer_vector(L, i));
    return e;
}

/* Biases and norms of heads change with the outputs of their linears; of the gain of another norm
 * stays what is not folded in. */
static err fuse_vectors(const load_options *o, int64_t layer, llama_layer *L) {
    llama_tensor t;
    err e = err_none();
    for (int i = 0; i < LLAMA_VECTORS && !e.code; i++) {
        if (!llama_tensor_of(o->cfg, llama_vectors[i], layer, &t)) continue;
        float *v = *llama_layer_vector(L, i);
        if (i >= LLAMA_NORMS)
            e = fused_tensor_vector(o->fuse, &t, v);
        else if (folds_gain(o, t.role, layer))
            fuse_gain_left(o->fuse, t.role, layer, t.rows, v);
    }
    return e;
}

static err load_layer(const load_options *o, int64_t layer, llama_layer *L) {
    float *gains[LLAMA_NORMS];
    err e = load_vectors(o, layer, L);
    for (int i = 0; i < LLAMA_NORMS; i++)
        gains[i] = folds_gain(o, llama_vectors[i], layer) ? *llama_layer_vector(L, i) : NULL;
    for (int i = 0; i < LLAMA_LINEARS && !e.code; i++) {
        const slot s = {llama_linears[i], llama_layer_linear(L, i),
                        fused_gain_of(llama_linears[i], gains)};
        e = load_linear(o, &s, layer);
    }
    return e.code || !o->fuse ? e : fuse_vectors(o, layer, L);
}

/* ---- embedding and head ---- */

/* Kept rows of the embedding, read in large pieces from front to back. */
static err read_embed_rows(const load_options *o, const char *name, wmat *w) {
    enum { PIECE = 16 << 20 };
    const hf_tensor *t;
    err e = source_tensor_find(o->checkpoint, name, &t);
    if (e.code) return e;
    st_dtype type = t->info.dtype;
    uint64_t row_bytes = (uint64_t)o->cfg->hidden * (uint64_t)st_dtype_bytes(type);
    int64_t step = size_min(size_max(1, (int64_t)(PIECE / row_bytes)), o->cfg->vocab), at = 0;
    void *piece = NULL;
    e = wmat_init(w, kind_of(type), o->embed->n, o->cfg->hidden, name);
    if (!e.code)
        e = mem_alloc_unset(step * (int64_t)row_bytes, 1, "piece of the embedding", &piece);
    for (int64_t row = 0; row < o->cfg->vocab && at < o->embed->n && !e.code; row += step) {
        int64_t n = size_min(step, o->cfg->vocab - row);
        e = hf_checkpoint_read_range(o->checkpoint, t, (uint64_t)row * row_bytes,
                                     (uint64_t)n * row_bytes, piece);
        for (; !e.code && at < o->embed->n && o->embed->id[at] < row + n; at++)
            memcpy((char *)w->data + (uint64_t)at * row_bytes,
                   (char *)piece + (uint64_t)(o->embed->id[at] - row) * row_bytes, row_bytes);
    }
    mem_free(piece);
    if (!e.code)
        e = source_tensor_refuse(
            name, fuse_count_non_finite(w->data, source_tensor_dtype(type), w->rows * w->cols));
    return e;
}

/* The rows that occur through R1, which takes each row by itself. */
static err fuse_embed_rows(const load_options *o, const llama_tensor *embed, wmat *w) {
    wmat rotated = {.kind = WMAT_NONE};
    err e = wmat_init(&rotated, WMAT_F32, w->rows, w->cols, "embedding");
    if (e.code) return e;
    llama_tensor part = *embed;
    part.rows = w->rows;
    const fused_source from = {.raw = w->data,
                               .dtype = w->kind == WMAT_BF16  ? FUSE_BF16
                                        : w->kind == WMAT_F16 ? FUSE_F16
                                                              : FUSE_F32};
    e = fused_tensor_into(o->fuse, &part, &from, rotated.data);
    wmat_clear(w);
    *w = rotated;
    return e;
}

static err load_head(const load_options *o, llama_stage *s) {
    llama_tensor norm, head, embed;
    llama_tensor_of(o->cfg, ROLE_FINAL_NORM, -1, &norm);
    llama_tensor_of(o->cfg, ROLE_EMBED, -1, &embed);
    err e = read_vector(o->checkpoint, norm.name, norm.rows, &s->final_norm);
    if (e.code) return e;
    if (!llama_tensor_of(o->cfg, ROLE_HEAD, -1, &head)) {
        head = embed;
        head.role = ROLE_HEAD;
    }
    const bool folds = folds_gain(o, ROLE_FINAL_NORM, -1);
    if (o->fuse)
        e = read_fused(o, &head, folds ? s->final_norm : NULL, &s->head);
    else
        e = read_plain(o->checkpoint, head.name, head.rows, head.cols, &s->head);
    if (!e.code && folds)
        fuse_gain_left(o->fuse, ROLE_FINAL_NORM, -1, o->cfg->hidden, s->final_norm);
    if (o->cfg->logit_scale > 0)
        for (int64_t j = 0; j < o->cfg->hidden && !e.code; j++)
            s->final_norm[j] *= (float)o->cfg->logit_scale;
    if (!e.code) e = wmat_prepare(&s->head, o->compute);
    return e;
}

err load_stage(const load_options *o, llama_stage *out) {
    err e = llama_stage_init(out, o->cfg, o->range.first, o->range.n);
    llama_tensor embed;
    llama_tensor_of(o->cfg, ROLE_EMBED, -1, &embed);
    if (!e.code && o->embed) e = read_embed_rows(o, embed.name, &out->embed);
    if (!e.code && o->embed && o->fuse) e = fuse_embed_rows(o, &embed, &out->embed);
    for (int64_t i = 0; i < o->range.n && !e.code; i++)
        e = load_layer(o, o->range.first + i, &out->layers[i]);
    if (!e.code && o->head) e = load_head(o, out);
    return e;
}

static uint64_t linear_bytes(const load_options *o, const llama_tensor *t) {
    const hf_tensor *found = hf_checkpoint_find(o->checkpoint, t->name);
    uint64_t n = (uint64_t)t->rows * (uint64_t)t->cols;
    if (o->fuse && t->n_dims == 2) return 4 * n;
    if (o->compute == COMPUTE_BF16 && t->n_dims == 2) return 2 * n;
    if (!o->linears.form || !llama_role_is_linear(t->role))
        return found ? hf_tensor_bytes(found) : 0;
    int64_t groups = o->linears.group ? t->cols / o->linears.group : 1;
    uint64_t per_scale = o->linears.symmetric ? 4 : 5;
    return (uint64_t)t->rows *
           ((uint64_t)pack_words(t->cols, o->linears.bits) * 4 + (uint64_t)groups * per_scale);
}

uint64_t load_stage_bytes(const load_options *o) {
    uint64_t total = 0;
    for (int64_t i = 0; i < llama_tensor_count(o->cfg); i++) {
        llama_tensor t;
        llama_tensor_at(o->cfg, i, &t);
        bool mine = t.layer >= o->range.first && t.layer < o->range.first + o->range.n;
        if (t.role == ROLE_HEAD || t.role == ROLE_FINAL_NORM) mine = o->head;
        if (t.role == ROLE_EMBED) mine = false;
        if (mine) total += linear_bytes(o, &t);
    }
    llama_tensor embed;
    llama_tensor_of(o->cfg, ROLE_EMBED, -1, &embed);
    uint64_t whole = linear_bytes(o, &embed);
    if (o->head && o->cfg->tied) total += whole;
    if (o->embed) total += whole / (uint64_t)o->cfg->vocab * (uint64_t)o->embed->n;
    return total;
}
