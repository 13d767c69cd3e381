/* small_model - a LLaMA of random weights and what tests of its passes share: memory, random
 * numbers, orthogonal matrices. For tests alone; includes cmocka. */
#ifndef SPINSHARD_TESTS_UNIT_SMALL_MODEL_H
#define SPINSHARD_TESTS_UNIT_SMALL_MODEL_H

#include "base/mem.h"
#include "base/rng.h"
#include "model/forward.h"
#include "tests/unit/assert_ok.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

static inline void *room(int64_t count, size_t size) {
    void *p;
    assert_ok(mem_alloc(count, size, "test", &p));
    return p;
}

/* Standard normal numbers; every call gives others. */
static inline void fill_normal(double *v, int64_t n, double scale) {
    static uint64_t stream;
    stream++;
    for (int64_t i = 0; i < n; i++) {
        v[i] = scale * rng_normal(17, RNG_TEST, (stream << 32) + (uint64_t)i);
    }
}

static inline double *random_f64(int64_t n, double scale) {
    double *v = room(n, sizeof *v);
    fill_normal(v, n, scale);
    return v;
}

static inline float *random_f32(int64_t n, double scale, double mean) {
    double *wide = random_f64(n, scale);
    float *v = room(n, sizeof *v);
    for (int64_t i = 0; i < n; i++) v[i] = (float)(mean + wide[i]);
    mem_free(wide);
    return v;
}

static inline wmat random_matrix(int64_t rows, int64_t cols) {
    return (wmat){.kind = WMAT_F32,
                  .rows = rows,
                  .cols = cols,
                  .data = random_f32(rows * cols, 1 / sqrt((double)cols), 0)};
}

typedef struct small_model {
    llama_config cfg;
    llama_stage stage;
} small_model;

static inline void small_model_fill(small_model *m, bool biases) {
    const llama_config *c = &m->cfg;
    const int64_t q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    assert_ok(llama_stage_init(&m->stage, c, 0, c->layers));
    for (int64_t i = 0; i < c->layers; i++) {
        llama_layer *l = &m->stage.layers[i];
        l->q = random_matrix(q, c->hidden);
        l->k = random_matrix(kv, c->hidden);
        l->v = random_matrix(kv, c->hidden);
        l->o = random_matrix(c->hidden, q);
        l->gate = random_matrix(c->intermediate, c->hidden);
        l->up = random_matrix(c->intermediate, c->hidden);
        l->down = random_matrix(c->hidden, c->intermediate);
        l->attn_norm = random_f32(c->hidden, 0.2, 1);
        l->mlp_norm = random_f32(c->hidden, 0.2, 1);
        if (c->qk_norm) {
            l->q_norm = random_f32(c->head_dim, 0.3, 1);
            l->k_norm = random_f32(c->head_dim, 0.3, 1);
        }
        if (!biases) continue;
        l->bq = random_f32(q, 0.3, 0);
        l->bk = random_f32(kv, 0.3, 0);
        l->bv = random_f32(kv, 0.3, 0);
        l->bo = random_f32(c->hidden, 0.3, 0);
        l->bgate = random_f32(c->intermediate, 0.3, 0);
        l->bup = random_f32(c->intermediate, 0.3, 0);
        l->bdown = random_f32(c->hidden, 0.3, 0);
    }
    m->stage.embed = random_matrix(c->vocab, c->hidden);
    m->stage.head = random_matrix(c->vocab, c->hidden);
    m->stage.final_norm = random_f32(c->hidden, 0.2, 1);
}

/* varied: with norms of heads, and a last layer that neither turns by position nor has the window.
 */
static inline void small_model_vary(llama_config *c, bool varied) {
    c->qk_norm = varied;
    c->no_rope.bits[0] = c->unwindowed.bits[0] = varied ? (uint64_t)1 << (c->layers - 1) : 0;
}

static inline void small_model_make_varied(small_model *m, bool biases, int64_t sliding_window,
                                           bool varied) {
    *m = (small_model){.cfg = {.hidden = 48,
                               .intermediate = 80,
                               .layers = 2,
                               .heads = 6,
                               .kv_heads = 2,
                               .head_dim = 8,
                               .vocab = 700,
                               .max_positions = 2048,
                               .rms_eps = 1e-5,
                               .rope_theta = 10000,
                               .sliding_window = sliding_window}};
    small_model_vary(&m->cfg, varied);
    small_model_fill(m, biases);
}

static inline void small_model_make(small_model *m, bool biases, int64_t sliding_window) {
    small_model_make_varied(m, biases, sliding_window, false);
}

/* An orthogonal matrix: random rows made orthonormal (Gram-Schmidt, twice). */
static inline double *random_orthogonal(int64_t n) {
    double *r = random_f64(n * n, 1);
    for (int64_t i = 0; i < n; i++) {
        for (int pass = 0; pass < 2; pass++) {
            for (int64_t j = 0; j < i; j++) {
                double dot = 0;
                for (int64_t k = 0; k < n; k++) dot += r[i * n + k] * r[j * n + k];
                for (int64_t k = 0; k < n; k++) r[i * n + k] -= dot * r[j * n + k];
            }
        }
        double norm = 0;
        for (int64_t k = 0; k < n; k++) norm += r[i * n + k] * r[i * n + k];
        for (int64_t k = 0; k < n; k++) r[i * n + k] /= sqrt(norm);
    }
    return r;
}

static inline double dot_f64(const double *a, const double *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

#endif
