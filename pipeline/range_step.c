#include "pipeline/range_step.h"

#include "base/gemm.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/size.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

/* A row is rounded to multiples of 2^-12 and held to 19 bits, enough for normalised rows up to
 * width 16384; a coefficient to 20 bits of the largest that can occur: a product has 39 bits, and
 * 2^14 of them sum exactly in a double. */
enum { ROW_BITS = 12, COEF_BITS = 20, ROW_LIMIT = 1 << 19, MAX_TERMS = 1 << 14 };
enum { BLOCK = 256 }; /* rows of a product: a unit of work that threads share out */

typedef struct term {
    int32_t row; /* in the batch */
    float coef;  /* of 2 w (max - min), signed */
} term;

struct range_work {
    int64_t n, max_rows, rows;
    int64_t slots;    /* terms of a row: two a range */
    bf16 *R;          /* [n, n] */
    bf16 *x;          /* [max_rows up to whole blocks, n] the rows of the batch */
    float *w;         /* [max_rows] */
    range_rule *rule; /* [max_rows] */
    float *u;         /* [threads, BLOCK, n] */
    int32_t *channel; /* [slots max_rows] of each term; -1: none */
    term *terms;      /* [slots max_rows] */
    int64_t *start;   /* [n + 1] terms of a channel in `order` */
    int32_t *order;   /* [slots max_rows] */
    int64_t *loss;    /* [blocks] */
    int threads;
};

uint64_t range_work_bytes(int64_t n, int64_t max_rows, int64_t groups) {
    uint64_t rows = (uint64_t)(size_ceil_div(max_rows, BLOCK) * BLOCK),
             t = (uint64_t)gemm_threads();
    return 2 * (uint64_t)(n * n) +
           rows * (2 * (uint64_t)n + 4 + sizeof(range_rule) +
                   2 * (uint64_t)groups * (4 + sizeof(term) + 4)) +
           4 * t * BLOCK * (uint64_t)n + 8 * (uint64_t)n;
}

err range_work_create(int64_t n, int64_t max_rows, int64_t groups, range_work **out) {
    const int64_t slots = 2 * groups;
    void *p[10] = {NULL};
    int threads = gemm_threads();
    *out = NULL;
    const struct {
        int64_t count;
        size_t size;
    } need[10] = {{1, sizeof(range_work)},
                  {n * n, sizeof(bf16)},
                  {size_ceil_div(max_rows, BLOCK) * BLOCK * n, sizeof(bf16)},
                  {max_rows, sizeof(float)},
                  {max_rows, sizeof(range_rule)},
                  {(int64_t)threads * BLOCK * n, sizeof(float)},
                  {slots * max_rows, sizeof(int32_t)},
                  {slots * max_rows, sizeof(term)},
                  {n + 1, sizeof(int64_t)},
                  {slots * max_rows, sizeof(int32_t)}};
    err e = err_none();
    for (int i = 0; i < 10 && !e.code; i++)
        e = mem_alloc(need[i].count, need[i].size, "rows of a step", &p[i]);
    void *loss = NULL;
    if (!e.code) e = mem_alloc(size_ceil_div(max_rows, BLOCK) + 1, sizeof(int64_t), "loss", &loss);
    if (e.code) {
        for (int i = 0; i < 10; i++) mem_free(p[i]);
        return e;
    }
    range_work *w = p[0];
    *w = (range_work){.n = n,
                      .max_rows = max_rows,
                      .slots = slots,
                      .R = p[1],
                      .x = p[2],
                      .w = p[3],
                      .rule = p[4],
                      .u = p[5],
                      .channel = p[6],
                      .terms = p[7],
                      .start = p[8],
                      .order = p[9],
                      .loss = loss,
                      .threads = threads};
    *out = w;
    return e;
}

void range_work_destroy(range_work **w) {
    if (!*w) return;
    range_work *x = *w;
    void *p[] = {x->R,       x->x,     x->w,     x->rule,  x->u,
                 x->channel, x->terms, x->start, x->order, x->loss};
    for (size_t i = 0; i < sizeof p / sizeof p[0]; i++) mem_free(p[i]);
    mem_free(x);
    *w = NULL;
}

void range_begin(range_work *w, const double *R) {
    for (int64_t i = 0; i < w->n * w->n; i++) w->R[i] = half_to_bf16((float)R[i]);
    w->rows = 0;
}

void range_begin_f32(range_work *w, const float *R) {
    half_array_to_bf16(R, w->n * w->n, w->R);
    w->rows = 0;
}

void range_add(range_work *w, const row_set *s, range_draw d, int64_t count) {
    for (int64_t i = 0; i < count && w->rows < w->max_rows; i++, w->rows++) {
        uint64_t r = rng_u64(d.seed, d.purpose, d.first_index + (uint64_t)i);
        int64_t token = (int64_t)((r >> 32) % (uint64_t)(s->n / d.period));
        int64_t pick = token * d.period + d.offset + (int64_t)((uint32_t)r % (uint64_t)d.span);
        memcpy(w->x + w->rows * w->n, s->x + pick * w->n, (size_t)w->n * sizeof(bf16));
        w->w[w->rows] = d.weight * s->w[pick];
        w->rule[w->rows] = d.rule;
    }
}

void range_add_row(range_work *w, const float *x, float weight, range_rule rule) {
    if (w->rows == w->max_rows) return;
    half_array_to_bf16(x, w->n, w->x + w->rows * w->n);
    w->w[w->rows] = weight;
    w->rule[w->rows++] = rule;
}

const bf16 *range_rotation(const range_work *w) {
    return w->R;
}

