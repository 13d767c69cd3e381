/* u = x R by a product in blocks of 128 rows; in each row a vectorised search finds the largest
 * and smallest entry; the row, in fixed point, is added at these two channels to the gradient.
 * Terms are sorted by channel, so each thread owns columns and no sum depends on order. */
#include "pipeline/learn/range_step.h"

#include "base/gemm.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/size.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

/* A row has multiples of 2^-12 of 19 bits (row_fix), enough for normalised rows up to width 16384;
 * a coefficient to 20 bits of the largest that can occur: a product has 39 bits, and 2^14 of them
 * would sum exactly in a double. */
enum { ROW_BITS = ROW_FIXED_BITS, COEF_BITS = 20 };
enum { BLOCK = 128 };  /* rows of a product: a unit of work that threads share out */
enum { CHUNK = 64 };   /* entries of a row whose sums are held at a time */
enum { SEGMENT = 64 }; /* terms whose rows stay in cache from chunk to chunk */

typedef struct term {
    int32_t row; /* in the batch */
    float coef;  /* of 2 w (max - min), signed */
} term;

struct range_work {
    int64_t n, max_rows, rows;
    int64_t slots;     /* terms of a row: two a range */
    bf16 *R;           /* [n, n] */
    void *packed;      /* R as the product takes it */
    const bf16 **from; /* [max_rows] where a row of the batch stands: in its set, or in x */
    bf16 *x;           /* [max_rows, n] rows that are of no set; touched for those alone */
    bf16 *block;       /* [threads, BLOCK, n] rows of a product */
    float *w;          /* [max_rows] */
    range_rule *rule;  /* [max_rows] */
    float *u;          /* [threads, BLOCK, n] */
    int32_t *channel;  /* [slots max_rows] of each term; -1: none */
    term *terms;       /* [slots max_rows] */
    int64_t *start;    /* [n + 1] where those of a channel begin */
    term *sorted;      /* [slots max_rows] terms of a channel behind each other */
    int64_t *loss;     /* [blocks] */
    int threads;
};

uint64_t range_work_bytes(int64_t n, int64_t max_rows, int64_t groups) {
    const uint64_t rows = (uint64_t)max_rows, t = (uint64_t)gemm_threads();
    return 2 * (uint64_t)(n * n) + gemm_alike_bytes(BLOCK, n, n) +
           rows * (2 * (uint64_t)n + 4 + sizeof(bf16 *) + sizeof(range_rule) +
                   2 * (uint64_t)groups * (4 + 2 * sizeof(term))) +
           6 * t * BLOCK * (uint64_t)n + 8 * (uint64_t)n;
}

enum { BUFFERS = 13 };

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
                       {max_rows * n, sizeof(bf16)},
                       {max_rows, sizeof(float)},
                       {max_rows, sizeof(range_rule)},
                       {(int64_t)threads * BLOCK * n, sizeof(float)},
                       {slots * max_rows, sizeof(int32_t)},
                       {slots * max_rows, sizeof(term)},
                       {n + 1, sizeof(int64_t)},
                       {slots * max_rows, sizeof(term)},
                       {max_rows, sizeof(bf16 *)},
                       {(int64_t)gemm_alike_bytes(BLOCK, n, n), 1},
                       {(int64_t)threads * BLOCK * n, sizeof(bf16)}};
    err e = err_none();
    for (int i = 0; i < BUFFERS && !e.code; i++)
        e = mem_alloc(need[i].count, need[i].size, "rows of a step", &p[i]);
    int64_t *loss = NULL;
    if (!e.code) e = MEM_NEW(&loss, size_ceil_div(max_rows, BLOCK) + 1, "loss");
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
                      .sorted = p[9],
                      .from = p[10],
                      .packed = p[11],
                      .block = p[12],
                      .loss = loss,
                      .threads = threads};
    *out = w;
    return e;
}

void range_work_destroy(range_work **w) {
    if (!*w) return;
    range_work *x = *w;
    void *p[] = {x->R,     x->x,      x->w,    x->rule,         x->u,      x->channel, x->terms,
                 x->start, x->sorted, x->loss, (void *)x->from, x->packed, x->block};
    for (size_t i = 0; i < sizeof p / sizeof p[0]; i++) mem_free(p[i]);
    mem_free(x);
    *w = NULL;
}

