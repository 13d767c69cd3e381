/* (I - A/2) is eliminated in blocks of fixed size without pivoting, which its positive definite
 * symmetric part allows; the solves for columns of R are products. All cuts depend on the order
 * alone, so the bits are the same for any number of threads. */
#include "rotations/cayley.h"

#include "base/gemm.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/size.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

enum {
    BLOCK = 128,           /* rows that an elimination step takes */
    PARALLEL_FROM = 65536, /* numbers, for element-wise work */
    PROBES = 4,
    TILE = 32, /* rows and columns that stay in cache while a matrix meets its transpose */
};

static err take(int64_t count, const char *what, double **out) {
    err e = MEM_NEW(out, count, what);
    return e;
}

/* Wide enough for products at speed, and four of them while that is so. */
int64_t cayley_unit(int64_t n) {
    enum { UNITS = 4, STEP = 24, WHOLE = 128, MOST = 256 };
    if (n <= WHOLE) return n;
    return size_min(MOST, size_ceil_div(size_ceil_div(n, UNITS), STEP) * STEP);
}

void cayley_gradient_rows(int64_t n, int64_t b, const double *G, const double *R, double *P) {
    gemm_tile_f64(GEMM_N, GEMM_T, b, n, n, G, n, R, n, GEMM_SET, P, n);
}

void cayley_skew_part(int64_t n, double f, const double *P, double *W) {
#pragma omp parallel for schedule(dynamic) if (n * n >= PARALLEL_FROM)
    for (int64_t i0 = 0; i0 < n; i0 += TILE)
        for (int64_t j0 = 0; j0 < n; j0 += TILE)
            for (int64_t i = i0; i < size_min(i0 + TILE, n); i++)
                for (int64_t j = j0; j < size_min(j0 + TILE, n); j++)
                    W[i * n + j] = f * (P[i * n + j] - P[j * n + i]);
}

void cayley_skew_part_f32(int64_t n, double f, const float *P, double *W) {
#pragma omp parallel for schedule(dynamic) if (n * n >= PARALLEL_FROM)
    for (int64_t i0 = 0; i0 < n; i0 += TILE)
        for (int64_t j0 = 0; j0 < n; j0 += TILE)
            for (int64_t i = i0; i < size_min(i0 + TILE, n); i++)
                for (int64_t j = j0; j < size_min(j0 + TILE, n); j++)
                    W[i * n + j] = f * ((double)P[i * n + j] - (double)P[j * n + i]);
}

static void skew_with(int64_t n, const double *G, const double *R, double *product, double *W) {
    const int64_t unit = cayley_unit(n);
#pragma omp parallel for schedule(dynamic) if (n > unit)
    for (int64_t i = 0; i < n; i += unit)
        cayley_gradient_rows(n, size_min(unit, n - i), G + i * n, R, product + i * n);
    cayley_skew_part(n, -0.5, product, W);
}

err cayley_skew(int64_t n, const double *G, const double *R, double *W) {
    double *product;
    err e = take(n * n, "gradient times rotation", &product);
    if (!e.code) skew_with(n, G, R, product, W);
    mem_free(product);
    return e;
}

err cayley_skew_right(int64_t n, const double *W, const double *R, double *W_right) {
    double *a, *b;
    err e = take(2 * n * n, "turned direction", &a);
    if (e.code) return e;
    b = a + n * n;
    gemm_f64(GEMM_N, GEMM_N, n, n, n, W, n, R, n, GEMM_SET, a, n);
    gemm_f64(GEMM_T, GEMM_N, n, n, n, R, n, a, n, GEMM_SET, b, n);
    cayley_skew_part(n, 0.5, b, W_right);
    mem_free(a);
    return e;
}

int64_t cayley_factors_count(int64_t n) {
    return 2 * n * n + 2 * n * size_min(n, BLOCK);
}

