/* Hadamard kinds apply signs and the fast transform; dense ones a matrix product in the precision
 * of the rows, by blocks of columns that are rounded as they are needed. */
#include "rotations/rotation.h"

#include "base/gemm.h"
#include "base/mem.h"
#include "base/size.h"
#include "rotations/fwht.h"
#include "rotations/rotation_internal.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

enum {
    F32_COPY = 2048,   /* dense orders up to this hold R in fp32 too */
    F32_COLUMNS = 512, /* larger ones round so many columns of R at a time */
};
static const int64_t PANEL_BYTES = 32 << 20; /* of a large dense rotation's copy of rows */

static err create(int64_t n, rotation_kind kind, rotation **out) {
    *out = NULL;
    if (n < 1) return err_make(ERR_BUG, "rotation", NULL, "impossible order %" PRId64, n);
    err e = MEM_NEW(out, 1, "rotation");
    if (e.code) return e;
    (*out)->kind = kind;
    (*out)->n = (*out)->block = n;
    return e;
}

static err finish(err e, rotation **out) {
    if (e.code) rotation_destroy(out);
    return e;
}

err rotation_create_identity(int64_t n, rotation **out) {
    return create(n, ROTATION_IDENTITY, out);
}

static err add_signs(rotation *r) {
    err e = MEM_NEW(&r->signs, r->n, "signs of a rotation");
    return e;
}

err rotation_create_blocks(int64_t n, int64_t block, const int8_t *signs, rotation **out) {
    *out = NULL;
    if (block < 1 || n % block)
        return err_make(ERR_USAGE, "rotation", "choose a block that divides the size",
                        "blocks of %" PRId64 " do not divide %" PRId64, block, n);
    err e = create(n, ROTATION_HADAMARD, out);
    if (e.code) return e;
    (*out)->block = block;
    e = fwht_create(block, &(*out)->hadamard);
    if (!e.code && signs) e = add_signs(*out);
    if (!e.code && signs) memcpy((*out)->signs, signs, (size_t)n);
    return finish(e, out);
}

err rotation_create_hadamard(int64_t n, const int8_t *signs, rotation **out) {
    return rotation_create_blocks(n, n, signs, out);
}

err rotation_create_random_hadamard(int64_t n, uint64_t seed, rng_purpose purpose,
                                    uint64_t first_index, rotation **out) {
    err e = rotation_create_blocks(n, n, NULL, out);
    if (e.code) return e;
    e = add_signs(*out);
    for (int64_t i = 0; i < n && !e.code; i++)
        (*out)->signs[i] = (int8_t)rng_sign(seed, purpose, first_index + (uint64_t)i);
    return finish(e, out);
}

static int64_t panel_rows(int64_t n) {
    return size_max(64, size_min(1024, PANEL_BYTES / (int64_t)sizeof(double) / n));
}

uint64_t rotation_dense_bytes(int64_t n) {
    const uint64_t rounded = (uint64_t)(n <= F32_COPY ? n : F32_COLUMNS) * sizeof(float),
                   panel = n > ROTATION_SMALL ? (uint64_t)panel_rows(n) * sizeof(double) : 0;
    return (uint64_t)n * ((uint64_t)n * sizeof(double) + rounded + panel);
}

static err dense_alloc(rotation *r, bool f32) {
    const int64_t n = r->n;
    err e = f32 ? err_none() : MEM_NEW(&r->dense, n * n, "dense rotation");
    if (!e.code && (f32 || n <= F32_COPY)) {
        e = MEM_NEW(&r->dense32, n * n, "dense rotation in fp32");
    }
    if (!e.code && n > F32_COPY && !f32) {
        e = MEM_NEW(&r->columns, n * F32_COLUMNS, "columns of a rotation");
    }
    if (!e.code && n > ROTATION_SMALL) {
        r->panel_rows = panel_rows(n);
        e = mem_alloc(r->panel_rows * n, sizeof(double), "rows to rotate", &r->panel);
    }
    return e;
}