static void begin(range_work *w) {
    gemm_alike_pack(BLOCK, w->n, w->n, w->R, w->n, w->packed);
    w->rows = 0;
}

void range_begin(range_work *w, const double *R) {
    for (int64_t i = 0; i < w->n * w->n; i++) w->R[i] = half_to_bf16((float)R[i]);
    begin(w);
}

void range_begin_bf16(range_work *w, const bf16 *R) {
    memcpy(w->R, R, (size_t)(w->n * w->n) * sizeof *R);
    begin(w);
}

int64_t range_held(int64_t n) {
    return n < 2 ? n : size_max(1, n / HELD_OUT_OF);
}

/* Row first + k of those of a shuffled set that are, or are not, held out. */
static void pick_in_order(const row_set *s, bool held, uint64_t first, int64_t count,
                          uint64_t *pick) {
    const uint64_t out = (uint64_t)range_held(s->n), all = (uint64_t)s->n,
                   rows = held || out == all ? out : all - out, at = held ? all - out : 0;
    uint64_t next = first % rows;
    for (int64_t k = 0; k < count; k++) {
        pick[k] = at + next;
        next = next + 1 < rows ? next + 1 : 0;
    }
}

/* Token number i of those that are, or are not, held out: out of each HELD_OUT_OF the last. */
static uint64_t token_at(uint64_t tokens, bool held, uint64_t i) {
    const uint64_t out = (uint64_t)range_held(tokens < INT64_MAX ? (int64_t)tokens : INT64_MAX);
    if (out == tokens) return i % tokens;
    if (tokens < HELD_OUT_OF) return held ? tokens - 1 : i % (tokens - 1);
    if (held) return i % out * HELD_OUT_OF + HELD_OUT_OF - 1;
    i %= tokens - out;
    const uint64_t whole = out * (HELD_OUT_OF - 1); /* of full groups; the rest holds none out */
    return i < whole ? i / (HELD_OUT_OF - 1) * HELD_OUT_OF + i % (HELD_OUT_OF - 1) : i + out;
}

/* Rows of a set that draws [i, i + count) take. */
static void pick_rows(const row_set *s, const range_draw *d, int64_t i, int64_t count,
                      uint64_t *pick) {
    const uint64_t first = d->first_index + (uint64_t)i;
    const bool held = d->order == RANGE_HELD_AT_RANDOM || d->order == RANGE_HELD_IN_ORDER;
    if (d->order == RANGE_IN_ORDER || d->order == RANGE_HELD_IN_ORDER) {
        pick_in_order(s, held, first, count, pick);
        return;
    }
    const uint64_t tokens = (uint64_t)(s->n / d->period);
    rng_u64_array(d->seed, d->purpose, first, count, pick);
    for (int64_t k = 0; k < count; k++) {
        const uint64_t token = token_at(tokens, held, pick[k] >> 32),
                       in_token = d->span > 1 ? (uint32_t)pick[k] % (uint32_t)d->span : 0;
        pick[k] = token * (uint64_t)d->period + (uint64_t)d->offset + in_token;
    }
}

/* Rows at random are asked for early: the product comes to them after the whole batch is drawn. */
static void fetch_rows(const row_set *s, const uint64_t *pick, int64_t count, int64_t n) {
    enum { LINE = 32, MOST = 128 };
    if (n > MOST) return;
    for (int64_t k = 0; k < count; k++) {
        __builtin_prefetch(s->w + pick[k]);
        for (int64_t j = 0; j < n; j += LINE)
            __builtin_prefetch(s->x + (int64_t)pick[k] * n + j, 0, 2);
    }
}

void range_add(range_work *w, const row_set *s, range_draw d, int64_t count) {
    enum { TOGETHER = 64 };
    uint64_t pick[TOGETHER];
    count = size_min(count, w->max_rows - w->rows);
    for (int64_t i = 0; i < count; i += TOGETHER) {
        const int64_t some = size_min(TOGETHER, count - i);
        pick_rows(s, &d, i, some, pick);
        if (d.order == RANGE_AT_RANDOM) fetch_rows(s, pick, some, w->n);
        for (int64_t k = 0; k < some; k++, w->rows++) {
            w->from[w->rows] = s->x + (int64_t)pick[k] * w->n;
            w->w[w->rows] = d.weight * s->w[pick[k]];
            w->rule[w->rows] = d.rule;
        }
    }
}

