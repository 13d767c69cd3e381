/* Vectors and norms of a matrix that is dealt over a grid: what cells sum is put side by side and
 * added in the order of the cells. */
#include "base/mem.h"
#include "base/size.h"
#include "mpi/dmat_internal.h"

#include <math.h>

enum { CHUNK = 256 }; /* rows that one thread takes of a product with a vector */

static err side_by_side(const dmat *m, int parts, double **out) {
    err e = MEM_NEW(out, parts * m->n, "sums of cells");
    return comm_agree(m->g->c, e, "sums of cells", NULL);
}

static void add_up(const dmat *m, int parts, double *sums, double *y) {
    dmat_share(m->g->c, sums, parts * m->n);
    for (int64_t i = 0; i < m->n; i++) {
        double s = 0;
        for (int p = 0; p < parts; p++) s += sums[p * m->n + i];
        y[i] = s;
    }
}

/* Of this cell: rows of M x over its columns, in order; whatever the threads. */
static void part_times(const dmat *m, const double *x, double *sums) {
#pragma omp parallel for
    for (int64_t i0 = 0; i0 < m->rows; i0 += CHUNK) {
        double s[CHUNK] = {0};
        const int64_t b = size_min(CHUNK, m->rows - i0);
        for (int64_t j = 0; j < m->cols; j++) {
            const double f = x[dmat_col(m, j)], *in = m->part + j * m->rows + i0;
            for (int64_t i = 0; i < b; i++) s[i] += f * in[i];
        }
        for (int64_t i = 0; i < b; i++) sums[dmat_row(m, i0 + i)] = s[i];
    }
}

static void part_times_transposed(const dmat *m, const double *x, double *sums) {
#pragma omp parallel for
    for (int64_t j = 0; j < m->cols; j++) {
        double s = 0;
        for (int64_t i = 0; i < m->rows; i++) s += m->part[j * m->rows + i] * x[dmat_row(m, i)];
        sums[dmat_col(m, j)] = s;
    }
}

err dmat_times(bool trans, const dmat *m, const double *x, double *y) {
    const int parts = trans ? m->g->shape.rows : m->g->shape.cols;
    double *sums;
    err e = side_by_side(m, parts, &sums);
    if (!e.code) {
        if (m->part && trans) part_times_transposed(m, x, sums + m->g->row * m->n);
        if (m->part && !trans) part_times(m, x, sums + m->g->col * m->n);
        add_up(m, parts, sums, y);
    }
    mem_free(sums);
    return e;
}

/* out [n]: of each column the sum of its absolute values, or squares. */
static err column_sums(const dmat *m, bool squares, double *out) {
    const int parts = m->g->shape.rows;
    double *sums;
    err e = side_by_side(m, parts, &sums);
    if (!e.code) {
#pragma omp parallel for
        for (int64_t j = 0; j < m->cols; j++) {
            const double *column = m->part + j * m->rows;
            double s = 0;
            for (int64_t i = 0; i < m->rows; i++)
                s += squares ? column[i] * column[i] : fabs(column[i]);
            sums[m->g->row * m->n + dmat_col(m, j)] = s;
        }
        add_up(m, parts, sums, out);
    }
    mem_free(sums);
    return e;
}

err dmat_norm_1(const dmat *m, double *out) {
    double *sums;
    *out = 0;
    err e = side_by_side(m, 1, &sums);
    if (!e.code) e = column_sums(m, false, sums);
    for (int64_t j = 0; j < m->n && !e.code; j++)
        if (sums[j] > *out || isnan(sums[j])) *out = sums[j];
    mem_free(sums);
    return e;
}

err dmat_col_squares(const dmat *m, double *out) {
    return column_sums(m, true, out);
}

double dmat_sum_of_cells(const dmat *m, double mine) {
    const int cells = m->g->shape.rows * m->g->shape.cols;
    double all = 0;
    for (int cell = 0; cell < cells; cell++) {
        double s = mine;
        comm_bcast(m->g->c, &s, sizeof s, cell);
        all += s;
    }
    return all;
}

double dmat_sum_squares(const dmat *m) {
    double mine = 0;
    for (int64_t j = 0; j < m->cols; j++) {
        double s = 0;
        for (int64_t i = 0; i < m->rows; i++)
            s += m->part[j * m->rows + i] * m->part[j * m->rows + i];
        mine += s;
    }
    return dmat_sum_of_cells(m, mine);
}

double dmat_max_minus_identity(const dmat *m) {
    double most = 0;
    for (int64_t j = 0; j < m->cols; j++)
        for (int64_t i = 0; i < m->rows; i++) {
            double d = fabs(m->part[j * m->rows + i] - (dmat_row(m, i) == dmat_col(m, j)));
            if (isnan(d)) d = INFINITY; /* a maximum over ranks may lose a NaN */
            if (d > most) most = d;
        }
    comm_max_f64(m->g->c, &most, 1);
    return most;
}

bool dmat_finite(const dmat *m) {
    int64_t bad = 0;
    for (int64_t i = 0; i < dmat_part_entries(m); i++) bad += !isfinite(m->part[i]);
    comm_sum_i64(m->g->c, &bad, 1);
    return bad == 0;
}
