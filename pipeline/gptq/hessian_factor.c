/* Order of the columns, damping and sums come in; the Hessian goes to the first rank or, in
 * blocks, to the cells of a grid; after Cholesky and a triangular inverse panels of U are
 * broadcast. */
#include "pipeline/gptq/hessian_factor.h"

#include "base/mem.h"
#include "base/size.h"
#include "mpi/dmat.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct hessian_factor {
    gptq_moments *m;
    const gptq_order *o;
    hessian_factor_options opts;
    gptq_damping done;
    double *whole; /* root only: H, then U [n, n]; NULL over a grid */
    dgrid *grid;
    dmat *part;     /* M, then L^-1 */
    double *rows;   /* rows of L^-1, or of M on their way there; over a grid */
    double *panel;  /* [block, n] */
    int64_t *order; /* columns in reversed places; over a grid */
};

enum { ROOT = 0 };

static bool over_grid(const hessian_factor_options *opts, int64_t n) {
    return n >= opts->dist_from && opts->grid.rows * opts->grid.cols > 1;
}

uint64_t hessian_factor_bytes(const hessian_factor_options *opts, int64_t n, int rank) {
    const uint64_t panels = (uint64_t)(size_min(opts->block, n) * n) * sizeof(double);
    if (!over_grid(opts, n))
        return (rank == ROOT ? (uint64_t)(n * n) * sizeof(double) : 0) + panels;
    const bool cell = rank < opts->grid.rows * opts->grid.cols;
    return (cell ? (uint64_t)grid_cell_entries(opts->grid, n, DMAT_BLOCK) * sizeof(double) : 0) +
           2 * panels + (uint64_t)(DMAT_BLOCK * n) * sizeof(double); /* rows on their way to all */
}

uint64_t hessian_factor_scratch_bytes(const hessian_factor_options *opts, int64_t n, int rank) {
    return !over_grid(opts, n) && rank == ROOT ? gptq_factor_bytes(n) : 0;
}

/* ---- on the first rank ---- */

/* Rows of the upper triangle into both. */
static void put_panel(const gptq_moments *m, int64_t first, int64_t rows, const int64_t *v,
                      double *h) {
    const int64_t n = m->n, cols = n - first;
    const double to_real = ldexp(m->factor, m->exponent);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = i; j < cols; j++) {
            const double x = (double)v[i * cols + j] * to_real;
            h[(first + i) * n + first + j] = x;
            h[(first + j) * n + first + i] = x;
        }
}

static err gather_whole(hessian_factor *s, const char *what) {
    const int64_t n = s->m->n, step = gptq_moments_panel_rows(n);
    const bool mine = comm_rank(s->m->c) == ROOT;
    err e = mine ? MEM_NEW(&s->whole, n * n, "Hessian") : err_none();
    e = comm_agree(s->m->c, e, what, NULL);
    for (int64_t first = 0; first < n && !e.code; first += step) {
        const int64_t rows = size_min(step, n - first);
        int64_t *v;
        e = gptq_moments_panel(s->m, first, rows, ROOT, &v);
        if (!e.code && mine) put_panel(s->m, first, rows, v, s->whole);
    }
    return e;
}

static err factor_whole(hessian_factor *s, const char *what) {
    err e = gather_whole(s, what);
    if (e.code) return e;
    if (s->whole) e = err_at(gptq_factor(s->o, s->opts.damp, s->whole, &s->done), what);
    return comm_agree(s->m->c, e, what, NULL);
}

static err get_whole(void *context, int64_t first, int64_t rows, const double **panel,
                     int64_t *stride) {
    hessian_factor *s = context;
    const int64_t n = s->m->n, cols = n - first;
    for (int64_t i = 0; i < rows && s->whole; i++)
        memcpy(s->panel + i * cols, s->whole + (first + i) * n + first,
               (size_t)cols * sizeof *s->panel);
    comm_bcast(s->m->c, s->panel, (uint64_t)(rows * cols) * sizeof *s->panel, ROOT);
    *panel = s->panel;
    *stride = cols;
    return err_none();
}

/* ---- over a grid ---- */

/* This cell's blocks of rows of the upper triangle of M: they are columns of its lower one, which
 * is what is factored. */