static cayley_factors factors_in(int64_t n, double *room) {
    cayley_factors f = {.n = n, .M = room, .X = room + n * n};
    f.inverses = f.X + n * n;
    f.panel = f.inverses + n * size_min(n, BLOCK);
    return f;
}

err cayley_factors_create(int64_t n, cayley_factors *out) {
    double *room;
    err e = take(cayley_factors_count(n), "factors of a Cayley step", &room);
    *out = e.code ? (cayley_factors){.n = n} : factors_in(n, room);
    return e;
}

void cayley_factors_destroy(cayley_factors *f) {
    mem_free(f->M);
    f->M = NULL;
}

static void scale(int64_t count, double f, double *x) {
#pragma omp parallel for if (count >= PARALLEL_FROM)
    for (int64_t i = 0; i < count; i++) x[i] *= f;
}

/* a [b, b] (row stride lda) <- its inverse by Gauss-Jordan elimination in place, without exchange
 * of rows: every pivot is one of a matrix whose symmetric part is positive definite. */
static void invert_small(int64_t b, double *a, int64_t lda) {
    for (int64_t k = 0; k < b; k++) {
        double *pivot = a + k * lda;
        const double inverse = 1 / pivot[k];
        pivot[k] = 1;
        for (int64_t j = 0; j < b; j++) pivot[j] *= inverse;
        for (int64_t i = 0; i < b; i++) {
            double *row = a + i * lda;
            if (i == k) continue;
            const double f = row[k];
            row[k] = 0;
            for (int64_t j = 0; j < b; j++) row[j] -= f * pivot[j];
        }
    }
}

/* a <- its inverse, as invert_small, by halves [A B; C D]: with the Schur complement
 * S = D - C A^-1 B, whose symmetric part is positive definite too, the inverse is [A^-1 + U S^-1 V,
 * -U S^-1; -S^-1 V, S^-1], U = A^-1 B, V = C A^-1. */
static void invert(int64_t b, double *a, int64_t lda) {
    enum { SMALL = 32 };
    double u[BLOCK * BLOCK / 4], v[BLOCK * BLOCK / 4], t[BLOCK * BLOCK / 4];
    if (b <= SMALL) {
        invert_small(b, a, lda);
        return;
    }
    const int64_t h = b / 2, r = b - h;
    double *B = a + h, *C = a + h * lda, *D = C + h;
    invert(h, a, lda);
    gemm_tile_f64(GEMM_N, GEMM_N, h, r, h, a, lda, B, lda, GEMM_SET, u, r);
    gemm_tile_f64(GEMM_N, GEMM_N, r, h, h, C, lda, a, lda, GEMM_SET, v, h);
    for (int64_t i = 0; i < r * h; i++) v[i] = -v[i];
    gemm_tile_f64(GEMM_N, GEMM_N, r, r, h, v, h, B, lda, GEMM_ADD, D, lda);
    invert(r, D, lda);
    gemm_tile_f64(GEMM_N, GEMM_N, h, r, r, u, r, D, lda, GEMM_SET, t, r);
    for (int64_t i = 0; i < h; i++)
        for (int64_t j = 0; j < r; j++) B[i * lda + j] = -t[i * r + j];
    gemm_tile_f64(GEMM_N, GEMM_N, r, h, r, D, lda, v, h, GEMM_SET, C, lda);
    gemm_tile_f64(GEMM_N, GEMM_N, h, h, r, B, lda, v, h, GEMM_ADD, a, lda);
}

/* The inverse of diagonal block [at, at + b) of M as out [b, b], and its negative as minus. */
static void invert_block(int64_t n, const double *M, int64_t at, int64_t b, double *out,
                         double *minus) {
    for (int64_t i = 0; i < b; i++)
        memcpy(out + i * b, M + (at + i) * n + at, (size_t)b * sizeof *out);
    invert(b, out, b);
    for (int64_t i = 0; i < b * b; i++) minus[i] = -out[i];
}

