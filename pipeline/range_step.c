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
enum { ROW_BITS = 12, COEF_BITS = 20, MAX_TERMS = 1 << 14 };
enum { ENTRY_LIMIT = 0x4300 }; /* 128 as bf16: 2^19 in the fixed point of a row */
enum { BLOCK = 256 };          /* rows of a product: a unit of work that threads share out */
enum { CHUNK = 64 };           /* entries of a row whose sums are held at a time */

typedef struct term {
    int32_t row; /* in the batch */
    float coef;  /* of 2 w (max - min), signed */
} term;

struct range_work {
    int64_t n, max_rows, rows;
    int64_t slots;     /* terms of a row: two a range */
    bf16 *R;           /* [n, n] */
    const bf16 **from; /* [max_rows] where a row of the batch stands in its set; NULL: in x */
    bf16 *x;           /* [max_rows up to whole blocks, n] the rows of the batch */
    float *w;          /* [max_rows] */
    range_rule *rule;  /* [max_rows] */
    float *u;          /* [threads, BLOCK, n] */
    int32_t *channel;  /* [slots max_rows] of each term; -1: none */
    term *terms;       /* [slots max_rows] */
    int64_t *start;    /* [n + 1] terms of a channel in `order` */
    int32_t *order;    /* [slots max_rows] */
    int64_t *loss;     /* [blocks] */
    int threads;
};

uint64_t range_work_bytes(int64_t n, int64_t max_rows, int64_t groups) {
    uint64_t rows = (uint64_t)(size_ceil_div(max_rows, BLOCK) * BLOCK),
             t = (uint64_t)gemm_threads();
    return 2 * (uint64_t)(n * n) +
           rows * (2 * (uint64_t)n + 4 + sizeof(bf16 *) + sizeof(range_rule) +
                   2 * (uint64_t)groups * (4 + sizeof(term) + 4)) +
           4 * t * BLOCK * (uint64_t)n + 8 * (uint64_t)n;
}

enum { BUFFERS = 11 };

err range_work_create(int64_t n, int64_t max_rows, int64_t groups, range_work **out) {
    const int64_t slots = 2 * groups;
    void *p[BUFFERS] = {NULL};
    int threads = gemm_threads();
    *out = NULL;
    const struct {
        int64_t count;
        size_t size;
    } need[BUFFERS] = {{1, sizeof(range_work)},
                       {n * n, sizeof(bf16)},
                       {size_ceil_div(max_rows, BLOCK) * BLOCK * n, sizeof(bf16)},
                       {max_rows, sizeof(float)},
                       {max_rows, sizeof(range_rule)},
                       {(int64_t)threads * BLOCK * n, sizeof(float)},
                       {slots * max_rows, sizeof(int32_t)},
                       {slots * max_rows, sizeof(term)},
                       {n + 1, sizeof(int64_t)},
                       {slots * max_rows, sizeof(int32_t)},
                       {max_rows, sizeof(bf16 *)}};
    err e = err_none();
    for (int i = 0; i < BUFFERS && !e.code; i++)
        e = mem_alloc(need[i].count, need[i].size, "rows of a step", &p[i]);
    void *loss = NULL;
    if (!e.code) e = mem_alloc(size_ceil_div(max_rows, BLOCK) + 1, sizeof(int64_t), "loss", &loss);
    if (e.code) {
        for (int i = 0; i < BUFFERS; i++) mem_free(p[i]);
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
                      .from = p[10],
                      .loss = loss,
                      .threads = threads};
    *out = w;
    return e;
}

void range_work_destroy(range_work **w) {
    if (!*w) return;
    range_work *x = *w;
    void *p[] = {x->R,     x->x,     x->w,     x->rule, x->u,           x->channel,
                 x->terms, x->start, x->order, x->loss, (void *)x->from};
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
        w->from[w->rows] = s->x + pick * w->n;
        w->w[w->rows] = d.weight * s->w[pick];
        w->rule[w->rows] = d.rule;
    }
}

void range_add_row(range_work *w, const float *x, float weight, range_rule rule) {
    if (w->rows == w->max_rows) return;
    half_array_to_bf16(x, w->n, w->x + w->rows * w->n);
    w->from[w->rows] = NULL;
    w->w[w->rows] = weight;
    w->rule[w->rows++] = rule;
}

const bf16 *range_rotation(const range_work *w) {
    return w->R;
}

/* Eight numbers at a time, written out: by itself the compiler keeps no array of sums in registers.
 * Results are those of plain loops. */
