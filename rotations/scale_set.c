/* One vector for each kind and layer, positive and finite, with its reciprocal and its fp32 forms
 * beside it. */
#include "rotations/scale_set.h"

#include "base/half.h"
#include "base/mem.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

struct scale_set {
    scale_sizes sizes;
    scale_vector *of[SCALE_KINDS]; /* [layers]; NULL: ones */
    void *memory[SCALE_KINDS];
};

err scale_set_create(const scale_sizes *sizes, scale_set **out) {
    *out = NULL;
    err e = MEM_NEW(out, 1, "scales of the model");
    if (e.code) return e;
    (*out)->sizes = *sizes;
    return e;
}

void scale_set_destroy(scale_set **set) {
    scale_set *s = *set;
    if (!s) return;
    for (int k = 0; k < SCALE_KINDS; k++) {
        mem_free(s->of[k]);
        mem_free(s->memory[k]);
    }
    mem_free(s);
    *set = NULL;
}

int64_t scale_sizes_length(const scale_sizes *z, scale_kind kind) {
    if (kind == SCALE_ATTN || kind == SCALE_MLP) return z->hidden;
    return kind == SCALE_UD ? z->intermediate : z->kv_heads * z->head_dim;
}

int64_t scale_sizes_at(const scale_sizes *z, uint32_t kinds, int kind) {
    int64_t at = 0;
    for (int k = 0; k < kind; k++)
        if (kinds >> k & 1u) at += scale_sizes_length(z, (scale_kind)k);
    return at;
}

int64_t scale_set_length(const scale_set *s, scale_kind kind) {
    return scale_sizes_length(&s->sizes, kind);
}

bool scale_set_has(const scale_set *s, scale_kind kind) {
    return s && s->of[kind];
}

const scale_vector *scale_set_get(const scale_set *s, scale_kind kind, int64_t layer) {
    if (!scale_set_has(s, kind)) return NULL;
    assert(layer >= 0 && layer < s->sizes.layers);
    return &s->of[kind][layer];
}

/* from NULL: ones. */
static void fill(scale_vector *v, const double *from) {
    for (int64_t j = 0; j < v->n; j++) {
        v->s[j] = from ? from[j] : 1;
        v->inverse[j] = 1 / v->s[j];
        v->s32[j] = (float)v->s[j];
        v->inverse32[j] = (float)v->inverse[j];
    }
}

err scale_set_add(scale_set *s, scale_kind kind) {
    if (s->of[kind]) return err_none();
    const int64_t n = scale_set_length(s, kind), layers = s->sizes.layers;
    void *numbers;
    scale_vector *vectors;
    err e = MEM_NEW(&vectors, layers, "scales of the model");
    if (e.code) return e;
    e = mem_alloc(layers * n, 2 * sizeof(double) + 2 * sizeof(float), "scales of the model",
                  &numbers);
    if (e.code) {
        mem_free(vectors);
        return e;
    }
    s->of[kind] = vectors;
    s->memory[kind] = numbers;
    double *wide = numbers;
    float *narrow = (float *)(wide + 2 * layers * n);
    for (int64_t l = 0; l < layers; l++) {
        scale_vector *v = &s->of[kind][l];
        *v = (scale_vector){.n = n,
                            .s = wide + 2 * l * n,
                            .inverse = wide + (2 * l + 1) * n,
                            .s32 = narrow + 2 * l * n,
                            .inverse32 = narrow + (2 * l + 1) * n};
        fill(v, NULL);
    }
    return e;
}

static err check(const scale_set *s, scale_kind kind, const double *v) {
    const int64_t n = scale_set_length(s, kind), d = s->sizes.head_dim;
    for (int64_t j = 0; j < n; j++) {
        if (!(v[j] >= SCALE_LEAST && v[j] <= SCALE_MOST))
            return err_make(ERR_INPUT, "scales", NULL,
                            "scale %" PRId64 " is %.6g; scales are between 2^-14 and 2^14", j,
                            v[j]);
        if (kind == SCALE_QK && j % d < d / 2 && v[j] != v[j + d / 2])
            return err_make(ERR_INPUT, "scales", NULL,
                            "scales %" PRId64 " and %" PRId64
                            " differ, %.9g and %.9g; the two channels of a RoPE pair share one",
                            j, j + d / 2, v[j], v[j + d / 2]);
        if (kind == SCALE_QK && s->sizes.qk_norm && v[j] != v[j % d])
            return err_make(ERR_INPUT, "scales", NULL,
                            "scales %" PRId64 " and %" PRId64
                            " differ, %.9g and %.9g; all heads share the gains of the norms of "
                            "queries and keys",
                            j % d, j, v[j % d], v[j]);
    }
    return err_none();
}

err scale_set_put(scale_set *s, scale_kind kind, int64_t layer, const double *v) {
    assert(s->of[kind] && layer >= 0 && layer < s->sizes.layers);
    err e = check(s, kind, v);
    if (e.code) return e;
    scale_vector *to = &s->of[kind][layer];
    fill(to, v);
    if (kind == SCALE_QK && s->sizes.qk_norm) {
        for (int64_t j = 0; j < to->n; j++) to->s[j] = exp2(rint(log2(to->s[j])));
        fill(to, to->s);
    }
    if (kind != SCALE_ATTN && kind != SCALE_MLP) return e;
    for (int64_t j = 0; j < to->n; j++)
        to->s[j] = 1 / (double)half_from_bf16(half_to_bf16(to->inverse32[j]));
    fill(to, to->s);
    return e;
}
