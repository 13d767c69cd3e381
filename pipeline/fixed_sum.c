/* The largest magnitude of a unit is found first, by comparing bit patterns; then entries are
 * scaled by a power of two, rounded half to even by adding and subtracting 1.5 2^52, and added as
 * integers. */
#include "pipeline/fixed_sum.h"

#include "base/mem.h"
#include "base/size.h"

#include <math.h>
#include <string.h>

enum { SUM_BITS = 62, UNIT_BITS = 50, BLOCK = 4096, PARALLEL_FROM = 4 * BLOCK, LINE = 8 };

err fixed_sum_init(fixed_sum *s, int64_t n, const char *what) {
    *s = (fixed_sum){.n = n, .exponent = FIXED_SUM_UNKNOWN};
    err e = MEM_NEW(&s->v, n, what);
    return e;
}

void fixed_sum_clear(fixed_sum *s) {
    mem_free(s->v);
    *s = (fixed_sum){0};
}

/* Bits of a unit: 2^bits units <= 2^62, and few enough for the way in which entries are rounded. */
static int unit_bits(int64_t units) {
    int log2 = 0;
    while (((int64_t)1 << log2) < units) log2++;
    return (int)size_min(UNIT_BITS, SUM_BITS - log2);
}

int fixed_sum_exponent(double max, int64_t units) {
    /* all zero: any; the next step finds its own */
    const int above = max > 0 ? ilogb(max) + 1 : -126;
    return above + FIXED_SUM_HEADROOM - unit_bits(units);
}

void fixed_sum_begin(fixed_sum *s, int exponent, int64_t units) {
    const bool known = exponent != FIXED_SUM_UNKNOWN;
    memset(s->v, 0, (size_t)s->n * sizeof *s->v);
    s->exponent = exponent;
    s->scale = known ? ldexp(1, -exponent) : 0;
    s->bound = known ? ldexp(1, exponent + unit_bits(units)) : 0;
    s->max = 0;
    s->spoilt = s->not_finite = false;
}

/* What a block of entries was like. */
typedef struct found {
    double max;
    bool not_finite;
} found;

/* Magnitudes compare like the integers of their bits, NaN and infinity above all others: exact, and
 * the same in any order. */
static found look_f32(const float *x, int64_t n) {
    uint32_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    float m;
    memcpy(&m, &most, sizeof m);
    return (found){.max = (double)m, .not_finite = most >= 0x7f800000};
}

static found look_f64(const double *x, int64_t n) {
    uint64_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        uint64_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bits &= INT64_MAX;
        most = bits > most ? bits : most;
    }
    double m;
    memcpy(&m, &most, sizeof m);
    return (found){.max = m, .not_finite = most >= (uint64_t)0x7ff << 52};
}

/* x scale, an exact product of at most 2^50, to the nearest integer, half to even: the last bit of
 * a double of 1.5 2^52 is one, so the sum's bits less those of the constant are the integer. */
static const double ROUNDER = 0x1.8p52;

static inline int64_t nearest(double x, double scale) {
    const double t = x * scale + ROUNDER;
    int64_t zero, bits;
    memcpy(&zero, &ROUNDER, sizeof zero);
    memcpy(&bits, &t, sizeof bits);
    return bits - zero;
}

static void add_f32(int64_t *v, const float *x, int64_t n, double scale) {
    for (int64_t i = 0; i < n; i++) v[i] += nearest((double)x[i], scale);
}

static void add_f64(int64_t *v, const double *x, int64_t n, double scale) {
    for (int64_t i = 0; i < n; i++) v[i] += nearest(x[i], scale);
}

static void put_f32(int64_t *v, const float *x, int64_t n, double scale) {
    for (int64_t i = 0; i < n; i++) v[i] = nearest((double)x[i], scale);
}

void fixed_sum_add(fixed_sum *s, int64_t at, int64_t count, compute_type compute, void *unit) {
    const bool wide = compute == COMPUTE_F64;
    const double bound = s->bound, scale = s->scale;
    const bool many = count >= PARALLEL_FROM;
    double max = 0;
    bool spoilt = false, odd = false;
#pragma omp parallel for schedule(static) reduction(max : max) reduction(|| : spoilt, odd) if (many)
    for (int64_t i = 0; i < count; i += BLOCK) {
        const int64_t n = size_min(BLOCK, count - i);
        float *x = wide ? NULL : (float *)unit + i;
        double *y = wide ? (double *)unit + i : NULL;
        const found f = wide ? look_f64(y, n) : look_f32(x, n);
        odd = odd || f.not_finite;
        if (!f.not_finite) max = f.max > max ? f.max : max;
        if (f.not_finite || f.max > bound) {
            spoilt = true;
        } else if (f.max > 0) {
            if (wide)
                add_f64(s->v + at + i, y, n, scale);
            else
                add_f32(s->v + at + i, x, n, scale);
        }
        if (wide)
            memset(y, 0, (size_t)n * sizeof *y);
        else
            memset(x, 0, (size_t)n * sizeof *x);
    }
    s->max = max > s->max ? max : s->max;
    s->spoilt = s->spoilt || spoilt;
    s->not_finite = s->not_finite || odd;
}

bool fixed_sum_add_tile(const fixed_sum *s, int64_t at, int64_t stride, int64_t rows, int64_t cols,
                        bool put, const float *unit, int64_t ld) {
    bool fits = true;
    for (int64_t i = 0; i < rows && fits; i++) {
        int64_t *v = s->v + at + i * stride;
        const float *x = unit + i * ld;
        for (int64_t j = 0; j < cols && i + 1 < rows; j += LINE)
            __builtin_prefetch(v + stride + j, 1);
        const found f = look_f32(x, cols);
        fits = !f.not_finite && f.max <= s->bound;
        if (fits && put)
            put_f32(v, x, cols, s->scale);
        else if (fits)
            add_f32(v, x, cols, s->scale);
    }
    return fits;
}
