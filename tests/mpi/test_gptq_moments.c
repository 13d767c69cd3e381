/* Sums and factors of GPTQ over ranks: H and the cross terms against sums in fp64 made here from
 * the same bf16 inputs, the integers the same on any number of ranks (printed sums are held in the
 * test), the factor of one rank and that of a grid against the definition U^T U Hd = I. */
#include "base/gemm.h"
#include "base/half.h"
#include "base/mem.h"
#include "base/rng.h"
#include "mpi/dmat.h"
#include "pipeline/gptq/hessian_factor.h"
#include "tests/mpi/on_ranks.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 96, LENGTH = 40, COUNT = 11 };

static void *room(int64_t n, size_t size) {
    void *p;
    OK(mem_alloc(n, size, "test", &p));
    return p;
}

/* Inputs of window w, the same whoever makes them; columns differ in size, column 5 is dead, and
 * neighbours are correlated. Stream 1 is stream 0 and a little more. */
static void make_inputs(int64_t w, int stream, bf16 *x) {
    for (int64_t t = 0; t < LENGTH; t++) {
        double last = 0;
        for (int64_t j = 0; j < N; j++) {
            const uint64_t at = (uint64_t)((w * LENGTH + t) * N + j);
            last = 0.6 * last + rng_normal(5, RNG_TEST, at);
            double v = last * (1 + (double)(j % 7));
            if (stream) v += 0.1 * rng_normal(6, RNG_TEST, at);
            x[t * N + j] = half_to_bf16(j == 5 && !stream ? 0.0f : (float)v);
        }
    }
}

typedef struct fixture {
    llama_config cfg;
    int32_t *ids;
    gptq_windows *windows;
    gptq_moments m;
    double *x[2]; /* [COUNT * LENGTH, N] of all windows */
} fixture;

static void begin(fixture *f, const comm *c, bool hold_out, const char *scratch) {
    *f = (fixture){.cfg = {.hidden = N, .intermediate = N, .heads = 1, .head_dim = N}};
    f->ids = room(COUNT * LENGTH, sizeof *f->ids);
    const gptq_windows_options o = {.cfg = &f->cfg,
                                    .ids = f->ids,
                                    .count = COUNT,
                                    .length = LENGTH,
                                    .streams = 2,
                                    .scratch = scratch};
    OK(gptq_windows_create(c, &o, &f->windows));
    for (int s = 0; s < 2; s++) {
        bf16 part[LENGTH * N], *x;
        f->x[s] = room(COUNT * LENGTH * N, sizeof(double));
        for (int64_t w = 0; w < COUNT; w++) {
            make_inputs(w, s, part);
            for (int64_t i = 0; i < LENGTH * N; i++)
                f->x[s][w * LENGTH * N + i] = (double)half_from_bf16(part[i]);
        }
        for (int64_t i = 0; i < gptq_windows_own(f->windows); i++) {
            OK(gptq_windows_get_input(f->windows, s, i, &x));
            make_inputs(gptq_windows_number(f->windows, i), s, x);
            OK(gptq_windows_put_input(f->windows, s, i));
        }
    }
    f->m = (gptq_moments){.c = c, .windows = f->windows, .hold_out = hold_out};
}

static void end(fixture *f) {
    gptq_moments_clear(&f->m);
    gptq_windows_destroy(&f->windows);
    mem_free(f->x[0]);
    mem_free(f->x[1]);
    mem_free(f->ids);
}

/* 2/N sum of a_i b_j over the windows that are taken, in fp64. */
static double slow(const fixture *f, int64_t i, int64_t j, bool cross) {
    double sum = 0;
    int64_t tokens = 0;
    for (int64_t w = 0; w < COUNT; w++) {
        if (f->m.hold_out && w % 8 == 7) continue;
        tokens += LENGTH;
        for (int64_t t = w * LENGTH; t < (w + 1) * LENGTH; t++) {
            const double *q = f->x[0] + t * N, *p = f->x[1] + t * N;
            sum += (cross ? p[i] - q[i] : q[i]) * q[j];
        }
    }
    return 2 * sum / (double)tokens;
}

