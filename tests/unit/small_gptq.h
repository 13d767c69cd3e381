/* small_gptq - what tests of GPTQ share: a random matrix with its Hessian and what comes out, and
 * parts of references that share nothing with GPTQ but the grid's scales. For tests alone; includes
 * cmocka. */
#ifndef SPINSHARD_TESTS_UNIT_SMALL_GPTQ_H
#define SPINSHARD_TESTS_UNIT_SMALL_GPTQ_H

#include "base/err.h"
#include "base/rng.h"
#include "quant/gptq.h"
#include "tests/unit/assert_ok.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static inline void *zeros(int64_t count, size_t size) {
    void *p = count < 0 ? NULL : calloc((size_t)count, size);
    assert_non_null(p);
    return p;
}

static inline double *doubles(int64_t count) {
    return zeros(count, sizeof(double));
}

static inline double uniform(uint64_t stream, int64_t i) {
    return 2 * rng_uniform(stream, RNG_TEST, (uint64_t)i) - 1;
}

/* Inputs [tokens, n] with unequal channels that know each other. */
static inline double *inputs(uint64_t stream, int64_t tokens, int64_t n) {
    double *x = doubles(tokens * n);
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t j = 0; j < n; j++) {
            const double own = uniform(stream, t * n + j) * (1 + 9 * fabs(uniform(stream + 1, j)));
            x[t * n + j] = own + (j ? 0.7 * x[t * n + j - 1] : 0);
        }
    return x;
}

/* c A^T B, [n, n]. */
static inline double *moment(const double *a, const double *b, int64_t tokens, int64_t n) {
    double *h = doubles(n * n);
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < n; j++)
                h[i * n + j] += a[t * n + i] * b[t * n + j] * 2 / (double)tokens;
    return h;
}

static inline float *weights(uint64_t stream, int64_t rows, int64_t n) {
    float *w = zeros(rows * n, sizeof *w);
    for (int64_t i = 0; i < rows * n; i++)
        w[i] = (float)(uniform(stream, i) * (i % 17 == 0 ? 4 : 1));
    return w;
}

/* One case: a matrix, its Hessian, and what comes out. */
typedef struct sample {
    int64_t rows, n;
    float *w;
    double *h;
    gptq_options options;
    double damp, alpha;
    gptq_order *order;
    gptq_damping done;
    double *u, *cross;
    qmatrix *q;
    gptq_loss *loss;
} sample;

static inline sample sample_create(int64_t rows, int64_t n, int64_t tokens, const wquant *how) {
    sample s = {.rows = rows, .n = n, .w = weights(7, rows, n), .damp = 0.01};
    double *x = inputs(3, tokens, n);
    s.h = moment(x, x, tokens, n);
    free(x);
    s.options = (gptq_options){.how = *how, .block = 128, .energy = true};
    s.loss = zeros(rows, sizeof *s.loss);
    return s;
}

static inline void forget_result(sample *s) {
    gptq_order_destroy(&s->order);
    qmatrix_destroy(&s->q);
    free(s->u);
    s->u = NULL;
}

static inline void sample_destroy(sample *s) {
    forget_result(s);
    free(s->w);
    free(s->h);
    free(s->loss);
    free(s->cross);
}

static inline void factor(sample *s, bool act_order) {
    forget_result(s);
    double *diagonal = doubles(s->n);
    for (int64_t j = 0; j < s->n; j++) diagonal[j] = s->h[j * s->n + j];
    assert_ok(gptq_order_create(s->n, diagonal, act_order, &s->order));
    free(diagonal);
    s->u = doubles(s->n * s->n);
    memcpy(s->u, s->h, (size_t)(s->n * s->n) * sizeof *s->u);
    assert_ok(gptq_factor(s->order, s->damp, s->u, &s->done));
    assert_ok(qmatrix_create(s->rows, s->n, &s->options.how, &s->q));
}

static inline void round_rows(sample *s, int64_t row0, int64_t rows) {
    gptq_whole whole = {s->u, s->n};
    const gptq_try one = {s->alpha, s->q, s->loss + row0};
    assert_ok(gptq_rows(&s->options, s->order, s->done.lambda, gptq_panels_of(&whole),
                        s->w + row0 * s->n, s->cross ? s->cross + row0 * s->n : NULL, rows, row0,
                        &one, 1));
}

static inline void run(sample *s, bool act_order) {
    factor(s, act_order);
    round_rows(s, 0, s->rows);
}

/* The reference. */

/* Hd by place. */
static inline double *damped(const sample *s) {
    const int64_t n = s->n, *at = s->order->column;
    double *hd = doubles(n * n);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) hd[i * n + j] = s->h[at[i] * n + at[j]];
    for (int64_t i = 0; i < n; i++) {
        if (!(hd[i * n + i] > 0)) hd[i * n + i] = 1;
        hd[i * n + i] += s->done.lambda;
    }
    return hd;
}

/* In place, Gauss-Jordan; positive definite, so without exchange of rows. */
static inline void invert(int64_t n, double *a) {
    for (int64_t k = 0; k < n; k++) {
        const double pivot = a[k * n + k];
        a[k * n + k] = 1;
        for (int64_t j = 0; j < n; j++) a[k * n + j] /= pivot;
        for (int64_t i = 0; i < n; i++) {
            const double f = a[i * n + k];
            if (i == k) continue;
            a[i * n + k] = 0;
            for (int64_t j = 0; j < n; j++) a[i * n + j] -= f * a[k * n + j];
        }
    }
}

static inline int zero_of(const qmatrix *q, int64_t row, int64_t column) {
    return q->zeros ? q->zeros[row * q->n_groups + column / q->group] : 1 << (q->bits - 1);
}

static inline double scale_of(const qmatrix *q, int64_t row, int64_t column) {
    return (double)q->scales[row * q->n_groups + column / q->group];
}

static inline int code_of(const qmatrix *q, int64_t row, int64_t column, double w) {
    float code = rintf((float)w / (float)scale_of(q, row, column)) + (float)zero_of(q, row, column);
    return (int)fminf(fmaxf(code, 0), (float)((1 << q->bits) - 1));
}

static inline double value(const qmatrix *q, int64_t row, int64_t column, int code) {
    return (code - zero_of(q, row, column)) * scale_of(q, row, column);
}

static inline void same_bits(const sample *a, const sample *b) {
    const size_t count = (size_t)(a->rows * a->n);
    assert_memory_equal(a->u, b->u, (size_t)(a->n * a->n) * sizeof *a->u);
    assert_memory_equal(a->q->codes, b->q->codes, count);
    for (int64_t i = 0; i < a->rows; i++) {
        assert_true(a->loss[i].chosen == b->loss[i].chosen);
        assert_true(a->loss[i].rtn == b->loss[i].rtn);
    }
}

#endif