static void put_blocks(hessian_factor *s, int64_t first, int64_t rows, double lambda,
                       const int64_t *v) {
    const double to_real = ldexp(s->m->factor, s->m->exponent);
    const grid_shape g = s->opts.grid;
    const int row = comm_rank(s->m->c) / g.cols, col = comm_rank(s->m->c) % g.cols;
    double *part = dmat_part(s->part);
    if (!part) return;
    int64_t part_rows, part_cols;
    dmat_part_shape(s->part, &part_rows, &part_cols);
    /* entries of a part before `first` are its first local one from there on */
    const int64_t row0 = grid_part(first, DMAT_BLOCK, row, g.rows),
                  col0 = grid_part(first, DMAT_BLOCK, col, g.cols),
                  cols = grid_part(first + rows, DMAT_BLOCK, col, g.cols) - col0;
#pragma omp parallel for schedule(static)
    for (int64_t li = row0; li < part_rows; li += DMAT_BLOCK) {
        const int64_t width = size_min(DMAT_BLOCK, part_rows - li);
        const int64_t *in = v + (li - row0) * cols;
        for (int64_t lj = col0; lj < col0 + cols; lj++, in += width) {
            double *to = part + lj * part_rows + li;
            for (int64_t k = 0; k < width; k++) to[k] = (double)in[k] * to_real;
            const int64_t j = dmat_col(s->part, lj), k = j - dmat_row(s->part, li);
            if (k >= 0 && k < width) to[k] += lambda + (s->o->dead[s->order[j]] ? 1 : 0);
        }
    }
}

static err fill_grid(hessian_factor *s, double lambda) {
    const int64_t n = s->m->n, step = gptq_moments_panel_rows(n);
    err e = err_none();
    for (int64_t first = 0; first < n && !e.code; first += step) {
        const int64_t rows = size_min(step, n - first);
        int64_t *v;
        e = gptq_moments_cells(s->m, first, rows, s->opts.grid, &v);
        if (!e.code) put_blocks(s, first, rows, lambda, v);
    }
    return e;
}

static err factor_grid(hessian_factor *s, const char *what) {
    const comm *c = s->m->c;
    const int64_t n = s->m->n;
    err e = MEM_NEW(&s->rows, s->opts.block * n, "rows of a factor");
    if (!e.code) e = MEM_NEW(&s->order, n, "order of columns");
    e = comm_agree(c, e, what, NULL);
    for (int64_t i = 0; i < n && !e.code; i++) s->order[i] = s->o->column[n - 1 - i];
    if (!e.code) e = comm_agree(c, gptq_moments_arrange(s->m, s->order, false), what, NULL);
    if (!e.code) e = dgrid_create(c, s->opts.grid, 0, s->opts.blas_threads, &s->grid);
    if (!e.code) e = dmat_create(s->grid, n, "Hessian", &s->part);
    for (bool failed = true; failed && !e.code;) {
        s->done.lambda = gptq_lambda(s->o, s->opts.damp, s->done.raises);
        e = fill_grid(s, s->done.lambda);
        if (!e.code) e = dmat_cholesky_inverse(s->part, &failed);
        if (!e.code && failed && ++s->done.raises > GPTQ_MAX_RAISES)
            e = err_make(ERR_NUMERICS, what, "give more calibration text or a larger weights.damp",
                         "the Hessian is not positive definite even with %g on its diagonal",
                         s->done.lambda);
    }
    if (!e.code) e = comm_agree(c, gptq_moments_arrange(s->m, s->order, true), what, NULL);
    return e;
}

static err get_grid(void *context, int64_t first, int64_t rows, const double **panel,
                    int64_t *stride) {
    hessian_factor *s = context;
    const int64_t n = s->m->n, cols = n - first;
    dmat_get_rows_lower(s->part, n - first - rows, rows, s->rows);
    for (int64_t i = 0; i < rows; i++) {
        const double *from = s->rows + (rows - 1 - i) * n; /* row n-1-first-i of L^-1 */
        double *to = s->panel + i * cols;
        for (int64_t j = 0; j < cols; j++) to[j] = j < i ? 0 : from[n - 1 - first - j];
    }
    *panel = s->panel;
    *stride = cols;
    return err_none();
}

err hessian_factor_create(gptq_moments *m, const gptq_order *o, const hessian_factor_options *opts,
                          const char *what, hessian_factor **out) {
    hessian_factor *s = calloc(1, sizeof *s);
    if (!s) abort();
    *s = (hessian_factor){.m = m, .o = o, .opts = *opts};
    s->opts.block = size_min(opts->block, m->n);
    err e = MEM_NEW(&s->panel, s->opts.block * m->n, "panel of a factor");
    e = comm_agree(m->c, e, what, NULL);
    if (!e.code) e = over_grid(opts, m->n) ? factor_grid(s, what) : factor_whole(s, what);
    comm_bcast(m->c, &s->done, sizeof s->done, ROOT);
    if (e.code) hessian_factor_destroy(&s);
    *out = s;
    return e;
}

void hessian_factor_destroy(hessian_factor **s) {
    if (!*s) return;
    mem_free((*s)->whole);
    mem_free((*s)->rows);
    mem_free((*s)->panel);
    mem_free((*s)->order);
    dmat_destroy(&(*s)->part);
    dgrid_destroy(&(*s)->grid);
    free(*s);
    *s = NULL;
}

gptq_panels hessian_factor_panels(hessian_factor *s) {
    return (gptq_panels){.get = s->part ? get_grid : get_whole, .context = s};
}

const gptq_damping *hessian_factor_damping(const hessian_factor *s) {
    return &s->done;
}