/* Rows of C on every rank, from the columns that each has; caller owns them. */
static int64_t *cross_rows(gptq_moments *m, int64_t first, int64_t rows) {
    const int ranks = comm_size(m->c), me = comm_rank(m->c);
    const int64_t at = gptq_moments_column(m->n, ranks, me),
                  cols = gptq_moments_column(m->n, ranks, me + 1) - at;
    int64_t *v, *all = room(rows * m->n, sizeof *all);
    OK(gptq_moments_cross(m, first, rows, &v));
    for (int64_t i = 0; i < rows; i++)
        memcpy(all + i * m->n + at, v + i * cols, (size_t)cols * sizeof *v);
    comm_sum_i64(m->c, all, rows * m->n);
    return all;
}

static int64_t mix(int64_t sum, int64_t v) {
    return (int64_t)((uint64_t)sum * 6364136223846793005u + (uint64_t)v);
}

/* Returns a number made of all integers: it must not depend on ranks. */
static int64_t test_sums(const comm *c, bool hold_out, const char *scratch) {
    fixture f;
    double *diagonal = room(N, sizeof *diagonal), worst = 0, worst_cross = 0, largest = 0;
    int64_t sum = 17;
    begin(&f, c, hold_out, scratch);
    OK(gptq_moments_diagonal(&f.m, N, "test", diagonal));
    for (int64_t j = 0; j < N; j++) {
        const double want = slow(&f, j, j, false);
        largest = fmax(largest, want);
        check(fabs(diagonal[j] - want) <= 1e-10 * want, "diagonal");
    }
    const double unit = ldexp(f.m.factor, f.m.exponent);
    for (int64_t first = 0; first < N; first += 40) {
        const int64_t rows = first + 40 < N ? 40 : N - first;
        int64_t *v;
        OK(gptq_moments_panel(&f.m, first, rows, -1, &v));
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = first + i; j < N; j++) {
                const int64_t got = v[i * (N - first) + j - first];
                sum = mix(sum, got);
                worst = fmax(worst, fabs((double)got * unit - slow(&f, first + i, j, false)));
            }
        int64_t *cross = cross_rows(&f.m, first, rows);
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < N; j++) {
                const double got = (double)cross[i * N + j] * unit;
                sum = mix(sum, cross[i * N + j]);
                worst_cross = fmax(worst_cross, fabs(got - slow(&f, first + i, j, true)));
            }
        mem_free(cross);
    }
    /* LENGTH products in fp32 a window; the difference is rounded to bf16 (0.1 of it is 1e-3). */
    check(worst <= LENGTH * 0x1p-24 * largest, "Hessian against fp64");
    check(worst_cross <= 0x1p-9 * 0.1 * sqrt(largest) * LENGTH, "cross terms against fp64");
    check(worst_cross > 0, "the difference is rounded to bf16");
    mem_free(diagonal);
    end(&f);
    return sum;
}

/* Inputs are again as they were made. */
static void check_inputs(const fixture *f) {
    bf16 want[LENGTH * N], *x;
    for (int64_t i = 0; i < gptq_windows_own(f->windows); i++) {
        OK(gptq_windows_get_input(f->windows, GPTQ_QUANTIZED, i, &x));
        make_inputs(gptq_windows_number(f->windows, i), GPTQ_QUANTIZED, want);
        check(!memcmp(x, want, sizeof want), "columns are in their places again");
    }
}

static double wide_entry(int64_t w, int64_t i) {
    return (double)half_from_bf16(
        half_to_bf16((float)rng_normal((uint64_t)w, RNG_TEST, (uint64_t)i)));
}

/* Wide enough for whole tiles and what is left of them: some entries against fp64. */
enum { WIDE = 1300, TOKENS = 24, WINDOWS = 19 };

/* This rank's blocks of a panel [rows, WIDE - first] that every rank has. */
static void check_cells(gptq_moments *m, grid_shape shape, int64_t first, int64_t rows,
                        const int64_t *want) {
    enum { BLOCK = DMAT_BLOCK };
    const int rank = comm_rank(m->c);
    int64_t *v, seen = 0;
    OK(gptq_moments_cells(m, first, rows, shape, &v));
    if (rank >= shape.rows * shape.cols) return;
    for (int64_t c = first / BLOCK; c * BLOCK < WIDE; c++)
        for (int64_t b = first / BLOCK; b * BLOCK < first + rows; b++) {
            if (c % shape.rows != rank / shape.cols || b % shape.cols != rank % shape.cols)
                continue;
            for (int64_t i = b * BLOCK; i < (b + 1) * BLOCK && i < first + rows; i++)
                for (int64_t j = c * BLOCK; j < (c + 1) * BLOCK && j < WIDE; j++, seen++)
                    if (j >= i)
                        check(v[seen] == want[(i - first) * (WIDE - first) + j - first],
                              "a block at its cell is that of the panel");
        }
    check(seen > 0 || shape.rows * shape.cols > 2, "cells have blocks");
}