enum { LANES = 8 };
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));
typedef double doubles __attribute__((vector_size(8 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

static inline floats load_floats(const float *u) {
    floats v;
    memcpy(&v, u, sizeof v);
    return v;
}

/* The first channel that has this value: a second pass over a row in cache is faster than a first
 * one that carries channels along. */
static int32_t first_with(const float *u, int64_t n, float value) {
    enum { SPAN = 8 * LANES };
    int64_t j = 0;
    for (; j + SPAN <= n; j += SPAN) {
        ints same = {0};
        for (int k = 0; k < SPAN; k += LANES) same |= load_floats(u + j + k) == value;
        int32_t any = 0;
        for (int k = 0; k < LANES; k++) any |= same[k];
        if (any) break;
    }
    while (j < n - 1 && u[j] != value) j++;
    return (int32_t)j;
}

range_ends range_ends_of(const float *u, int64_t n, range_rule rule) {
    float most = u[0], least = u[0];
#pragma omp simd reduction(max : most) reduction(min : least)
    for (int64_t j = 1; j < n; j++) {
        most = u[j] > most ? u[j] : most;
        least = u[j] < least ? u[j] : least;
    }
    const int32_t hi = first_with(u, n, most), lo = first_with(u, n, least);
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

/* A row to where the batch has it, while it is in cache for the product; entries beyond what their
 * fixed point holds, which a normalised row has not, are held to it. */
static void take_row(const bf16 *from, int64_t n, bf16 *to) {
    for (int64_t i = 0; i < n; i++) {
        const bf16 size = from[i] & 0x7fff;
        to[i] = (bf16)((from[i] & 0x8000) | (size < ENTRY_LIMIT ? size : ENTRY_LIMIT));
    }
}

/* The product has whole blocks always: where a rank's rows end is a matter of ranks, and a product
 * of fewer rows may run another kernel, whose sums round otherwise. */
static void do_block(range_work *w, int64_t block, float *u) {
    const int64_t n = w->n, first = block * BLOCK, m = size_min(BLOCK, w->rows - first);
    bf16 *x = w->x + first * n;
    int64_t loss = 0;
    for (int64_t i = 0; i < m; i++)
        take_row(w->from[first + i] ? w->from[first + i] : x + i * n, n, x + i * n);
    gemm_tile_bf16(false, BLOCK, n, n, x, n, w->R, n, false, u, n);
    for (int64_t i = 0; i < m; i++) loss += do_row(w, first + i, u + i * n);
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

/* Adding 1.5 2^23 and taking it away rounds what is below 2^22 half to even. */
#define ROUND 0x1.8p23F

/* sum += coef * entry, all integers held in doubles. */
static inline void add_entry(bf16 x, double coef, double *sum) {
    const float v = half_from_bf16(x) * (float)(1 << ROW_BITS);
    *sum += coef * (double)((v + ROUND) - ROUND);
}

/* The same for CHUNK entries. */
static inline void add_entries(const bf16 *x, double coef, doubles sum[CHUNK / LANES]) {
#pragma GCC unroll 16
    for (int i = 0; i < CHUNK / LANES; i++) {
        halves h;
        memcpy(&h, x + i * LANES, sizeof h);
        const floats v = (floats)(__builtin_convertvector(h, ints) << 16) * (float)(1 << ROW_BITS);
        sum[i] += coef * __builtin_convertvector((v + ROUND) - ROUND, doubles);
    }
}

/* A term of channel j and where its row stands. */
static inline const bf16 *row_of(const range_work *w, int64_t t) {
    return w->x + (int64_t)w->terms[w->order[t]].row * w->n;
}

/* Entries [i0, i0 + CHUNK) of the terms [from, end), added up in registers. */
static void add_chunk(const range_work *w, int64_t from, int64_t end, int64_t i0, double per_unit,
                      int64_t *to) {
    enum { AHEAD = 6 }; /* rows lie anywhere: those that come are fetched before */
    doubles sum[CHUNK / LANES] = {0};
    for (int64_t t = from; t < end; t++) {
        const double coef = rint((double)w->terms[w->order[t]].coef * per_unit);
        const bf16 *next = row_of(w, size_min(t + AHEAD, end - 1)) + i0;
        for (int k = 0; k < CHUNK; k += 32) __builtin_prefetch(next + k);
        add_entries(row_of(w, t) + i0, coef, sum);
    }
    for (int i = 0; i < CHUNK; i++) to[i] += (int64_t)sum[i / LANES][i % LANES];
}

/* What is left of a row behind its last whole chunk. */
static void add_rest(const range_work *w, int64_t from, int64_t end, int64_t i0, double per_unit,
                     int64_t *to) {
    double sum[CHUNK] = {0};
    for (int64_t t = from; t < end; t++) {
        const double coef = rint((double)w->terms[w->order[t]].coef * per_unit);
        const bf16 *row = row_of(w, t) + i0;
        for (int64_t i = 0; i < w->n - i0; i++) add_entry(row[i], coef, &sum[i]);
    }
    for (int64_t i = 0; i < w->n - i0; i++) to[i] += (int64_t)sum[i];
}

/* Row j of the transposed gradient: the terms of channel j in their order. */
static void add_channel(const range_work *w, int64_t j, double per_unit, int64_t *to) {
    const int64_t n = w->n;
    memset(to, 0, (size_t)n * sizeof *to);
    for (int64_t from = w->start[j]; from < w->start[j + 1]; from += MAX_TERMS) {
        const int64_t end = size_min(from + MAX_TERMS, w->start[j + 1]);
        int64_t i0 = 0;
        for (; i0 + CHUNK <= n; i0 += CHUNK) add_chunk(w, from, end, i0, per_unit, to + i0);
        if (i0 < n) add_rest(w, from, end, i0, per_unit, to + i0);
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
#pragma omp parallel for schedule(dynamic, 4) num_threads(w->threads)
    for (int64_t j = 0; j < n; j++) add_channel(w, j, per_unit, out->grad + j * n);
    out->n = n;
    out->unit = range_unit(n, w_max);
    out->loss = 0;
    for (int64_t b = 0; b < blocks; b++) out->loss += w->loss[b];
}