void range_add_row(range_work *w, const float *x, float weight, range_rule rule) {
    if (w->rows == w->max_rows) return;
    bf16 *row = w->x + w->rows * w->n;
    half_array_to_bf16(x, w->n, row);
    row_fix(row, w->n);
    w->from[w->rows] = row;
    w->w[w->rows] = weight;
    w->rule[w->rows++] = rule;
}

const bf16 *range_rotation(const range_work *w) {
    return w->R;
}

/* As many numbers at a time as a register holds, written out: by itself the compiler keeps no array
 * of running values in registers. Results are those of plain loops. */
#ifdef __AVX512F__
enum { LANES = 16 };
#else
enum { LANES = 8 };
#endif
typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

static inline floats load_floats(const float *u) {
    floats v;
    memcpy(&v, u, sizeof v);
    return v;
}

static inline ints choose(ints which, ints a, ints b) {
    return (a & which) | (b & ~which);
}

/* The largest and the smallest of each lane, with the first position that had it. */
typedef struct lane_ends {
    floats most, least;
    ints hi, lo;
} lane_ends;

static inline void take_lanes(lane_ends *e, floats v, ints at) {
    const ints above = v > e->most, below = v < e->least;
    e->most = (floats)choose(above, (ints)v, (ints)e->most);
    e->hi = choose(above, at, e->hi);
    e->least = (floats)choose(below, (ints)v, (ints)e->least);
    e->lo = choose(below, at, e->lo);
}

/* Lane i gets lane i ^ half. clang, of the fuzz targets, has no shuffle by a variable. */
static inline ints swap_lanes(ints v, ints lane, int half) {
#if defined(__clang__)
    ints w = v;
    for (int i = 0; i < LANES; i++) w[i] = v[lane[i] ^ half];
    return w;
#else
    return __builtin_shuffle(v, lane ^ half);
#endif
}

/* Every lane becomes the largest, or smallest, of all: halves against halves. */
static inline floats largest_lane(floats v, ints lane) {
    for (int half = LANES / 2; half > 0; half /= 2) {
        const floats w = (floats)swap_lanes((ints)v, lane, half);
        v = (floats)choose(v > w, (ints)v, (ints)w);
    }
    return v;
}

static inline ints smallest_lane(ints v, ints lane) {
    for (int half = LANES / 2; half > 0; half /= 2) {
        const ints w = swap_lanes(v, lane, half);
        v = choose(v < w, v, w);
    }
    return v;
}

/* The largest of two sets of lanes, and the first position that has it. */
static inline int32_t first_largest(floats a, ints at_a, floats b, ints at_b, ints lane) {
    const floats most = largest_lane((floats)choose(a > b, (ints)a, (ints)b), lane);
    const ints far = at_a * 0 + INT32_MAX, in_a = choose(a == most, at_a, far),
               in_b = choose(b == most, at_b, far);
    return smallest_lane(choose(in_a < in_b, in_a, in_b), lane)[0];
}

/* The first channels that hold the largest and the smallest of u. */
static void find_ends(const float *u, int64_t n, int32_t *hi, int32_t *lo) {
    int64_t j = 0;
    *hi = *lo = 0;
    if (n >= 2 * LANES) {
        ints lane;
        for (int k = 0; k < LANES; k++) lane[k] = k;
        ints at = lane;
        const floats v = load_floats(u), w = load_floats(u + LANES);
        lane_ends a = {v, v, at, at}, b = {w, w, at + LANES, at + LANES};
        for (j = 2 * LANES; j + 2 * LANES <= n; j += 2 * LANES) {
            at += 2 * LANES;
            take_lanes(&a, load_floats(u + j), at);
            take_lanes(&b, load_floats(u + j + LANES), at + LANES);
        }
        *hi = first_largest(a.most, a.hi, b.most, b.hi, lane);
        *lo = first_largest(-a.least, a.lo, -b.least, b.lo, lane);
        /* Lanes of NaN alone name no position; any will do. */
        if (*hi >= n) *hi = 0;
        if (*lo >= n) *lo = 0;
    }
    for (; j < n; j++) {
        if (u[j] > u[*hi]) *hi = (int32_t)j;
        if (u[j] < u[*lo]) *lo = (int32_t)j;
    }
}

