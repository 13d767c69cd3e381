/* Rows of a matrix that is dealt over a grid, from all ranks to the cells and back. */
#include "base/mem.h"
#include "base/size.h"
#include "mpi/dmat_internal.h"

#include <math.h>
#include <string.h>

enum { PARALLEL_FROM = 1 << 16 }; /* numbers, for element-wise work */

/* A run is rows of one block: they stand behind each other in the part of one row of
 * cells. */

typedef struct run {
    int64_t row, rows; /* in the whole */
    int64_t local;     /* first row in the part */
    int cell_row;
} run;

static run run_at(const dmat *m, int64_t row, int64_t end) {
    const int64_t nb = m->g->block, block = row / nb, across = m->g->shape.rows;
    run r = {.row = row, .rows = size_min(end, (block + 1) * nb) - row};
    r.cell_row = (int)(block % across);
    r.local = block / across * nb + row % nb;
    return r;
}

void dmat_put_rows(dmat *m, int64_t row, int64_t rows, const double *from) {
    const int64_t nb = m->g->block;
    if (!m->part) return;
    for (int64_t at = row; at < row + rows;) {
        const run r = run_at(m, at, row + rows);
        at += r.rows;
        if (r.cell_row != m->g->row) continue;
        const double *in = from + (r.row - row) * m->n;
#pragma omp parallel for if (r.rows * m->cols >= PARALLEL_FROM)
        for (int64_t j0 = 0; j0 < m->cols; j0 += nb)
            for (int64_t i = 0; i < r.rows; i++)
                for (int64_t j = j0; j < m->cols && j < j0 + nb; j++)
                    m->part[j * m->rows + r.local + i] = in[i * m->n + dmat_col(m, j)];
    }
}

/* A piece of a run, as its cell has it: [columns of the cell][rows of the run]. */
static void piece_pack(const dmat *m, const run *r, bool f32, void *to) {
    for (int64_t j = 0; j < m->cols; j++) {
        const double *in = m->part + j * m->rows + r->local;
        if (!f32) memcpy((double *)to + j * r->rows, in, (size_t)r->rows * sizeof *in);
        for (int64_t i = 0; f32 && i < r->rows; i++) ((float *)to)[j * r->rows + i] = (float)in[i];
    }
}

/* Into the rows `to` of the whole width. */
static void piece_unpack(const dmat *m, const run *r, int cell_col, bool f32, const void *from,
                         void *to) {
    const int64_t nb = m->g->block, cols = grid_part(m->n, nb, cell_col, m->g->shape.cols);
#pragma omp parallel for if (r->rows * cols >= PARALLEL_FROM)
    for (int64_t j0 = 0; j0 < cols; j0 += nb) {
        const int64_t out = dmat_whole(j0, nb, cell_col, m->g->shape.cols);
        const int64_t b = size_min(nb, cols - j0);
        for (int64_t i = 0; i < r->rows; i++)
            for (int64_t j = 0; j < b; j++) {
                const int64_t in = (j0 + j) * r->rows + i, at = i * m->n + out + j;
                if (f32)
                    ((float *)to)[at] = ((const float *)from)[in];
                else
                    ((double *)to)[at] = ((const double *)from)[in];
            }
    }
}

/* Room for one piece of any cell; the ranks end together where there is none. */
static void *piece_room(const dmat *m, size_t size) {
    void *p;
    const int64_t most = m->g->block * grid_part(m->n, m->g->block, 0, m->g->shape.cols);
    if (mem_alloc(most, size, "rows of a distributed matrix", &p).code)
        comm_abort(ERR_NOFIT, "no memory for rows of a distributed matrix");
    return p;
}

static void get_rows(const dmat *m, int64_t row, int64_t rows, bool f32, void *out) {
    const size_t size = f32 ? sizeof(float) : sizeof(double);
    void *piece = piece_room(m, size);
    for (int64_t at = row; at < row + rows;) {
        const run r = run_at(m, at, row + rows);
        at += r.rows;
        for (int q = 0; q < m->g->shape.cols; q++) {
            const int64_t cols = grid_part(m->n, m->g->block, q, m->g->shape.cols);
            if (m->part && m->g->row == r.cell_row && m->g->col == q) piece_pack(m, &r, f32, piece);
            comm_bcast(m->g->c, piece, (uint64_t)(r.rows * cols) * size,
                       r.cell_row * m->g->shape.cols + q);
            piece_unpack(m, &r, q, f32, piece, (char *)out + (r.row - row) * m->n * (int64_t)size);
        }
    }
    mem_free(piece);
}

void dmat_get_rows(const dmat *m, int64_t row, int64_t rows, double *out) {
    get_rows(m, row, rows, false, out);
}

void dmat_get_rows_f32(const dmat *m, int64_t row, int64_t rows, float *out) {
    get_rows(m, row, rows, true, out);
}

/* The columns of cell column q, from rows v of the whole width, as a piece. */
static void piece_gather_i64(const dmat *m, const run *r, int q, const int64_t *v, int64_t *piece) {
    const int64_t nb = m->g->block, cols = grid_part(m->n, nb, q, m->g->shape.cols);
#pragma omp parallel for if (r->rows * cols >= PARALLEL_FROM)
    for (int64_t j0 = 0; j0 < cols; j0 += nb) {
        const int64_t in = dmat_whole(j0, nb, q, m->g->shape.cols), b = size_min(nb, cols - j0);
        for (int64_t i = 0; i < r->rows; i++)
            for (int64_t j = 0; j < b; j++) piece[(j0 + j) * r->rows + i] = v[i * m->n + in + j];
    }
}

void dmat_sum_rows_i64(dmat *m, int64_t row, int64_t rows, int64_t *v, int exponent) {
    int64_t *piece = piece_room(m, sizeof *piece);
    for (int64_t at = row; at < row + rows;) {
        const run r = run_at(m, at, row + rows);
        at += r.rows;
        for (int q = 0; q < m->g->shape.cols; q++) {
            const int64_t cols = grid_part(m->n, m->g->block, q, m->g->shape.cols);
            piece_gather_i64(m, &r, q, v + (r.row - row) * m->n, piece);
            comm_sum_i64_to(m->g->c, piece, r.rows * cols, r.cell_row * m->g->shape.cols + q);
            if (!m->part || m->g->row != r.cell_row || m->g->col != q) continue;
            for (int64_t j = 0; j < cols; j++)
                for (int64_t i = 0; i < r.rows; i++)
                    m->part[j * m->rows + r.local + i] =
                        ldexp((double)piece[j * r.rows + i], exponent);
        }
    }
    mem_free(piece);
}
