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

/* The type in which rows go to all ranks. */
typedef enum row_type { ROWS_F64, ROWS_F32, ROWS_BF16 } row_type;

static size_t size_of(row_type t) {
    return t == ROWS_F64 ? sizeof(double) : t == ROWS_F32 ? sizeof(float) : sizeof(bf16);
}

/* A piece of a run, its first `cols` columns at its cell, as that has it: [cols][rows of the run].
 */
static void piece_pack(const dmat *m, const run *r, int64_t cols, row_type type, void *to) {
    for (int64_t j = 0; j < cols; j++) {
        const double *in = m->part + j * m->rows + r->local;
        const int64_t at = j * r->rows;
        if (type == ROWS_F64) memcpy((double *)to + at, in, (size_t)r->rows * sizeof *in);
        for (int64_t i = 0; type == ROWS_F32 && i < r->rows; i++)
            ((float *)to)[at + i] = (float)in[i];
        for (int64_t i = 0; type == ROWS_BF16 && i < r->rows; i++)
            ((bf16 *)to)[at + i] = half_to_bf16((float)in[i]);
    }
}

/* Into the rows `to` of the whole width. */
static void piece_unpack(const dmat *m, const run *r, int cell_col, int64_t cols, row_type type,
                         const void *from, void *to) {
    const int64_t nb = m->g->block;
#pragma omp parallel for if (r->rows * cols >= PARALLEL_FROM)
    for (int64_t j0 = 0; j0 < cols; j0 += nb) {
        const int64_t out = dmat_whole(j0, nb, cell_col, m->g->shape.cols);
        const int64_t b = size_min(nb, cols - j0);
        for (int64_t i = 0; i < r->rows; i++)
            for (int64_t j = 0; j < b; j++) {
                const int64_t in = (j0 + j) * r->rows + i, at = i * m->n + out + j;
                if (type == ROWS_F64)
                    ((double *)to)[at] = ((const double *)from)[in];
                else if (type == ROWS_F32)
                    ((float *)to)[at] = ((const float *)from)[in];
                else
                    ((bf16 *)to)[at] = ((const bf16 *)from)[in];
            }
    }
}

/* Room for so many numbers; the ranks end together where there is none. */
static void *room_for(int64_t n, size_t size) {
    void *p;
    if (mem_alloc(n, size, "rows of a distributed matrix", &p).code)
        comm_abort(ERR_NOFIT, "no memory for rows of a distributed matrix");
    return p;
}

/* lower: no columns behind the last row of a run. */
static void get_rows(const dmat *m, int64_t row, int64_t rows, row_type type, bool lower,
                     void *out) {
    const size_t size = size_of(type);
    void *piece = room_for(m->g->block * grid_part(m->n, m->g->block, 0, m->g->shape.cols), size);
    for (int64_t at = row; at < row + rows;) {
        const run r = run_at(m, at, row + rows);
        at += r.rows;
        const int64_t end = lower ? at : m->n;
        for (int q = 0; q < m->g->shape.cols; q++) {
            const int64_t cols = grid_part(end, m->g->block, q, m->g->shape.cols);
            if (m->part && m->g->row == r.cell_row && m->g->col == q)
                piece_pack(m, &r, cols, type, piece);
            comm_bcast(m->g->c, piece, (uint64_t)(r.rows * cols) * size,
                       r.cell_row * m->g->shape.cols + q);
            piece_unpack(m, &r, q, cols, type, piece,
                         (char *)out + (r.row - row) * m->n * (int64_t)size);
        }
    }
    mem_free(piece);
}

void dmat_get_rows(const dmat *m, int64_t row, int64_t rows, double *out) {
    get_rows(m, row, rows, ROWS_F64, false, out);
}

void dmat_get_rows_lower(const dmat *m, int64_t row, int64_t rows, double *out) {
    get_rows(m, row, rows, ROWS_F64, true, out);
}

void dmat_get_rows_f32(const dmat *m, int64_t row, int64_t rows, float *out) {
    get_rows(m, row, rows, ROWS_F32, false, out);
}

void dmat_get_rows_bf16(const dmat *m, int64_t row, int64_t rows, bf16 *out) {
    get_rows(m, row, rows, ROWS_BF16, false, out);
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

/* Pieces of the sums, in units of 2^exponent, into the part of this cell. */
static void take_sums(dmat *m, int64_t row, int64_t rows, const int64_t *sums, int exponent) {
    for (int64_t at = row; at < row + rows;) {
        const run r = run_at(m, at, row + rows);
        at += r.rows;
        if (r.cell_row != m->g->row) continue;
        for (int64_t j = 0; j < m->cols; j++)
            for (int64_t i = 0; i < r.rows; i++)
                m->part[j * m->rows + r.local + i] = ldexp((double)*sums++, exponent);
    }
}

/* All pieces of a cell behind each other, cell after cell, are the parts of one sum. */
void dmat_sum_rows_i64(dmat *m, int64_t row, int64_t rows, int64_t *v, int exponent, int bytes) {
    const comm *c = m->g->c;
    const grid_shape g = m->g->shape;
    int64_t *pieces = room_for(rows * m->n, sizeof *pieces),
            *from = room_for(comm_size(c) + 1, sizeof *from), end = 0;
    for (int rank = 0; rank < comm_size(c); rank++) {
        const int p = rank / g.cols, q = rank % g.cols;
        from[rank] = end;
        for (int64_t at = row; at < row + rows && p < g.rows;) {
            const run r = run_at(m, at, row + rows);
            at += r.rows;
            if (r.cell_row != p) continue;
            piece_gather_i64(m, &r, q, v + (r.row - row) * m->n, pieces + end);
            end += r.rows * grid_part(m->n, m->g->block, q, g.cols);
        }
    }
    from[comm_size(c)] = end;
    comm_sum_i64_parts(c, pieces, from, bytes);
    if (m->part) take_sums(m, row, rows, pieces + from[comm_rank(c)], exponent);
    mem_free(pieces);
    mem_free(from);
}