static void test_cells(gptq_moments *m, grid_shape shape) {
    if (shape.rows * shape.cols > comm_size(m->c)) return;
    for (int64_t first = 0; first < WIDE; first += gptq_moments_panel_rows(WIDE)) {
        const int64_t step = gptq_moments_panel_rows(WIDE),
                      rows = first + step < WIDE ? step : WIDE - first, n = rows * (WIDE - first);
        int64_t *v, *kept = room(n, sizeof *kept);
        OK(gptq_moments_panel(m, first, rows, -1, &v));
        memcpy(kept, v, (size_t)n * sizeof *v);
        check_cells(m, shape, first, rows, kept);
        mem_free(kept);
    }
}

/* False where a product rounds a row by its place among the others, as OpenBLAS's fp32 kernels for
 * Haswell and Zen do: the moments of a grid and of one rank, whose panels begin at other rows, then
 * differ by the rounding of a window's TOKENS terms. */
static bool rows_round_alike(void) {
    enum { ROWS = 96, COLS = 100, SHIFT = 5 };
    static bf16 a[(ROWS + SHIFT) * TOKENS], b[TOKENS * COLS];
    static float c[ROWS * COLS], d[ROWS * COLS];
    for (int i = 0; i < (ROWS + SHIFT) * TOKENS; i++) a[i] = half_to_bf16((float)sin(i));
    for (int i = 0; i < TOKENS * COLS; i++) b[i] = half_to_bf16((float)cos(3 * i));
    gemm_tile_bf16(GEMM_N, ROWS, COLS, TOKENS, a, TOKENS, b, COLS, GEMM_SET, c, COLS);
    gemm_tile_bf16(GEMM_N, ROWS, COLS, TOKENS, a + SHIFT * TOKENS, TOKENS, b, COLS, GEMM_SET, d,
                   COLS);
    return memcmp(c + SHIFT * COLS, d, (ROWS - SHIFT) * COLS * sizeof *c) == 0;
}

/* U over a grid, of more blocks than one to a cell, against that of one rank. */
static void test_cells_factor(gptq_moments *m, const double *diagonal, grid_shape shape) {
    enum { PANEL = 100 };
    hessian_factor *one, *dealt;
    gptq_order *o;
    double worst = 0, largest = 0;
    if (shape.rows * shape.cols > comm_size(m->c)) return;
    OK(gptq_order_create(WIDE, diagonal, true, &o));
    hessian_factor_options opts = {
        .damp = 1, .block = PANEL, .dist_from = WIDE + 1, .grid = shape, .blas_threads = 1};
    OK(hessian_factor_create(m, o, &opts, "test", &one));
    opts.dist_from = 1;
    OK(hessian_factor_create(m, o, &opts, "test", &dealt));
    const gptq_panels p = hessian_factor_panels(one), q = hessian_factor_panels(dealt);
    for (int64_t first = 0; first < WIDE; first += PANEL) {
        const double *u, *v;
        int64_t apart_u, apart_v;
        OK(p.get(p.context, first, PANEL, &u, &apart_u));
        OK(q.get(q.context, first, PANEL, &v, &apart_v));
        for (int64_t i = 0; i < PANEL; i++)
            for (int64_t j = 0; j < WIDE - first; j++) {
                worst = fmax(worst, fabs(u[i * apart_u + j] - v[i * apart_v + j]));
                largest = fmax(largest, fabs(u[i * apart_u + j]));
            }
    }
    /* damp 1: the condition is at most n times the largest entry over the mean of the diagonal. It
     * multiplies the factor's rounding, and that of the moments where their panels round apart. */
    const double moments = rows_round_alike() ? 0 : 0x1p-24 * TOKENS;
    check(worst <= (0x1p-52 * WIDE + moments) * WIDE * largest, "U of a grid and of one rank");
    hessian_factor_destroy(&one);
    hessian_factor_destroy(&dealt);
    gptq_order_destroy(&o);
}