err rotation_create_dense(int64_t n, const double *R, rotation **out) {
    err e = create(n, ROTATION_DENSE, out);
    if (e.code) return e;
    e = dense_alloc(*out, false);
    if (!e.code && R) rotation_put_rows(*out, 0, n, R);
    return finish(e, out);
}

err rotation_create_dense_f32(int64_t n, rotation **out) {
    err e = create(n, ROTATION_DENSE, out);
    return e.code ? e : finish(dense_alloc(*out, true), out);
}

void rotation_put_rows(rotation *r, int64_t row, int64_t rows, const double *R) {
    const int64_t at = row * r->n, count = rows * r->n;
    memcpy(r->dense + at, R, (size_t)count * sizeof *R);
    for (int64_t i = 0; r->dense32 && i < count; i++) r->dense32[at + i] = (float)R[i];
}

void rotation_put_rows_f32(rotation *r, int64_t row, int64_t rows, const float *R) {
    assert(!r->dense);
    memcpy(r->dense32 + row * r->n, R, (size_t)(rows * r->n) * sizeof *R);
}

void rotation_destroy(rotation **r) {
    if (!*r) return;
    fwht_destroy(&(*r)->hadamard);
    mem_free((*r)->signs);
    mem_free((*r)->dense);
    mem_free((*r)->dense32);
    mem_free((*r)->panel);
    mem_free((*r)->columns);
    mem_free(*r);
    *r = NULL;
}

int64_t rotation_size(const rotation *r) {
    return r->n;
}

rotation_kind rotation_get_kind(const rotation *r) {
    return r->kind;
}

int64_t rotation_block(const rotation *r) {
    return r->block;
}

const int8_t *rotation_signs(const rotation *r) {
    return r->signs;
}

static void large_dense_rows_f64(const rotation *r, double *x, int64_t rows, int64_t ld,
                                 bool transpose) {
    const int64_t n = r->n;
#pragma omp critical(rotation_panel)
    for (int64_t i = 0; i < rows; i += r->panel_rows) {
        int64_t m = size_min(r->panel_rows, rows - i);
        rotation_copy_rows_f64(x + i * ld, m, ld, n, r->panel);
        gemm_f64(GEMM_N, gemm_op_of(transpose), m, n, n, r->panel, n, r->dense, n, GEMM_SET,
                 x + i * ld, ld);
    }
}

/* Columns [j, j + m) of R, or of R^T, rounded to fp32: [n, F32_COLUMNS]. */
static void round_columns(const rotation *r, int64_t j, int64_t m, bool transpose) {
    const int64_t n = r->n;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < m; c++)
            r->columns[i * F32_COLUMNS + c] =
                (float)(transpose ? r->dense[(j + c) * n + i] : r->dense[i * n + j + c]);
}

static void large_dense_rows_f32(const rotation *r, float *x, int64_t rows, int64_t ld,
                                 bool transpose) {
    const int64_t n = r->n;
#pragma omp critical(rotation_panel)
    for (int64_t i = 0; i < rows; i += r->panel_rows) {
        int64_t m = size_min(r->panel_rows, rows - i);
        float *part = x + i * ld;
        rotation_copy_rows_f32(part, m, ld, n, r->panel);
        if (r->dense32)
            gemm_f32(GEMM_N, gemm_op_of(transpose), m, n, n, r->panel, n, r->dense32, n, GEMM_SET,
                     part, ld);
        for (int64_t j = 0; j < n && !r->dense32; j += F32_COLUMNS) {
            int64_t width = size_min(F32_COLUMNS, n - j);
            round_columns(r, j, width, transpose);
            gemm_f32(GEMM_N, GEMM_N, m, width, n, r->panel, n, r->columns, F32_COLUMNS, GEMM_SET,
                     part + j, ld);
        }
    }
}

