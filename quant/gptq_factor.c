/* The order of the columns, and the factor of H^-1: gptq.h's first two steps. */
#include "quant/gptq.h"

#include "base/gemm.h"
#include "base/mem.h"
#include "base/size.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    BLOCK = 128,          /* columns that an elimination step takes */
    TILE = 4 * BLOCK,     /* side of the tiles that threads share */
    PARALLEL_FROM = 1024, /* order from which copies are shared out to threads */
};

/* The order. */

typedef struct entry {
    double energy;
    int64_t column;
} entry;

static int larger_first(const void *a, const void *b) {
    const entry *x = a, *y = b;
    if (x->energy != y->energy) return x->energy > y->energy ? -1 : 1;
    return x->column < y->column ? -1 : 1;
}

static err sort_columns(const double *diagonal, gptq_order *o) {
    entry *all;
    err e = MEM_NEW(&all, o->n, "order of columns");
    if (e.code) return e;
    for (int64_t j = 0; j < o->n; j++) all[j] = (entry){diagonal[j], j};
    qsort(all, (size_t)o->n, sizeof *all, larger_first);
    for (int64_t i = 0; i < o->n; i++) o->column[i] = all[i].column;
    mem_free(all);
    return e;
}

static err column_error(int64_t column, const char *what) {
    char where[64];
    snprintf(where, sizeof where, "Hessian, column %" PRId64, column);
    return err_make(ERR_NUMERICS, where, "look at the calibration text and at the model's weights",
                    "%s", what);
}

static err note_dead(const double *diagonal, gptq_order *o) {
    double sum = 0;
    for (int64_t j = 0; j < o->n; j++) {
        if (!isfinite(diagonal[j]) || diagonal[j] < 0)
            return column_error(j, "the mean square of an input is negative or not a number");
        o->dead[j] = !(diagonal[j] > 0);
        o->n_dead += o->dead[j];
        sum += diagonal[j];
    }
    o->mean_live = o->n_dead < o->n ? sum / (double)(o->n - o->n_dead) : 1;
    return err_none();
}

err gptq_order_create(int64_t n, const double *diagonal, bool act_order, gptq_order **out) {
    *out = NULL;
    gptq_order *o;
    err e = MEM_NEW(&o, 1, "order of columns");
    if (e.code) return e;
    o->n = n;
    e = MEM_NEW(&o->column, n, "order of columns");
    if (!e.code) e = MEM_NEW(&o->dead, n, "dead columns");
    if (!e.code) e = note_dead(diagonal, o);
    for (int64_t j = 0; j < n && !e.code; j++) o->column[j] = j;
    if (!e.code && act_order) e = sort_columns(diagonal, o);
    if (e.code) {
        gptq_order_destroy(&o);
        return e;
    }
    *out = o;
    return e;
}

void gptq_order_destroy(gptq_order **o) {
    if (!*o) return;
    mem_free((*o)->column);
    mem_free((*o)->dead);
    mem_free(*o);
    *o = NULL;
}

double gptq_lambda(const gptq_order *o, double damp, int raises) {
    if (raises > 0 && !(damp > 0)) damp = 1e-7;
    return damp * o->mean_live * pow(10, raises);
}

/* H into the order, in place. */

static err check_finite(int64_t n, const double *h) {
    int64_t bad = n * n;
#pragma omp parallel for reduction(min : bad) if (n >= PARALLEL_FROM)
    for (int64_t i = 0; i < n; i++) {
        double sum = 0; /* zero times anything finite is zero */
        for (int64_t j = 0; j < n; j++) sum += 0 * h[i * n + j];
        if (sum != 0) bad = size_min(bad, i);
    }
    if (bad == n * n) return err_none();
    return column_error(bad, "the Hessian holds NaN or infinity");
}

/* Rows along the cycles of the order; *done is scratch [n]. */
static void order_rows(const gptq_order *o, double *h, double *row, bool *done) {
    const size_t bytes = (size_t)o->n * sizeof *h;
    memset(done, 0, (size_t)o->n);
    for (int64_t start = 0; start < o->n; start++) {
        if (done[start]) continue;
        memcpy(row, h + start * o->n, bytes);
        int64_t p = start;
        for (; o->column[p] != start; p = o->column[p]) {
            memcpy(h + p * o->n, h + o->column[p] * o->n, bytes);
            done[p] = true;
        }
        memcpy(h + p * o->n, row, bytes);
        done[p] = true;
    }
}

static void order_columns(const gptq_order *o, double *h, double *rows) {
    const int64_t n = o->n;
#pragma omp parallel for if (n >= PARALLEL_FROM)
    for (int64_t i = 0; i < n; i++) {
        double *row = rows + gemm_thread() * n;
        memcpy(row, h + i * n, (size_t)n * sizeof *h);
        for (int64_t p = 0; p < n; p++) h[i * n + p] = row[o->column[p]];
    }
}

static err put_in_order(const gptq_order *o, double *h) {
    double *rows;
    err e = MEM_NEW(&rows, (gemm_threads() + 1) * o->n, "rows of a Hessian");
    if (e.code) return e;
    order_rows(o, h, rows, (bool *)(rows + gemm_threads() * o->n));
    order_columns(o, h, rows);
    mem_free(rows);
    return e;
}