static gptq_windows *wide_windows(const comm *c, const llama_config *cfg, const int32_t *ids,
                                  const char *scratch, double *x) {
    const gptq_windows_options o = {.cfg = cfg,
                                    .ids = ids,
                                    .count = WINDOWS,
                                    .length = TOKENS,
                                    .streams = 1,
                                    .scratch = scratch};
    gptq_windows *windows;
    OK(gptq_windows_create(c, &o, &windows));
    for (int64_t w = 0; w < WINDOWS; w++)
        for (int64_t i = 0; i < TOKENS * WIDE; i++) x[w * TOKENS * WIDE + i] = wide_entry(w, i);
    for (int64_t i = 0; i < gptq_windows_own(windows); i++) {
        const double *from = x + gptq_windows_number(windows, i) * TOKENS * WIDE;
        bf16 *to;
        OK(gptq_windows_get_input(windows, GPTQ_QUANTIZED, i, &to));
        for (int64_t k = 0; k < TOKENS * WIDE; k++) to[k] = half_to_bf16((float)from[k]);
        OK(gptq_windows_put_input(windows, GPTQ_QUANTIZED, i));
    }
    return windows;
}

static int64_t test_wide(const comm *c, const char *scratch) {
    enum { STEP = 29 };
    const llama_config cfg = {.hidden = 8, .intermediate = WIDE, .heads = 1, .head_dim = 8};
    int32_t *ids = room(WINDOWS * TOKENS, sizeof *ids);
    double *x = room(WINDOWS * TOKENS * WIDE, sizeof *x), *diagonal = room(WIDE, sizeof *diagonal);
    gptq_windows *windows = wide_windows(c, &cfg, ids, scratch, x);
    int64_t sum = 3;
    gptq_moments m = {.c = c, .windows = windows};
    OK(gptq_moments_diagonal(&m, WIDE, "test", diagonal));
    const double unit = ldexp(m.factor, m.exponent);
    const int64_t step = gptq_moments_panel_rows(WIDE);
    for (int64_t first = 0; first < WIDE; first += step) {
        const int64_t rows = first + step < WIDE ? step : WIDE - first;
        int64_t *v;
        OK(gptq_moments_panel(&m, first, rows, -1, &v));
        for (int64_t i = first; i < first + rows; i += STEP)
            for (int64_t j = i; j < WIDE; j += STEP) {
                const int64_t got = v[(i - first) * (WIDE - first) + j - first];
                double want = 0;
                for (int64_t t = 0; t < WINDOWS * TOKENS; t++)
                    want += x[t * WIDE + i] * x[t * WIDE + j];
                want *= 2.0 / (WINDOWS * TOKENS);
                sum = mix(sum, got);
                check(fabs((double)got * unit - want) <= TOKENS * 0x1p-24 * diagonal[0] * 2,
                      "a wide Hessian against fp64");
            }
    }
    for (int rows = 1; rows <= 3; rows++)
        for (int cols = 1; cols <= 2 && !scratch; cols++) {
            const grid_shape shape = {rows, cols};
            test_cells(&m, shape);
            if (rows * cols > 1) test_cells_factor(&m, diagonal, shape);
        }
    gptq_moments_clear(&m);
    gptq_windows_destroy(&windows);
    mem_free(x), mem_free(diagonal), mem_free(ids);
    return sum;
}

