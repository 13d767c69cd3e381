/* The keys of a window and head are one product in fp32, whose entries are added in fixed point. */
#include "pipeline/learn/key_moments.h"

#include "base/gemm.h"
#include "base/mem.h"
#include "pipeline/wide_sum.h"
#include "rotations/rotation.h"
#include "rotations/start.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* Units of 2^-60 and room to 2^67: far below and above any sum of squares of keys. */
enum { UNIT_BITS = 60 };

struct key_moments {
    int64_t first, n, heads, d;
    wide_sum *sums;       /* [n, heads, d * d + d]: k^T k, then k */
    float *rows, *square; /* [window, d] of a head, grown when needed; [d, d] */
    int64_t room;
};

/* Sums of a head whose keys have d entries. */
static int64_t entries(int64_t d) {
    return d * d + d;
}

uint64_t key_moments_bytes(const llama_config *cfg, int64_t n) {
    return (uint64_t)(n * cfg->kv_heads * entries(cfg->head_dim)) * sizeof(wide_sum);
}

err key_moments_create(const llama_config *cfg, int64_t first, int64_t n, key_moments **out) {
    *out = NULL;
    key_moments *m;
    err e = MEM_NEW(&m, 1, "moments of keys");
    if (e.code) return e;
    *m = (key_moments){.first = first, .n = n, .heads = cfg->kv_heads, .d = cfg->head_dim};
    e = MEM_NEW(&m->sums, n * m->heads * entries(m->d), "moments of keys");
    if (!e.code) e = MEM_NEW(&m->square, m->d * m->d, "moments of keys");
    if (e.code) key_moments_destroy(&m);
    *out = m;
    return e;
}

void key_moments_destroy(key_moments **m) {
    if (!*m) return;
    mem_free((*m)->sums);
    mem_free((*m)->rows);
    mem_free((*m)->square);
    mem_free(*m);
    *m = NULL;
}

static err add(wide_sum *to, double v, int64_t layer) {
    if (!wide_sum_add(to, v, UNIT_BITS))
        return err_make(ERR_NUMERICS, "keys of the calibration text",
                        "check the model and the text", "layer %" PRId64 ": squares sum to %g",
                        layer, v);
    return err_none();
}

static err grow(key_moments *m, int64_t n_tokens) {
    if (n_tokens <= m->room) return err_none();
    float *rows;
    err e = MEM_NEW(&rows, n_tokens * m->d, "keys of a head");
    if (e.code) return e;
    mem_free(m->rows);
    m->rows = rows;
    m->room = n_tokens;
    return e;
}

static err add_head(key_moments *m, int64_t layer, int64_t head, int64_t n_tokens, int64_t width,
                    const float *x) {
    const int64_t d = m->d;
    wide_sum *to = m->sums + ((layer - m->first) * m->heads + head) * entries(m->d);
    for (int64_t t = 0; t < n_tokens; t++)
        memcpy(m->rows + t * d, x + t * width + head * d, (size_t)d * sizeof *x);
    gemm_f32(GEMM_T, GEMM_N, d, d, n_tokens, m->rows, d, m->rows, d, GEMM_SET, m->square, d);
    err e = err_none();
    for (int64_t i = 0; i < d * d && !e.code; i++) e = add(&to[i], (double)m->square[i], layer);
    for (int64_t j = 0; j < d && !e.code; j++) {
        double sum = 0;
        for (int64_t t = 0; t < n_tokens; t++) sum += (double)m->rows[t * d + j];
        e = add(&to[d * d + j], sum, layer);
    }
    return e;
}

static err take(void *ctx, int64_t layer, hook_place place, int64_t t0, int64_t n_tokens,
                int64_t width, const float *x, const float *g) {
    key_moments *m = ctx;
    (void)place;
    (void)t0;
    (void)g;
    err e = grow(m, n_tokens);
    for (int64_t h = 0; h < m->heads && !e.code; h++) e = add_head(m, layer, h, n_tokens, width, x);
    return e;
}

llama_hook key_moments_hook(key_moments *m) {
    return (llama_hook){.places = 1u << HOOK_KEY, .take = take, .ctx = m};
}

static const wide_sum *sums_of(const key_moments *m, int64_t layer, int64_t head) {
    return m->sums + ((layer - m->first) * m->heads + head) * entries(m->d);
}

byte_piece key_moments_piece(const key_moments *m, int64_t layer) {
    const int64_t each = m->heads * entries(m->d);
    return (byte_piece){m->sums + (layer - m->first) * each, (uint64_t)each * sizeof *m->sums};
}

static double real_of(wide_sum v) {
    return wide_sum_real(v, UNIT_BITS);
}

err key_moments_pca(const key_moments *m, int64_t layer, int64_t kv_head, const double *S,
                    double *R3) {
    const int64_t d = m->d;
    const wide_sum *sums = sums_of(m, layer, kv_head);
    double *C;
    err e = MEM_NEW(&C, d * d, "second moment of keys");
    if (e.code) return e;
    for (int64_t i = 0; i < d; i++)
        for (int64_t j = 0; j < d; j++) /* products of two halves may round apart */
            C[i * d + j] =
                0.5 * (real_of(sums[i * d + j]) + real_of(sums[j * d + i])) / (S ? S[i] * S[j] : 1);
    e = start_pca(d, C, R3, NULL);
    mem_free(C);
    return e;
}

err key_moments_signs(const key_moments *m, int64_t layer, int64_t kv_head, const double *S,
                      double *R3) {
    const int64_t d = m->d;
    const wide_sum *mean = sums_of(m, layer, kv_head) + d * d;
    rotation *H = NULL;
    double *rotated = NULL;
    err e = rotation_create_hadamard(d, NULL, &H);
    if (!e.code) e = rotation_to_dense(H, R3);
    if (!e.code) e = MEM_NEW(&rotated, d, "mean of keys");
    for (int64_t i = 0; i < d && !e.code; i++) rotated[i] = real_of(mean[i]) / (S ? S[i] : 1);
    if (!e.code) rotation_apply_f64(H, rotated, 1, d, false);
    for (int64_t i = 0; i < d * d && !e.code; i++)
        if (rotated[i % d] < 0) R3[i] = -R3[i];
    mem_free(rotated);
    rotation_destroy(&H);
    return e;
}