range_ends range_ends_of(const float *u, int64_t n, range_rule rule) {
    int32_t hi = 0, lo = 0;
    for (int64_t j = 1; j < n; j++) {
        if (u[j] > u[hi]) hi = (int32_t)j;
        if (u[j] < u[lo]) lo = (int32_t)j;
    }
    if (rule.symmetric) { /* the end of larger magnitude alone, counted twice */
        bool up = u[hi] >= -u[lo];
        return (range_ends){2 * (up ? u[hi] : -u[lo]), {up ? hi : lo, -1}, {up ? 2 : -2, 0}};
    }
    float top = u[hi], low = u[lo];
    range_ends e = {.channel = {hi, lo}, .sign = {1, -1}};
    if (rule.include_zero && top < 0) {
        top = 0;
        e.channel[0] = -1;
    }
    if (rule.include_zero && low > 0) {
        low = 0;
        e.channel[1] = -1;
    }
    e.range = top - low;
    return e;
}

/* Terms of one row, and its part of the loss. */
static int64_t do_row(range_work *w, int64_t row, const float *u) {
    const range_rule rule = w->rule[row];
    const int64_t group = rule.group ? rule.group : w->n;
    int64_t loss = 0, at = row * w->slots;
    for (int64_t k = 0; k < w->slots; k++) w->channel[at + k] = -1;
    for (int64_t j = 0; j < w->n; j += group) {
        const range_ends e = range_ends_of(u + j, group, rule);
        loss += llrint((double)w->w[row] * (double)e.range * (double)e.range / RANGE_LOSS_UNIT);
        for (int k = 0; k < 2; k++, at++) {
            w->channel[at] = e.channel[k] < 0 ? -1 : e.channel[k] + (int32_t)j;
            w->terms[at] = (term){(int32_t)row, (float)(2 * e.sign[k]) * w->w[row] * e.range};
        }
    }
    return loss;
}

/* The product has whole blocks always: where a rank's rows end is a matter of ranks, and a product
 * of fewer rows may run another kernel, whose sums round otherwise. */
static void do_block(range_work *w, int64_t block, float *u) {
    int64_t first = block * BLOCK, m = size_min(BLOCK, w->rows - first), loss = 0;
    gemm_tile_bf16(false, BLOCK, w->n, w->n, w->x + first * w->n, w->n, w->R, w->n, false, u, w->n);
    for (int64_t i = 0; i < m; i++) loss += do_row(w, first + i, u + i * w->n);
    w->loss[block] = loss;
}

/* Terms by channel, rows rising: a counting sort. */
static void sort_terms(range_work *w) {
    memset(w->start, 0, (size_t)(w->n + 1) * sizeof *w->start);
    for (int64_t t = 0; t < w->slots * w->rows; t++)
        if (w->channel[t] >= 0) w->start[w->channel[t] + 1]++;
    for (int64_t j = 0; j < w->n; j++) w->start[j + 1] += w->start[j];
    int64_t *at = calloc((size_t)w->n + 1, sizeof *at);
    if (!at) abort();
    memcpy(at, w->start, (size_t)w->n * sizeof *at);
    for (int64_t t = 0; t < w->slots * w->rows; t++)
        if (w->channel[t] >= 0) w->order[at[w->channel[t]]++] = (int32_t)t;
    free(at);
}

/* sum += coef * row, all integers held in doubles. */
static void add_row(const bf16 *x, int64_t n, double coef, double *sum) {
    const float limit = ROW_LIMIT;
    for (int64_t i = 0; i < n; i++) {
        float v = rintf(half_from_bf16(x[i]) * (float)(1 << ROW_BITS));
        v = v > limit ? limit : v < -limit ? -limit : v;
        sum[i] += coef * (double)v;
    }
}

/* No range is above 2 |u| <= 2 |x|, and a normalised row has |x| = sqrt(n): the largest
 * coefficient is 4 w_max 2 sqrt(n), taken twice for symmetric sites. Rounded up to a power of two,
 * so that the unit is one. */
static int coefficient_exponent(int64_t n, double w_max) {
    return (int)ceil(log2(16 * w_max * sqrt((double)n))) - COEF_BITS;
}

double range_unit(int64_t n, double w_max) {
    return ldexp(1, coefficient_exponent(n, w_max) - ROW_BITS);
}

void range_finish(range_work *w, double w_max, range_batch *out) {
    int64_t n = w->n, blocks = size_ceil_div(w->rows, BLOCK);
#pragma omp parallel for schedule(dynamic) num_threads(w->threads)
    for (int64_t b = 0; b < blocks; b++)
        do_block(w, b, w->u + (int64_t)omp_get_thread_num() * BLOCK * n);
    sort_terms(w);
    const int exponent = coefficient_exponent(n, w_max);
    double per_unit = ldexp(1, -exponent);
#pragma omp parallel num_threads(w->threads)
    {
        double *sum = malloc((size_t)n * sizeof *sum);
        if (!sum) abort();
#pragma omp for schedule(dynamic, 4)
        for (int64_t j = 0; j < n; j++) {
            int64_t *to = out->grad + j * n;
            memset(to, 0, (size_t)n * sizeof *to);
            for (int64_t from = w->start[j]; from < w->start[j + 1]; from += MAX_TERMS) {
                int64_t end = size_min(from + MAX_TERMS, w->start[j + 1]);
                memset(sum, 0, (size_t)n * sizeof *sum);
                for (int64_t t = from; t < end; t++) {
                    const term *x = &w->terms[w->order[t]];
                    add_row(w->x + (int64_t)x->row * n, n, rint((double)x->coef * per_unit), sum);
                }
                for (int64_t i = 0; i < n; i++) to[i] += (int64_t)sum[i];
            }
        }
        free(sum);
    }
    out->n = n;
    out->unit = range_unit(n, w_max);
    out->loss = 0;
    for (int64_t b = 0; b < blocks; b++) out->loss += w->loss[b];
}