/* Block elimination without exchange of rows: M + M^T is positive definite, and so are all that
 * elimination leaves of it, so no block is near singular. Inverses are of diagonal blocks alone;
 * all else is products. Below the diagonal M keeps the multipliers of rows, negated. */
static void eliminate(cayley_factors *f) {
    double minus[BLOCK * BLOCK], *M = f->M;
    const int64_t n = f->n, width = size_min(n, BLOCK);
    for (int64_t at = 0; at < n; at += width) {
        const int64_t b = size_min(width, n - at), next = at + b, below = n - next;
        invert_block(n, M, at, b, f->inverses + at * width, minus);
        gemm_f64(GEMM_N, GEMM_N, below, b, b, M + next * n + at, n, minus, b, GEMM_SET, f->panel,
                 b);
        for (int64_t i = 0; i < below; i++)
            memcpy(M + (next + i) * n + at, f->panel + i * b, (size_t)b * sizeof *M);
        gemm_f64(GEMM_N, GEMM_N, below, below, b, f->panel, b, M + at * n + next, n, GEMM_ADD,
                 M + next * n + next, n);
    }
}

/* to = -1/2 a of a row; the largest of its bits without the sign: those of infinity and NaN are
 * the largest there are. */
static uint64_t halve_row(int64_t n, const double *a, double *to) {
    uint64_t most = 0;
    for (int64_t j = 0; j < n; j++) {
        uint64_t bits;
        memcpy(&bits, &a[j], sizeof bits);
        bits &= INT64_MAX;
        most = bits > most ? bits : most;
        to[j] = -0.5 * a[j];
    }
    return most;
}

err cayley_factor(cayley_factors *f, const double *A) {
    const uint64_t infinite = (uint64_t)0x7ff << 52;
    const int64_t n = f->n;
    double *M = f->M;
    int64_t bad = 0;
#pragma omp parallel for reduction(+ : bad) if (n * n >= PARALLEL_FROM)
    for (int64_t i = 0; i < n; i++) {
        bad += halve_row(n, A + i * n, M + i * n) >= infinite;
        M[i * n + i] += 1;
    }
    if (bad)
        return err_make(ERR_NUMERICS, "Cayley step", "use a smaller learning rate",
                        "the step of order %" PRId64 " holds NaN or infinity", n);
    eliminate(f);
    return err_none();
}

void cayley_solve_unit(cayley_factors *f, int64_t i, const double *R) {
    const int64_t n = f->n, w = size_min(cayley_unit(n), n - i), width = size_min(n, BLOCK);
    const double *M = f->M;
    double *X = f->X + i * n, *panel = f->panel + i * width;
    for (int64_t j = 0; j < n; j++) memcpy(X + j * w, R + j * n + i, (size_t)w * sizeof *X);
    for (int64_t at = 0; at < n; at += width) {
        const int64_t b = size_min(width, n - at), next = at + b;
        gemm_tile_f64(GEMM_N, GEMM_N, n - next, w, b, M + next * n + at, n, X + at * w, w, GEMM_ADD,
                      X + next * w, w);
    }
    for (int64_t at = (n - 1) / width * width; at >= 0; at -= width) {
        const int64_t b = size_min(width, n - at);
        gemm_tile_f64(GEMM_N, GEMM_N, b, w, b, f->inverses + at * width, b, X + at * w, w, GEMM_SET,
                      panel, w);
        memcpy(X + at * w, panel, (size_t)(b * w) * sizeof *X);
        for (int64_t k = 0; k < b * w; k++) panel[k] = -panel[k];
        gemm_tile_f64(GEMM_N, GEMM_N, at, w, b, M + at, n, panel, w, GEMM_ADD, X, w);
    }
}

void cayley_reflect_unit(const cayley_factors *f, int64_t i, double *R) {
    const int64_t n = f->n, w = size_min(cayley_unit(n), n - i);
    const double *X = f->X + i * n;
    for (int64_t j = 0; j < n; j++)
        for (int64_t k = 0; k < w; k++) R[j * n + i + k] = 2 * X[j * w + k] - R[j * n + i + k];
}