void rotation_apply_f64(const rotation *r, double *x, int64_t rows, int64_t ld, bool transpose) {
    if (!r || r->kind == ROTATION_IDENTITY) return;
    assert(r->kind == ROTATION_HADAMARD || r->dense);
    if (r->kind == ROTATION_HADAMARD)
        rotation_hadamard_rows_f64(r, x, rows, ld, transpose);
    else if (r->n <= ROTATION_SMALL)
        rotation_small_dense_rows_f64(r, r->dense, x, rows, ld, transpose);
    else
        large_dense_rows_f64(r, x, rows, ld, transpose);
}

void rotation_apply_f32(const rotation *r, float *x, int64_t rows, int64_t ld, bool transpose) {
    if (!r || r->kind == ROTATION_IDENTITY) return;
    if (r->kind == ROTATION_HADAMARD)
        rotation_hadamard_rows_f32(r, x, rows, ld, transpose);
    else if (r->n <= ROTATION_SMALL)
        rotation_small_dense_rows_f32(r, r->dense32, x, rows, ld, transpose);
    else
        large_dense_rows_f32(r, x, rows, ld, transpose);
}

void rotation_product_f64(const rotation *r, const double *x, int64_t rows, double *y) {
    assert(r->kind == ROTATION_DENSE && r->dense);
    gemm_f64(GEMM_N, GEMM_N, rows, r->n, r->n, x, r->n, r->dense, r->n, GEMM_SET, y, r->n);
}

/* Rows [i0, i0 + m) of the identity. */
static void unit_rows(int64_t n, int64_t i0, int64_t m, double *out) {
    memset(out, 0, (size_t)(m * n) * sizeof(double));
    for (int64_t i = 0; i < m; i++) out[i * n + i0 + i] = 1.0;
}

void rotation_dense_rows(const rotation *r, int64_t row, int64_t rows, double *out) {
    const int64_t at = row * r->n, count = rows * r->n;
    if (r->dense) {
        memcpy(out, r->dense + at, (size_t)count * sizeof *out);
    } else if (r->dense32) {
        for (int64_t i = 0; i < count; i++) out[i] = (double)r->dense32[at + i];
    } else {
        unit_rows(r->n, row, rows, out);
        rotation_apply_f64(r, out, rows, r->n, false);
    }
}

err rotation_to_dense(const rotation *r, double *out) {
    rotation_dense_rows(r, 0, r->n, out);
    return err_none();
}

static double distance_from_unit(const double *x, int64_t n, int64_t i0, int64_t m) {
    double most = 0;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double d = fabs(x[i * n + j] - (j == i0 + i ? 1.0 : 0.0));
            /* Written so that a NaN counts as infinitely far. */
            if (!(d <= most)) most = isnan(d) ? INFINITY : d;
        }
    return most;
}

/* Row i of R^T R is e_i R^T R: a block of unit vectors rotated back and forth, or for a dense R the
 * product of its columns with R. */
err rotation_orthogonality(const rotation *r, double *max) {
    const int64_t n = r->n, per = size_min(n, 256);
    double *rows;
    *max = INFINITY;
    err e = MEM_NEW(&rows, per * n, "rows of R^T R");
    if (e.code) return e;
    assert(r->kind != ROTATION_DENSE || r->dense);
    double most = 0;
    for (int64_t i = 0; i < n; i += per) {
        int64_t m = size_min(per, n - i);
        if (r->kind == ROTATION_DENSE) {
            gemm_f64(GEMM_T, GEMM_N, m, n, n, r->dense + i, n, r->dense, n, GEMM_SET, rows, n);
        } else {
            unit_rows(n, i, m, rows);
            rotation_apply_f64(r, rows, m, n, true);
            rotation_apply_f64(r, rows, m, n, false);
        }
        most = fmax(most, distance_from_unit(rows, n, i, m));
    }
    mem_free(rows);
    *max = most;
    return e;
}
