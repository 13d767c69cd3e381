/* The formulas of start.c with ScaLAPACK's pdgeqrf and pdsyevd. R leaves in bands of rows that all
 * ranks see. */
#include "rotations/start_dist.h"

#include "base/mem.h"
#include "base/rng.h"
#include "base/size.h"
#include "rotations/flat_mix.h"

#include <math.h>
#include <string.h>

enum { ROWS = FLAT_MIX_ROWS }; /* rows that pass through every rank at a time */

err start_dist_orthogonal(dgrid *g, uint64_t seed, int64_t n, start_sink sink) {
    dmat *Q;
    double *p;
    int64_t rows, cols;
    err e = comm_agree(dgrid_comm(g), MEM_NEW(&p, ROWS * n, "rows of R1"), "random R1", NULL);
    if (!e.code) e = dmat_create(g, n, "random R1", &Q);
    if (e.code) {
        mem_free(p);
        return e;
    }
    dmat_part_shape(Q, &rows, &cols);
#pragma omp parallel for
    for (int64_t j = 0; j < cols; j++)
        for (int64_t i = 0; i < rows; i++)
            dmat_part(Q)[j * rows + i] =
                rng_normal(seed, RNG_R1_NORMAL, (uint64_t)(dmat_row(Q, i) * n + dmat_col(Q, j)));
    e = dmat_qr(Q);
    for (int64_t row = 0; row < n && !e.code; row += ROWS) {
        const int64_t b = size_min(ROWS, n - row);
        dmat_get_rows(Q, row, b, p);
        sink.put(sink.to, row, b, p);
    }
    dmat_destroy(&Q);
    mem_free(p);
    return e;
}

/* Entries of largest magnitude in the columns of V, the first of equals: their signs, on every
 * rank. Rows pass by from the first to the last, so this is the rule of start_pca. */
static void column_signs(const dmat *V, int64_t n, double *rows, double *most, double *signs) {
    for (int64_t j = 0; j < n; j++) most[j] = signs[j] = 0;
    for (int64_t row = 0; row < n; row += ROWS) {
        const int64_t b = size_min(ROWS, n - row);
        dmat_get_rows(V, row, b, rows);
        for (int64_t i = 0; i < b; i++)
            for (int64_t j = 0; j < n; j++) {
                const double v = rows[i * n + j];
                if (fabs(v) <= most[j]) continue;
                most[j] = fabs(v);
                signs[j] = v < 0 ? -1 : 1;
            }
    }
}

/* R = V T in rows: columns signed, largest value first, then mixed. */
static void mix_rows(const dmat *V, int64_t n, const flat_mix *f, double *rows, double *rotated,
                     const double *signs, start_sink sink) {
    for (int64_t row = 0; row < n; row += ROWS) {
        const int64_t b = size_min(ROWS, n - row);
        dmat_get_rows(V, row, b, rows);
#pragma omp parallel for
        for (int64_t i = 0; i < b; i++)
            for (int64_t j = 0; j < n; j++)
                rotated[i * n + j] = signs[n - 1 - j] * rows[i * n + n - 1 - j];
        flat_mix_rows(f, rotated, b);
        sink.put(sink.to, row, b, rotated);
    }
}

static err pca_with(dgrid *g, dmat *C, int64_t n, const flat_mix *f, double *scratch,
                    start_sink sink) {
    double *rows = scratch, *rotated = rows + ROWS * n, *values = rotated + ROWS * n;
    double *most = values + n, *signs = most + n;
    dmat *V;
    err e = dmat_create(g, n, "eigenvectors", &V);
    if (!e.code) e = dmat_eigen(C, V, values);
    if (!e.code) {
        column_signs(V, n, rows, most, signs);
        mix_rows(V, n, f, rows, rotated, signs, sink);
    }
    dmat_destroy(&V);
    return e;
}

err start_dist_pca(dgrid *g, dmat *C, int64_t n, start_sink sink) {
    double *scratch = NULL;
    flat_mix *f = NULL;
    if (!dmat_finite(C))
        return err_make(ERR_NUMERICS, "start point", NULL,
                        "the second moment of R1 holds NaN or infinity");
    err e = flat_mix_create(n, &f);
    if (!e.code) e = MEM_NEW(&scratch, (2 * ROWS + 3) * n, "start of R1");
    e = comm_agree(dgrid_comm(g), e, "start of R1", NULL);
    if (!e.code) e = pca_with(g, C, n, f, scratch, sink);
    mem_free(scratch);
    flat_mix_destroy(&f);
    return e;
}