/* Lanes that sums run in, and their sum in a fixed order. */
enum { LANES = 8, SETS = 4 };
typedef double lanes __attribute__((vector_size(8 * LANES)));

static double sum_of_lanes(const lanes v[SETS]) {
    double sum = 0;
    const lanes all = (v[0] + v[1]) + (v[2] + v[3]);
    for (int k = 0; k < LANES; k++) sum += all[k];
    return sum;
}

static double dot(int64_t count, const double *x, const double *y) {
    lanes sum[SETS] = {0};
    int64_t i = 0;
    for (; i + LANES * SETS <= count; i += LANES * SETS)
#pragma GCC unroll 4
        for (int k = 0; k < SETS; k++) {
            lanes v, w;
            memcpy(&v, x + i + k * LANES, sizeof v);
            memcpy(&w, y + i + k * LANES, sizeof w);
            sum[k] += v * w;
        }
    double rest = 0;
    for (; i < count; i++) rest += x[i] * y[i];
    return sum_of_lanes(sum) + rest;
}

bool cayley_finite(int64_t count, const double *x) {
    int64_t bad = 0;
    for (int64_t i = 0; i < count; i++) bad += !isfinite(x[i]);
    return bad == 0;
}

static err step_with(int64_t n, const double *A, double *R, double *scratch) {
    cayley_factors f = factors_in(n, scratch);
    const int64_t unit = cayley_unit(n);
    err e = cayley_factor(&f, A);
    if (e.code) return e;
#pragma omp parallel for schedule(dynamic) if (n > unit)
    for (int64_t i = 0; i < n; i += unit) {
        cayley_solve_unit(&f, i, R);
        cayley_reflect_unit(&f, i, R);
    }
    return e;
}

err cayley_step(int64_t n, const double *A, double *R) {
    double *scratch;
    err e = take(cayley_factors_count(n), "Cayley step", &scratch);
    if (!e.code) e = step_with(n, A, R, scratch);
    mem_free(scratch);
    return e;
}

err cayley_skew_batch(int64_t n, int64_t count, const double *G, const double *R, double *W) {
    double *scratch;
    err e = take(gemm_threads() * n * n, "gradients times rotations", &scratch);
    if (e.code) return e;
#pragma omp parallel for schedule(dynamic)
    for (int64_t k = 0; k < count; k++)
        skew_with(n, G + k * n * n, R + k * n * n, scratch + gemm_thread() * n * n, W + k * n * n);
    mem_free(scratch);
    return e;
}

err cayley_step_batch(int64_t n, int64_t count, const double *A, double *R) {
    double *scratch;
    err_first failed = {.e = err_none()};
    err e = take(gemm_threads() * cayley_factors_count(n), "Cayley steps", &scratch);
    if (e.code) return e;
#pragma omp parallel for schedule(dynamic)
    for (int64_t k = 0; k < count; k++)
        err_note(&failed, k,
                 step_with(n, A + k * n * n, R + k * n * n,
                           scratch + gemm_thread() * cayley_factors_count(n)));
    mem_free(scratch);
    return failed.e;
}

/* The larger; NaN wins and stays. */
static double larger(double a, double b) {
    return b > a || isnan(b) ? b : a;
}

double cayley_norm_1(int64_t n, const double *W) {
    /* Rows of a skew matrix are its columns but for signs; yet any matrix is served. */
    double most = 0;
    for (int64_t j0 = 0; j0 < n; j0 += BLOCK) {
        double sums[BLOCK] = {0};
        const int64_t b = size_min(BLOCK, n - j0);
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < b; j++) sums[j] += fabs(W[i * n + j0 + j]);
        for (int64_t j = 0; j < b; j++) most = larger(most, sums[j]);
    }
    return most;
}

double cayley_sum_squares(int64_t n, const double *W) {
    return dot(n * n, W, W);
}