/* The factorization. Hd = V V^T with V upper is Cholesky's from the last column to the first; the
 * order of the columns then needs no turning about, and U = V^-1 is the factor that the loop wants
 * without ever forming H^-1: 2/3 n^3 flops where Cholesky, inverse, Cholesky take 4/3 n^3. */
typedef struct factor {
    int64_t n;
    double *h;        /* [n, n]; V, then U above the diagonal, H below */
    double *saved;    /* diagonal tiles of H: [tiles][TILE, TILE] */
    double *inverses; /* inverses of the diagonal blocks: [blocks][BLOCK, BLOCK] */
    double *panel;    /* [n, BLOCK] */
    double *minus;    /* [n, BLOCK] */
} factor;

static int64_t factor_scratch(int64_t n) {
    return size_ceil_div(n, TILE) * TILE * TILE + size_ceil_div(n, BLOCK) * BLOCK * BLOCK +
           2 * n * BLOCK;
}

static void lay_out(factor *f, double *scratch) {
    f->saved = scratch;
    f->inverses = f->saved + size_ceil_div(f->n, TILE) * TILE * TILE;
    f->panel = f->inverses + size_ceil_div(f->n, BLOCK) * BLOCK * BLOCK;
    f->minus = f->panel + f->n * BLOCK;
}

static void save_diagonal(factor *f) {
    for (int64_t at = 0; at < f->n; at += TILE) {
        const int64_t b = size_min(TILE, f->n - at);
        for (int64_t i = 0; i < b; i++)
            memcpy(f->saved + at * TILE + i * b, f->h + (at + i) * f->n + at,
                   (size_t)b * sizeof *f->h);
    }
}

static void damp_diagonal(factor *f, const gptq_order *o, double lambda) {
    for (int64_t i = 0; i < f->n; i++)
        f->h[i * f->n + i] += lambda + (o->dead[o->column[i]] ? 1 : 0);
}

/* H above the diagonal, after a failure: from the tiles kept, and from what is below. */
static void restore(factor *f) {
    const int64_t n = f->n;
#pragma omp parallel for schedule(dynamic, 16) if (n >= PARALLEL_FROM)
    for (int64_t i = 0; i < n; i++) {
        const int64_t at = i / TILE * TILE, b = size_min(TILE, n - at);
        memcpy(f->h + i * n + at, f->saved + at * TILE + (i - at) * b, (size_t)b * sizeof *f->h);
        for (int64_t j = at + b; j < n; j++) f->h[i * n + j] = f->h[j * n + i];
    }
}

/* One diagonal block: V, from its last column to its first, where the pivots stand above what
 * rounding of sums of n terms can leave of a singular matrix. */
static bool factor_block(int64_t b, double *a, int64_t stride, const double *least) {
    for (int64_t j = b - 1; j >= 0; j--) {
        double *row_j = a + j * stride, pivot = row_j[j];
        for (int64_t k = j + 1; k < b; k++) pivot -= row_j[k] * row_j[k];
        if (!(pivot > least[j])) return false;
        row_j[j] = sqrt(pivot);
        for (int64_t i = 0; i < j; i++) {
            double *row_i = a + i * stride, sum = row_i[j];
            for (int64_t k = j + 1; k < b; k++) sum -= row_i[k] * row_j[k];
            row_i[j] = sum / row_j[j];
        }
    }
    return true;
}

/* out [b, b] = inverse of the upper triangle of a: row i from the rows below it. */
static void invert_block(int64_t b, const double *a, int64_t stride, double *out) {
    memset(out, 0, (size_t)(b * b) * sizeof *out);
    for (int64_t i = b - 1; i >= 0; i--) {
        double *row = out + i * b;
        for (int64_t k = i + 1; k < b; k++)
            for (int64_t j = k; j < b; j++) row[j] -= a[i * stride + k] * out[k * b + j];
        for (int64_t j = i + 1; j < b; j++) row[j] /= a[i * stride + i];
        row[i] = 1 / a[i * stride + i];
    }
}

/* Tile t of the upper triangle of `tiles` x `tiles`: columns of tiles one after the other. */
static void tile_place(int64_t t, int64_t *i, int64_t *j) {
    *j = 0;
    while (t > *j) t -= ++*j;
    *i = t;
}

/* Above and left of the block at `at`: H_ij -= V_ik V_jk^T. Fixed tiles, so the same bits for any
 * number of threads. */
static void update_rest(factor *f, int64_t at, int64_t b) {
    const int64_t tiles = size_ceil_div(at, TILE), all = tiles * (tiles + 1) / 2;
#pragma omp parallel for schedule(dynamic) if (all > 1)
    for (int64_t t = 0; t < all; t++) {
        int64_t i, j;
        tile_place(all - 1 - t, &i, &j);
        i *= TILE, j *= TILE;
        gemm_tile_f64(GEMM_N, GEMM_T, size_min(TILE, at - i), size_min(TILE, at - j), b,
                      f->minus + i * b, b, f->panel + j * b, b, GEMM_ADD, f->h + i * f->n + j,
                      f->n);
    }
}