/* |U^T U Hd - I| in the order of the places. */
static void test_factor(const comm *c, grid_shape grid, bool act_order) {
    fixture f;
    gptq_order *o;
    hessian_factor *s;
    double *diagonal = room(N, sizeof *diagonal), *u = room(N * N, sizeof *u), worst = 0;
    begin(&f, c, false, NULL);
    OK(gptq_moments_diagonal(&f.m, N, "test", diagonal));
    OK(gptq_order_create(N, diagonal, act_order, &o));
    const hessian_factor_options opts = {
        .damp = 0.01, .block = 28, .dist_from = 1, .grid = grid, .blas_threads = 1};
    OK(hessian_factor_create(&f.m, o, &opts, "test", &s));
    check_inputs(&f);
    const gptq_panels panels = hessian_factor_panels(s);
    for (int64_t first = 0; first < N; first += 28) {
        const int64_t rows = first + 28 < N ? 28 : N - first;
        const double *panel;
        int64_t stride;
        OK(panels.get(panels.context, first, rows, &panel, &stride));
        for (int64_t i = 0; i < rows; i++) {
            for (int64_t j = 0; j < i; j++) check(panel[i * stride + j] == 0, "below the diagonal");
            memcpy(u + (first + i) * N + first, panel + i * stride,
                   (size_t)(N - first) * sizeof *u);
        }
    }
    check(o->dead[5] && o->n_dead == 1, "the dead column");
    const double lambda = hessian_factor_damping(s)->lambda;
    check(lambda == gptq_lambda(o, 0.01, 0), "lambda");
    for (int64_t i = 0; i < N; i++) {
        double y[N] = {0}; /* row i of U^T U */
        for (int64_t k = 0; k <= i; k++)
            for (int64_t j = k; j < N; j++) y[j] += u[k * N + i] * u[k * N + j];
        for (int64_t j = 0; j < N; j++) {
            double sum = 0;
            for (int64_t k = 0; k < N; k++) {
                double h = slow(&f, o->column[k], o->column[j], false);
                if (k == j) h += lambda + (o->dead[o->column[j]] ? 1 : 0);
                sum += y[k] * h;
            }
            worst = fmax(worst, fabs(sum - (i == j)));
        }
    }
    /* H itself is good to LENGTH 2^-24 of its largest entry; Hd^-1 is up to 1/lambda. */
    check(worst <= LENGTH * 0x1p-24 * 100 * N, "U^T U Hd = I");
    hessian_factor_destroy(&s);
    gptq_order_destroy(&o);
    mem_free(diagonal);
    mem_free(u);
    end(&f);
}

/* One input of window 9. */
static void spoil(const fixture *f, int stream, float value) {
    bf16 *x;
    for (int64_t i = 0; i < gptq_windows_own(f->windows); i++) {
        if (gptq_windows_number(f->windows, i) != 9) continue;
        OK(gptq_windows_get_input(f->windows, stream, i, &x));
        x[3 * N + 8] = half_to_bf16(value);
    }
}

static void test_not_finite(const comm *c) {
    fixture f;
    double diagonal[N];
    begin(&f, c, false, NULL);
    spoil(&f, GPTQ_QUANTIZED, NAN);
    const err e = gptq_moments_diagonal(&f.m, N, "the tensor", diagonal);
    check(e.code == ERR_NUMERICS, "NaN is refused on every rank");
    check(strstr(e.where, "the tensor") && strstr(e.what, "window 9") && strstr(e.what, "input 8"),
          "NaN is named");
    end(&f);
}

/* In the stream of full precision alone: infinity, and what no exponent was made for. */
static void test_cross_not_finite(const comm *c, float value, const char *told) {
    fixture f;
    int64_t *v;
    double diagonal[N];
    begin(&f, c, false, NULL);
    spoil(&f, GPTQ_FULL, value);
    OK(gptq_moments_diagonal(&f.m, N, "the tensor", diagonal));
    const err e = gptq_moments_cross(&f.m, 0, N, &v);
    check(e.code == ERR_NUMERICS && strstr(e.where, "the tensor"), "refused on every rank");
    check(strstr(e.what, told) != NULL, "what is wrong with the stream of full precision");
    end(&f);
}

int main(int argc, char **argv) {
    const comm *c = ranks_start(&argc, &argv);
    const int64_t sum = test_sums(c, false, NULL);
    check(test_sums(c, false, ".") == sum, "the same sums from files");
    const int64_t held = test_sums(c, true, NULL);
    check(held != sum, "held out windows are left out");
    /* one rank alone, beside: its sums are those of all */
    comm *alone;
    OK(comm_split(c, comm_rank(c), "alone", &alone));
    check(test_sums(alone, false, NULL) == sum, "one rank has the same sums");
    const int64_t wide = test_wide(c, NULL);
    check(test_wide(c, ".") == wide, "the same wide sums from files");
    check(test_wide(alone, NULL) == wide, "one rank has the same wide sums");
    comm_destroy(&alone);
    const grid_shape one = {1, 1};
    test_factor(c, one, true);
    test_factor(c, one, false);
    if (comm_size(c) > 1) test_factor(c, (grid_shape){2, 1}, true);
    if (comm_size(c) > 3) test_factor(c, (grid_shape){2, 2}, true);
    test_not_finite(c);
    test_cross_not_finite(c, INFINITY, "input 8 of calibration window 9");
    test_cross_not_finite(c, 1e30F, "too far apart");
    return ranks_end();
}