void cayley_row_squares(int64_t n, const double *W, double *squares) {
#pragma omp parallel for if (n * n >= PARALLEL_FROM)
    for (int64_t i = 0; i < n; i++) squares[i] = dot(n, W + i * n, W + i * n);
}

double cayley_angle_start(int64_t i) {
    return rng_sign(0, RNG_PROBE, (uint64_t)i);
}

/* z is kept at length 1, so that neither long nor short products leave the range of a double. */
err cayley_angle_by(int64_t n, cayley_product times, const void *W, double *room, double *angle) {
    double *z = room, *y = room + n, length = sqrt((double)n);
    err e = err_none();
    for (int64_t i = 0; i < n; i++) z[i] = cayley_angle_start(i);
    for (int k = 0; k < CAYLEY_ANGLE_PRODUCTS && length > 0 && !e.code; k++) {
        for (int64_t i = 0; i < n; i++) z[i] /= length;
        e = times(n, W, z, y);
        length = sqrt(dot(n, y, y));
        memcpy(z, y, (size_t)n * sizeof *z);
    }
    *angle = length;
    return e;
}

static err times_whole(int64_t n, const void *W, const double *z, double *y) {
#pragma omp parallel for if (n * n >= PARALLEL_FROM)
    for (int64_t i = 0; i < n; i++) y[i] = dot(n, (const double *)W + i * n, z);
    return err_none();
}

err cayley_angle(int64_t n, const double *W, double *angle) {
    double *room;
    err e = take(2 * n, "angle of a step", &room);
    if (!e.code) e = cayley_angle_by(n, times_whole, W, room, angle);
    mem_free(room);
    return e;
}

static double distance_to_identity(int64_t n, const double *P) {
    double most = 0;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            double d = fabs(P[i * n + j] - (i == j));
            most = larger(most, d);
        }
    return most;
}

err cayley_orthogonality(int64_t n, const double *R, double *max) {
    double *product;
    err e = take(n * n, "orthogonality", &product);
    if (e.code) return e;
    gemm_f64(GEMM_T, GEMM_N, n, n, n, R, n, R, n, GEMM_SET, product, n);
    *max = distance_to_identity(n, product);
    mem_free(product);
    return e;
}

err cayley_probe(int64_t n, const double *R, uint64_t seed, int64_t step, double *max) {
    double *z, *u, *back;
    err e = take(3 * n * PROBES, "probe of orthogonality", &z);
    if (e.code) return e;
    u = z + n * PROBES;
    back = u + n * PROBES;
    for (int64_t i = 0; i < n * PROBES; i++)
        z[i] = rng_sign(seed, RNG_PROBE, (uint64_t)(step * n * PROBES + i)) / sqrt((double)n);
    gemm_f64(GEMM_N, GEMM_N, n, PROBES, n, R, n, z, PROBES, GEMM_SET, u, PROBES);
    gemm_f64(GEMM_T, GEMM_N, n, PROBES, n, R, n, u, PROBES, GEMM_SET, back, PROBES);
    *max = 0;
    for (int64_t i = 0; i < n * PROBES; i++) {
        *max = larger(*max, fabs(back[i] - z[i]));
    }
    mem_free(z);
    return e;
}

err cayley_polish(int64_t n, double *R) {
    double *P, *Q;
    err e = take(2 * n * n, "polish of a rotation", &P);
    if (e.code) return e;
    Q = P + n * n;
    gemm_f64(GEMM_T, GEMM_N, n, n, n, R, n, R, n, GEMM_SET, P, n);
    scale(n * n, -0.5, P);
    for (int64_t i = 0; i < n; i++) P[i * n + i] += 1.5;
    gemm_f64(GEMM_N, GEMM_N, n, n, n, R, n, P, n, GEMM_SET, Q, n);
    memcpy(R, Q, (size_t)(n * n) * sizeof *R);
    mem_free(P);
    return e;
}