static void take_panel(factor *f, int64_t at, int64_t b) {
    double *column = f->h + at;
    gemm_f64(GEMM_N, GEMM_T, at, b, b, column, f->n, f->inverses + at * BLOCK, b, GEMM_SET,
             f->panel, b);
#pragma omp parallel for if (at >= PARALLEL_FROM)
    for (int64_t i = 0; i < at; i++) {
        memcpy(column + i * f->n, f->panel + i * b, (size_t)b * sizeof *column);
        for (int64_t j = 0; j < b; j++) f->minus[i * b + j] = -f->panel[i * b + j];
    }
}

/* V above the diagonal of h; false where Hd is not positive definite. */
static bool factor_all(factor *f) {
    for (int64_t at = (f->n - 1) / BLOCK * BLOCK; at >= 0; at -= BLOCK) {
        const int64_t b = size_min(BLOCK, f->n - at);
        double least[BLOCK], *block = f->h + at * f->n + at;
        for (int64_t j = 0; j < b; j++) {
            const int64_t tile = (at + j) / TILE * TILE, side = size_min(TILE, f->n - tile);
            const double first = f->saved[tile * TILE + (at + j - tile) * (side + 1)];
            least[j] = (double)f->n * 0x1p-53 * first;
        }
        if (!factor_block(b, block, f->n, least)) return false;
        invert_block(b, block, f->n, f->inverses + at * BLOCK);
        take_panel(f, at, b);
        update_rest(f, at, b);
    }
    return true;
}

static void clear_below(factor *f) {
#pragma omp parallel for schedule(dynamic, 16) if (f->n >= PARALLEL_FROM)
    for (int64_t i = 1; i < f->n; i++) memset(f->h + i * f->n, 0, (size_t)i * sizeof *f->h);
}

/* U = V^-1 in place, block columns front to back: U_ik = -U_ii.. V_.k U_kk. */
static void invert_all(factor *f) {
    clear_below(f);
    for (int64_t at = 0; at < f->n; at += BLOCK) {
        const int64_t b = size_min(BLOCK, f->n - at), tiles = size_ceil_div(at, BLOCK);
        double *column = f->h + at, *inverse = f->inverses + at * BLOCK;
        for (int64_t i = 0; i < b; i++)
            memcpy(column + (at + i) * f->n, inverse + i * b, (size_t)b * sizeof *inverse);
        for (int64_t i = 0; i < b * b; i++) inverse[i] = -inverse[i];
        gemm_f64(GEMM_N, GEMM_N, at, b, b, column, f->n, inverse, b, GEMM_SET, f->panel, b);
#pragma omp parallel for schedule(dynamic) if (tiles > 1)
        for (int64_t t = 0; t < tiles; t++) {
            const int64_t i = t * BLOCK;
            gemm_tile_f64(GEMM_N, GEMM_N, size_min(BLOCK, at - i), b, at - i, f->h + i * f->n + i,
                          f->n, f->panel + i * b, b, GEMM_SET, f->minus + i * b, b);
        }
        for (int64_t i = 0; i < at; i++)
            memcpy(column + i * f->n, f->minus + i * b, (size_t)b * sizeof *column);
    }
}

static err factor_with(const gptq_order *o, double damp, factor *f, gptq_damping *done) {
    save_diagonal(f);
    for (int raises = 0; raises <= GPTQ_MAX_RAISES; raises++) {
        *done = (gptq_damping){gptq_lambda(o, damp, raises), raises};
        if (raises) restore(f);
        damp_diagonal(f, o, done->lambda);
        if (!factor_all(f)) continue;
        invert_all(f);
        return err_none();
    }
    return err_make(ERR_NUMERICS, "Hessian", "raise weights.damp, or give more calibration windows",
                    "a Hessian of order %" PRId64
                    " is not positive definite, even with %.2g added to its diagonal (mean %.2g)",
                    o->n, done->lambda, o->mean_live);
}

uint64_t gptq_factor_bytes(int64_t n) {
    return (uint64_t)(factor_scratch(n) + (gemm_threads() + 1) * n) * sizeof(double);
}

err gptq_factor(const gptq_order *o, double damp, double *h, gptq_damping *done) {
    double *scratch;
    factor f = {.n = o->n, .h = h};
    *done = (gptq_damping){0, 0};
    err e = check_finite(o->n, h);
    if (!e.code) e = MEM_NEW(&scratch, factor_scratch(o->n), "factor of a Hessian");
    if (e.code) return e;
    lay_out(&f, scratch);
    e = put_in_order(o, h);
    if (!e.code) e = factor_with(o, damp, &f, done);
    mem_free(scratch);
    return e;
}

/* Panels of a whole U. */

static err whole_panel(void *context, int64_t first, int64_t rows, const double **panel,
                       int64_t *stride) {
    const gptq_whole *u = context;
    (void)rows;
    *panel = u->u + first * u->n + first;
    *stride = u->n;
    return err_none();
}

gptq_panels gptq_panels_of(gptq_whole *u) {
    return (gptq_panels){whole_panel, u};
}
