/* Householder QR of a Gaussian matrix (Mezzadri) for a uniform orthogonal start; symmetric
 * eigenvectors, signs fixed, times the fast Hadamard transform for `pca` and `womi`. */
#include "rotations/start.h"

#include "base/lapack.h"
#include "base/mem.h"
#include "rotations/cayley.h"
#include "rotations/flat_mix.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

enum { TILE = 64 }; /* side of a tile of a transposition */

/* out = in^T. */
static void transpose(int64_t n, const double *in, double *out) {
#pragma omp parallel for schedule(dynamic) if (n > 2 * TILE)
    for (int64_t i0 = 0; i0 < n; i0 += TILE)
        for (int64_t j0 = 0; j0 < n; j0 += TILE)
            for (int64_t i = i0; i < n && i < i0 + TILE; i++)
                for (int64_t j = j0; j < n && j < j0 + TILE; j++) out[i * n + j] = in[j * n + i];
}

err start_orthogonal(int64_t n, uint64_t seed, rng_purpose purpose, uint64_t first_index,
                     double *R) {
    double *columns;
    err e = MEM_NEW(&columns, n * n, "random matrix");
    if (e.code) return e;
#pragma omp parallel for
    for (int64_t j = 0; j < n; j++)
        for (int64_t i = 0; i < n; i++)
            columns[j * n + i] = rng_normal(seed, purpose, first_index + (uint64_t)(i * n + j));
    e = lapack_qr(n, columns);
    if (!e.code) transpose(n, columns, R);
    mem_free(columns);
    return e;
}

/* Eigenvectors are known up to sign: the entry of largest magnitude is made positive. */
static void fix_sign(int64_t n, double *v) {
    int64_t at = 0;
    for (int64_t i = 1; i < n; i++)
        if (fabs(v[i]) > fabs(v[at])) at = i;
    if (v[at] < 0)
        for (int64_t i = 0; i < n; i++) v[i] = -v[i];
}

/* R = V T from eigenvectors in rows, smallest value first. */
static void mix(int64_t n, const flat_mix *f, double *vectors, double *R) {
    for (int64_t j = 0; j < n; j++) fix_sign(n, vectors + j * n);
    for (int64_t j = 0; j < n / 2; j++)
        for (int64_t i = 0; i < n; i++) {
            double t = vectors[j * n + i];
            vectors[j * n + i] = vectors[(n - 1 - j) * n + i];
            vectors[(n - 1 - j) * n + i] = t;
        }
    transpose(n, vectors, R);
    flat_mix_rows(f, R, n);
}

static err start_pca_with(int64_t n, const flat_mix *f, const double *C, double *vectors, double *w,
                          double *R) {
    memcpy(vectors, C, (size_t)(n * n) * sizeof *vectors);
    err e = lapack_eigen(n, vectors, w);
    if (!e.code) mix(n, f, vectors, R);
    return e;
}

err start_pca(int64_t n, const double *C, double *R, double *values) {
    double *w = NULL;
    flat_mix *f = NULL;
    if (!cayley_finite(n * n, C))
        return err_make(ERR_NUMERICS, "start point", NULL,
                        "the second moment of order %" PRId64 " holds NaN or infinity", n);
    err e = flat_mix_create(n, &f);
    if (!e.code) e = MEM_NEW(&w, n * n + n, "eigenvectors");
    if (!e.code) e = start_pca_with(n, f, C, w + n, w, R);
    for (int64_t i = 0; i < n && !e.code && values; i++) values[i] = w[n - 1 - i];
    mem_free(w);
    flat_mix_destroy(&f);
    return e;
}