range_ends range_ends_of(const float *u, int64_t n, range_rule rule) {
    int32_t hi, lo;
    find_ends(u, n, &hi, &lo);
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

/* True where the rows of a whole block stand behind each other, as rows in order do. */
static bool in_one_piece(const bf16 *const *from, int64_t m, int64_t n) {
    if (m < BLOCK) return false;
    for (int64_t i = 1; i < m; i++)
        if (from[i] != from[i - 1] + n) return false;
    return true;
}

static void fetch_row(const bf16 *row, int64_t n) {
    enum { LINE = 32 };
    for (int64_t j = 0; j < n; j += LINE) __builtin_prefetch(row + j, 0, 2);
}

/* The rows of a block for the product: where they are, or copied. */
static const bf16 *gather(const range_work *w, int64_t first, int64_t m, bf16 *x) {
    enum { AHEAD = 4 };
    const bf16 *const *from = w->from + first;
    if (in_one_piece(from, m, w->n)) return from[0];
    for (int64_t i = 0; i < m; i++) {
        fetch_row(from[size_min(i + AHEAD, m - 1)], w->n);
        memcpy(x + i * w->n, from[i], (size_t)w->n * sizeof *x);
    }
    return x;
}

/* The product has whole blocks always, and its rows round alike: where a rank's rows stand and end
 * is a matter of ranks, and a product of fewer rows may run another kernel, whose sums round
 * otherwise. While the ends of this block
 * are looked for, the rows of the next one that this thread is likely to take are fetched. */
static void do_block(range_work *w, int64_t block, bf16 *x, float *u) {
    const int64_t n = w->n, first = block * BLOCK, m = size_min(BLOCK, w->rows - first),
                  next = first + w->threads * BLOCK;
    int64_t loss = 0;
    gemm_alike_tile(BLOCK, n, n, gather(w, first, m, x), w->packed, u);
    for (int64_t i = 0; i < m; i++) {
        if (next + i < w->rows) fetch_row(w->from[next + i], n);
        loss += do_row(w, first + i, u + i * n);
    }
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
        if (w->channel[t] >= 0) w->sorted[at[w->channel[t]]++] = w->terms[t];
    free(at);
}

/* A word of four bf16 numbers becomes four doubles by shifts alone: sign to sign, 15 bits behind
 * the three highest of the exponent, which makes a number 2^-896 of what it is (none is subnormal
 * in bf16: they are multiples of 2^-12). So sums stand by their place in a word. */
enum { WIDE = 8, QUAD = 4, GROUP = WIDE * QUAD };
typedef double doubles __attribute__((vector_size(8 * WIDE)));
typedef int64_t words __attribute__((vector_size(8 * WIDE)));
typedef uint64_t bits __attribute__((vector_size(8 * WIDE)));
#define QUAD_UNIT 0x1p896
#define QUAD_BITS ((int64_t)0x8fffe00000000000u)

/* sum += coef * entry for CHUNK entries; products and sums are exact. */
static inline void add_entries(const bf16 *x, double coef, doubles sum[CHUNK / WIDE]) {
#pragma GCC unroll 16
    for (int i = 0; i < CHUNK / GROUP; i++) {
        bits q;
        memcpy(&q, x + i * GROUP, sizeof q);
        sum[QUAD * i] += coef * (doubles)(((words)(q << 48) >> 3) & QUAD_BITS);
        sum[QUAD * i + 1] += coef * (doubles)(((words)(q << 32) >> 3) & QUAD_BITS);
        sum[QUAD * i + 2] += coef * (doubles)(((words)(q << 16) >> 3) & QUAD_BITS);
        sum[QUAD * i + 3] += coef * (doubles)(((words)q >> 3) & QUAD_BITS);
    }
}

/* At most SEGMENT terms of one channel, and the rows of as many that come after them. */
typedef struct segment {
    int64_t count;
    const bf16 *row[SEGMENT], *next[SEGMENT];
    double coef[SEGMENT]; /* whole numbers, in units of a row's fixed point */
} segment;

static void take_segment(const range_work *w, int64_t from, int64_t end, double per_unit,
                         segment *s) {
    const int64_t last = w->start[w->n] - 1;
    s->count = end - from;
    for (int64_t t = 0; t < s->count; t++) {
        const term one = w->sorted[from + t];
        s->row[t] = w->from[one.row];
        s->next[t] = w->from[w->sorted[size_min(from + t + SEGMENT, last)].row];
        s->coef[t] = rint((double)one.coef * per_unit) * (1 << ROW_BITS);
    }
}

/* Entries [i0, i0 + CHUNK) of a segment, added up in registers. */
static void add_chunk(const segment *s, int64_t i0, int64_t *to) {
    doubles sum[CHUNK / WIDE] = {0};
    for (int64_t t = 0; t < s->count; t++) {
        for (int k = 0; k < CHUNK; k += 32) __builtin_prefetch(s->next[t] + i0 + k, 0, 2);
        add_entries(s->row[t] + i0, s->coef[t] * QUAD_UNIT, sum);
    }
    double plain[CHUNK];
    for (int g = 0; g < CHUNK / GROUP; g++)
        for (int l = 0; l < WIDE; l++)
            for (int k = 0; k < QUAD; k++) plain[g * GROUP + l * QUAD + k] = sum[g * QUAD + k][l];
    for (int i = 0; i < CHUNK; i++) to[i0 + i] += (int64_t)plain[i];
}

/* Entries [i0, n), fewer than CHUNK. */
static void add_rest(const segment *s, int64_t i0, int64_t n, int64_t *to) {
    double sum[CHUNK] = {0};
    for (int64_t t = 0; t < s->count; t++)
        for (int64_t i = i0; i < n; i++)
            sum[i - i0] += s->coef[t] * (double)half_from_bf16(s->row[t][i]);
    for (int64_t i = i0; i < n; i++) to[i] += (int64_t)sum[i - i0];
}

/* Row j of the transposed gradient: the terms of channel j. */
static void add_channel(const range_work *w, int64_t j, double per_unit, int64_t *to) {
    const int64_t n = w->n, end = w->start[j + 1];
    segment s;
    memset(to, 0, (size_t)n * sizeof *to);
    for (int64_t from = w->start[j]; from < end; from += SEGMENT) {
        int64_t i0 = 0;
        take_segment(w, from, size_min(from + SEGMENT, end), per_unit, &s);
        for (; i0 + CHUNK <= n; i0 += CHUNK) add_chunk(&s, i0, to);
        if (i0 < n) add_rest(&s, i0, n, to);
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

int64_t range_loss(range_work *w) {
    int64_t n = w->n, blocks = size_ceil_div(w->rows, BLOCK), loss = 0;
#pragma omp parallel for schedule(dynamic) num_threads(w->threads)
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t at = (int64_t)omp_get_thread_num() * BLOCK * n;
        do_block(w, b, w->block + at, w->u + at);
    }
    for (int64_t b = 0; b < blocks; b++) loss += w->loss[b];
    return loss;
}

/* dL/dR of a row is x^T du, and |x^T du|_F = |x| |du|. */
static double push_of_row(const range_work *w, int64_t row) {
    double x2 = 0, du2 = 0;
    for (int64_t i = 0; i < w->n; i++) {
        const double x = half_from_bf16(w->from[row][i]);
        x2 += x * x;
    }
    for (int64_t k = row * w->slots; k < (row + 1) * w->slots; k++)
        if (w->channel[k] >= 0) du2 += (double)w->terms[k].coef * (double)w->terms[k].coef;
    return sqrt(x2 * du2);
}

int64_t range_push(const range_work *w, int64_t first, int64_t count, int64_t *largest) {
    int64_t sum = 0;
    for (int64_t row = first; row < first + count && row < w->rows; row++) {
        const int64_t push = llrint(push_of_row(w, row) / RANGE_LOSS_UNIT);
        sum += push;
        *largest = size_max(*largest, push);
    }
    return sum;
}

void range_finish(range_work *w, double w_max, range_batch *out) {
    const int64_t n = w->n;
    out->loss = range_loss(w);
    sort_terms(w);
    const int exponent = coefficient_exponent(n, w_max);
    double per_unit = ldexp(1, -exponent);
#pragma omp parallel for schedule(dynamic, 4) num_threads(w->threads)
    for (int64_t j = 0; j < n; j++) add_channel(w, j, per_unit, out->grad + j * n);
    out->n = n;
    out->unit = range_unit(n, w_max);
}
