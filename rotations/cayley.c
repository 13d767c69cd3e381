#include "rotations/cayley.h"

#include "base/gemm.h"
#include "base/lapack.h"
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
};

static err take(int64_t count, const char *what, double **out) {
    void *p;
    err e = mem_alloc(count, sizeof(double), what, &p);
    *out = p;
    return e;
}

/* W = f (P - P^T), exactly skew. */
static void skew_part(int64_t n, double f, const double *P, double *W) {
#pragma omp parallel for schedule(dynamic, 16) if (n * n >= PARALLEL_FROM)
    for (int64_t i = 0; i < n; i++) {
        W[i * n + i] = 0;
        for (int64_t j = 0; j < i; j++) {
            double d = f * (P[i * n + j] - P[j * n + i]);
            W[i * n + j] = d;
            W[j * n + i] = -d;
        }
    }
}

static void skew_with(int64_t n, const double *G, const double *R, double *product, double *W) {
    gemm_f64(false, true, n, n, n, G, n, R, n, false, product, n);
    skew_part(n, -0.5, product, W);
}

err cayley_skew(int64_t n, const double *G, const double *R, double *W) {
    double *product;
    err e = take(n * n, "gradient times rotation", &product);
    if (!e.code) skew_with(n, G, R, product, W);
    mem_free(product);
    return e;
}

err cayley_turn(int64_t n, const double *W, const double *R, double *W_right) {
    double *a, *b;
    err e = take(2 * n * n, "turned direction", &a);
    if (e.code) return e;
    b = a + n * n;
    gemm_f64(false, false, n, n, n, W, n, R, n, false, a, n);
    gemm_f64(true, false, n, n, n, R, n, a, n, false, b, n);
    skew_part(n, 0.5, b, W_right);
    mem_free(a);
    return e;
}

/* Scratch of a step: M [n, n], X [n, n], the inverse of each diagonal block (n BLOCK), a panel
 * (n BLOCK). */
static int64_t step_scratch(int64_t n) {
    return 2 * n * n + 2 * n * size_min(n, BLOCK);
}

/* R <- 2 X - R. */
static void reflect(int64_t count, const double *X, double *R) {
#pragma omp parallel for if (count >= PARALLEL_FROM)
    for (int64_t i = 0; i < count; i++) R[i] = 2 * X[i] - R[i];
}

static void scale(int64_t count, double f, double *x) {
#pragma omp parallel for if (count >= PARALLEL_FROM)
    for (int64_t i = 0; i < count; i++) x[i] *= f;
}

/* The inverse of diagonal block [at, at + b) of M as out [b, b], and its negative as minus. */
static err invert_block(int64_t n, const double *M, int64_t at, int64_t b, double *out,
                        double *minus) {
    for (int64_t i = 0; i < b; i++)
        memcpy(out + i * b, M + (at + i) * n + at, (size_t)b * sizeof *out);
    err e = lapack_inverse(b, out, "I - A/2 of a Cayley step");
    for (int64_t i = 0; i < b * b; i++) minus[i] = -out[i];
    return e;
}

/* X <- M^-1 X by block elimination without exchange of rows: M + M^T is positive definite, and so
 * are all that elimination leaves of it, so no block is near singular. Inverses are of diagonal
 * blocks alone; all else is products. */
static err eliminate(int64_t n, double *M, double *X, double *inverses, double *panel) {
    double minus[BLOCK * BLOCK];
    const int64_t width = size_min(n, BLOCK);
    for (int64_t at = 0; at < n; at += width) {
        const int64_t b = size_min(width, n - at), next = at + b, below = n - next;
        err e = invert_block(n, M, at, b, inverses + at * width, minus);
        if (e.code) return e;
        gemm_f64(false, false, below, b, b, M + next * n + at, n, minus, b, false, panel, b);
        gemm_f64(false, false, below, below, b, panel, b, M + at * n + next, n, true,
                 M + next * n + next, n);
        gemm_f64(false, false, below, n, b, panel, b, X + at * n, n, true, X + next * n, n);
    }
    for (int64_t at = (n - 1) / width * width; at >= 0; at -= width) {
        const int64_t b = size_min(width, n - at);
        gemm_f64(false, false, b, n, b, inverses + at * width, b, X + at * n, n, false, panel, n);
        memcpy(X + at * n, panel, (size_t)(b * n) * sizeof *X);
        scale(b * n, -1, panel);
        gemm_f64(false, false, at, n, b, M + at, n, panel, n, true, X, n);
    }
    return err_none();
}

bool cayley_finite(int64_t count, const double *x) {
    /* Zero times anything finite is zero. */
    double sum = 0;
    for (int64_t i = 0; i < count; i++) sum += 0 * x[i];
    return sum == 0;
}

static err step_with(int64_t n, const double *A, double *R, double *scratch) {
    double *M = scratch, *X = M + n * n, *inverses = X + n * n;
    double *panel = inverses + n * size_min(n, BLOCK);
    if (!cayley_finite(n * n, A))
        return err_make(ERR_NUMERICS, "Cayley step", "use a smaller learning rate",
                        "the step of order %" PRId64 " holds NaN or infinity", n);
#pragma omp parallel for if (n * n >= PARALLEL_FROM)
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < n; j++) M[i * n + j] = -0.5 * A[i * n + j];
        M[i * n + i] += 1;
    }
    memcpy(X, R, (size_t)(n * n) * sizeof *X);
    err e = eliminate(n, M, X, inverses, panel);
    if (!e.code) reflect(n * n, X, R);
    return e;
}

err cayley_step(int64_t n, const double *A, double *R) {
    double *scratch;
    err e = take(step_scratch(n), "Cayley step", &scratch);
    if (!e.code) e = step_with(n, A, R, scratch);
    mem_free(scratch);
    return e;
}

/* The error of the first matrix that failed, so that the message does not depend on threads. */
typedef struct first_error {
    int64_t at;
    err e;
} first_error;

static void note_error(first_error *f, int64_t at, err e) {
    if (!e.code) return;
#pragma omp critical(cayley_first_error)
    if (!f->e.code || at < f->at) *f = (first_error){.at = at, .e = e};
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
    first_error failed = {.e = err_none()};
    err e = take(gemm_threads() * step_scratch(n), "Cayley steps", &scratch);
    if (e.code) return e;
#pragma omp parallel for schedule(dynamic)
    for (int64_t k = 0; k < count; k++)
        note_error(
            &failed, k,
            step_with(n, A + k * n * n, R + k * n * n, scratch + gemm_thread() * step_scratch(n)));
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
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        double row = 0;
        for (int64_t j = 0; j < n; j++) row += W[i * n + j] * W[i * n + j];
        sum += row;
    }
    return sum;
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
    gemm_f64(true, false, n, n, n, R, n, R, n, false, product, n);
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
    gemm_f64(false, false, n, PROBES, n, R, n, z, PROBES, false, u, PROBES);
    gemm_f64(true, false, n, PROBES, n, R, n, u, PROBES, false, back, PROBES);
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
    gemm_f64(true, false, n, n, n, R, n, R, n, false, P, n);
    scale(n * n, -0.5, P);
    for (int64_t i = 0; i < n; i++) P[i * n + i] += 1.5;
    gemm_f64(false, false, n, n, n, R, n, P, n, false, Q, n);
    memcpy(R, Q, (size_t)(n * n) * sizeof *R);
    mem_free(P);
    return e;
}
