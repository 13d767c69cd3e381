/* Block-cyclic matrices by ScaLAPACK. Row-major callers see the transpose of what Fortran has,
 * which each wrapper allows for. Grids are made with BLACS from a communicator of the cells alone.
 */
#include "mpi/dmat_internal.h"

#include "base/gemm.h"
#include "base/mem.h"
#include "base/size.h"
#include "mpi/comm_internal.h"

#include <inttypes.h>
#include <string.h>

/* BLACS (C) and ScaLAPACK (Fortran) ship no headers. Fortran routines take the lengths of their
 * character arguments at the end; PBLAS is written in C and takes none. */
int Csys2blacs_handle(MPI_Comm c);
void Cfree_blacs_system_handle(int handle);
void Cblacs_gridinit(int *context, const char *order, int rows, int cols);
void Cblacs_gridexit(int context);
void Cblacs_set(int context, int what, const int *value);

void pb_topset_(const int *context, const char *op, const char *scope, const char *top,
                size_t op_len, size_t scope_len, size_t top_len);
void pdgemm_(const char *ta, const char *tb, const int *m, const int *n, const int *k,
             const double *alpha, const double *a, const int *ia, const int *ja, const int *da,
             const double *b, const int *ib, const int *jb, const int *db, const double *beta,
             double *c, const int *ic, const int *jc, const int *dc);
void pdtran_(const int *m, const int *n, const double *alpha, const double *a, const int *ia,
             const int *ja, const int *da, const double *beta, double *c, const int *ic,
             const int *jc, const int *dc);
void pdgetrf_(const int *m, const int *n, double *a, const int *ia, const int *ja, const int *da,
              int *pivots, int *info);
void pdgetrs_(const char *trans, const int *n, const int *columns, const double *a, const int *ia,
              const int *ja, const int *da, const int *pivots, double *b, const int *ib,
              const int *jb, const int *db, int *info, size_t trans_len);
void pdpotrf_(const char *uplo, const int *n, double *a, const int *ia, const int *ja,
              const int *da, int *info, size_t uplo_len);
void pdtrtri_(const char *uplo, const char *diag, const int *n, double *a, const int *ia,
              const int *ja, const int *da, int *info, size_t uplo_len, size_t diag_len);
void pdsyevd_(const char *job, const char *uplo, const int *n, double *a, const int *ia,
              const int *ja, const int *da, double *w, double *z, const int *iz, const int *jz,
              const int *dz, double *work, const int *lwork, int *iwork, const int *liwork,
              int *info, size_t job_len, size_t uplo_len);
void pdgeqrf_(const int *m, const int *n, double *a, const int *ia, const int *ja, const int *da,
              double *tau, double *work, const int *lwork, int *info);
void pdorgqr_(const int *m, const int *n, const int *k, double *a, const int *ia, const int *ja,
              const int *da, const double *tau, double *work, const int *lwork, int *info);

enum { BLACS_REPEATABLE = 15 }; /* Cblacs_set: sums in the same order each time */
static const int ONE = 1;

/* Grid. */

static void start_blacs(dgrid *g) {
    const int yes = 1;
    g->row = comm_rank(g->c) / g->shape.cols;
    g->col = comm_rank(g->c) % g->shape.cols;
    g->system = Csys2blacs_handle(comm_handle(g->cells));
    g->context = g->system;
    Cblacs_gridinit(&g->context, "Row", g->shape.rows, g->shape.cols);
    Cblacs_set(g->context, BLACS_REPEATABLE, &yes);
    /* ScaLAPACK keeps the topologies of its messages by process, not by grid, and some routines
     * leave theirs behind: ranks that came from different grids would wait for each other. */
    for (const char *scope = "RCA"; *scope; scope++) {
        pb_topset_(&g->context, "B", scope, " ", 1, 1, 1);
        pb_topset_(&g->context, "C", scope, " ", 1, 1, 1);
    }
}

err dgrid_create(const comm *c, grid_shape shape, int block, int blas_threads, dgrid **out) {
    const int64_t cells = (int64_t)shape.rows * shape.cols;
    dgrid *g = NULL;
    *out = NULL;
    if (shape.rows < 1 || shape.cols < 1 || cells > comm_size(c))
        return err_make(ERR_MISMATCH, "process grid", "start more ranks, or choose a smaller grid",
                        "a grid of %dx%d does not fit on %d ranks", shape.rows, shape.cols,
                        comm_size(c));
    err e = MEM_NEW(&g, 1, "process grid");
    e = comm_agree(c, e, "making the process grid", NULL);
    if (e.code) {
        mem_free(g);
        return e;
    }
    *g = (dgrid){.c = c, .shape = shape, .row = -1, .col = -1};
    g->block = block > 0 ? block : DMAT_BLOCK;
    g->threads = blas_threads > 0 ? blas_threads : 1;
    e = comm_split(c, comm_rank(c) < cells ? 0 : -1, "cells", &g->cells);
    if (e.code) {
        mem_free(g);
        return e;
    }
    if (g->cells) start_blacs(g);
    *out = g;
    return e;
}

void dgrid_destroy(dgrid **g) {
    if (!*g) return;
    if ((*g)->cells) {
        Cblacs_gridexit((*g)->context);
        Cfree_blacs_system_handle((*g)->system);
    }
    comm_destroy(&(*g)->cells);
    mem_free(*g);
    *g = NULL;
}

bool dgrid_is_cell(const dgrid *g) {
    return g->cells != NULL;
}

grid_shape dgrid_shape(const dgrid *g) {
    return g->shape;
}

const comm *dgrid_comm(const dgrid *g) {
    return g->c;
}

/* Matrix. */

static err dmat_alloc(dmat *m, const char *what) {
    int lead = 1, entries;
    err e = size_to_int(m->n, what, &m->order);
    if (!e.code) e = size_to_int(size_max(1, m->rows), what, &lead);
    /* ScaLAPACK counts entries of a part in int here and there. */
    if (!e.code) e = size_to_int(m->rows * m->cols, what, &entries);
    if (e.code) return e;
    const int desc[9] = {1, m->g->context, m->order, m->order, m->g->block, m->g->block, 0,
                         0, lead};
    memcpy(m->desc, desc, sizeof desc);
    if (!m->g->cells) return e;
    e = MEM_NEW(&m->part, m->rows * m->cols, what);
    return e;
}

err dmat_create(dgrid *g, int64_t n, const char *what, dmat **out) {
    *out = NULL;
    dmat *m;
    err e = MEM_NEW(&m, 1, what);
    if (!e.code && n < 1) e = err_make(ERR_BUG, what, NULL, "impossible order %" PRId64, n);
    if (!e.code) {
        *m = (dmat){.g = g, .n = n};
        if (g->cells) {
            m->rows = grid_part(n, g->block, g->row, g->shape.rows);
            m->cols = grid_part(n, g->block, g->col, g->shape.cols);
        }
        e = dmat_alloc(m, what);
    }
    e = comm_agree(g->c, e, what, NULL);
    if (e.code)
        dmat_destroy(&m);
    else
        *out = m;
    return e;
}

void dmat_destroy(dmat **m) {
    if (!*m) return;
    mem_free((*m)->part);
    mem_free(*m);
    *m = NULL;
}

double *dmat_part(dmat *m) {
    return m->part;
}

int64_t dmat_part_entries(const dmat *m) {
    return m->rows * m->cols;
}

int64_t dmat_order(const dmat *m) {
    return m->n;
}

const dgrid *dmat_grid(const dmat *m) {
    return m->g;
}

void dmat_part_shape(const dmat *m, int64_t *rows, int64_t *cols) {
    *rows = m->rows;
    *cols = m->cols;
}

int64_t dmat_row(const dmat *m, int64_t local_row) {
    return dmat_whole(local_row, m->g->block, m->g->row, m->g->shape.rows);
}

int64_t dmat_col(const dmat *m, int64_t local_col) {
    return dmat_whole(local_col, m->g->block, m->g->col, m->g->shape.cols);
}

/* Products and factors. */

void dmat_copy(const dmat *from, dmat *to) {
    if (from->part) memcpy(to->part, from->part, (size_t)dmat_part_entries(from) * sizeof(double));
}

void dmat_gemm(gemm_op op_a, gemm_op op_b, double a, const dmat *A, const dmat *B, double b,
               dmat *C) {
    if (!C->part) return;
    gemm_blas_threads(C->g->threads);
    pdgemm_(op_a == GEMM_T ? "T" : "N", op_b == GEMM_T ? "T" : "N", &C->order, &C->order, &C->order,
            &a, A->part, &ONE, &ONE, A->desc, B->part, &ONE, &ONE, B->desc, &b, C->part, &ONE, &ONE,
            C->desc);
    gemm_blas_threads(1);
}

void dmat_add_transpose(double a, const dmat *A, double b, dmat *B) {
    if (!B->part) return;
    pdtran_(&B->order, &B->order, &a, A->part, &ONE, &ONE, A->desc, &b, B->part, &ONE, &ONE,
            B->desc);
}

static err agreed(const dgrid *g, const char *routine, err e, int info) {
    if (!e.code && info < 0)
        e = err_make(ERR_BUG, routine, NULL, "ScaLAPACK refused its argument %d", -info);
    if (!e.code && info > 0)
        e = err_make(ERR_NUMERICS, routine, NULL, "failed at %d: singular or not a number", info);
    return comm_agree(g->c, e, routine, NULL);
}

err dmat_solve(dmat *A, dmat *B) {
    int *pivots = NULL;
    int info = 0;
    err e = err_none();
    if (A->part) e = MEM_NEW(&pivots, A->rows + A->g->block, "pivots");
    e = comm_agree(A->g->c, e, "distributed LU", NULL); /* before what waits for all cells */
    if (!e.code && A->part) {
        gemm_blas_threads(A->g->threads);
        pdgetrf_(&A->order, &A->order, A->part, &ONE, &ONE, A->desc, pivots, &info);
        if (!info)
            pdgetrs_("N", &A->order, &A->order, A->part, &ONE, &ONE, A->desc, pivots, B->part, &ONE,
                     &ONE, B->desc, &info, 1);
        gemm_blas_threads(1);
    }
    mem_free(pivots);
    return e.code ? e : agreed(A->g, "distributed LU", e, info);
}

err dmat_cholesky_inverse(dmat *A, bool *failed) {
    int info = 0;
    if (A->part) {
        gemm_blas_threads(A->g->threads);
        pdpotrf_("L", &A->order, A->part, &ONE, &ONE, A->desc, &info, 1);
        if (!info) pdtrtri_("L", "N", &A->order, A->part, &ONE, &ONE, A->desc, &info, 1, 1);
        gemm_blas_threads(1);
    }
    int64_t not_definite = info > 0;
    comm_max_i64(A->g->c, &not_definite, 1);
    *failed = not_definite;
    return agreed(A->g, "distributed Cholesky", err_none(), info > 0 ? 0 : info);
}

/* Workspace of a routine that told its need as a double. */
static err work_alloc(double need, int64_t more, int *lwork, double **work) {
    err e = size_to_int((int64_t)need + more, "workspace", lwork);
    if (!e.code) e = MEM_NEW(work, *lwork, "workspace of ScaLAPACK");
    return e;
}

err dmat_eigen(dmat *A, dmat *V, double *values) {
    const dgrid *g = A->g;
    const int liwork = 7 * A->order + 8 * g->shape.cols + 2;
    /* The need that pdsyevd tells forgets pdormtr's where the order is not far above the block: it
     * then complains on stderr, does nothing, and pdsyevd reports success. */
    const int64_t nb = g->block, transform_transposed = nb * (A->rows + A->cols + 2 * nb);
    int info = 0, query = -1, lwork = 0;
    double need = 0, *work = NULL;
    int *iwork = NULL;
    err e = err_none();
    if (A->part) {
        e = MEM_NEW(&iwork, liwork, "workspace of eigenvectors");
        if (!e.code)
            pdsyevd_("V", "L", &A->order, A->part, &ONE, &ONE, A->desc, values, V->part, &ONE, &ONE,
                     V->desc, &need, &query, iwork, &liwork, &info, 1, 1);
        if (!e.code) e = work_alloc(need, A->n + transform_transposed, &lwork, &work);
    }
    e = comm_agree(g->c, e, "distributed eigenvectors", NULL);
    if (!e.code && A->part) {
        gemm_blas_threads(g->threads);
        pdsyevd_("V", "L", &A->order, A->part, &ONE, &ONE, A->desc, values, V->part, &ONE, &ONE,
                 V->desc, work, &lwork, iwork, &liwork, &info, 1, 1);
        gemm_blas_threads(1);
    }
    mem_free(work);
    mem_free(iwork);
    if (!e.code) e = agreed(g, "distributed eigenvectors", e, info);
    if (!e.code) comm_bcast(g->c, values, (uint64_t)A->n * sizeof *values, 0);
    return e;
}

/* signs[j] of the diagonal of the upper factor, on every rank. */
static void diagonal_signs(const dmat *A, double *signs) {
    memset(signs, 0, (size_t)A->n * sizeof *signs);
    for (int64_t j = 0; j < A->cols; j++)
        for (int64_t i = 0; i < A->rows; i++)
            if (dmat_row(A, i) == dmat_col(A, j))
                signs[dmat_col(A, j)] = A->part[j * A->rows + i] < 0 ? -1 : 1;
    dmat_share(A->g->c, signs, A->n);
}

static void qr_form(dmat *A, double *tau, double *signs, double *work, int lwork, int *info) {
    if (A->part) {
        gemm_blas_threads(A->g->threads);
        pdgeqrf_(&A->order, &A->order, A->part, &ONE, &ONE, A->desc, tau, work, &lwork, info);
    }
    diagonal_signs(A, signs);
    if (A->part && !*info)
        pdorgqr_(&A->order, &A->order, &A->order, A->part, &ONE, &ONE, A->desc, tau, work, &lwork,
                 info);
    gemm_blas_threads(1);
    for (int64_t j = 0; j < A->cols; j++)
        for (int64_t i = 0; i < A->rows; i++) A->part[j * A->rows + i] *= signs[dmat_col(A, j)];
}

err dmat_qr(dmat *A) {
    const dgrid *g = A->g;
    const int64_t nb = g->block;
    int info = 0, lwork = 0;
    double *work = NULL;
    double *signs = NULL;
    /* Of pdgeqrf and pdorgqr: nb (rows + columns + nb) of the part. */
    err e = work_alloc((double)(nb * (A->rows + A->cols + 2 * nb)), 0, &lwork, &work);
    if (!e.code) e = MEM_NEW(&signs, 2 * A->n + nb, "factors of QR");
    e = comm_agree(g->c, e, "distributed QR", NULL);
    if (!e.code) {
        qr_form(A, signs + A->n, signs, work, lwork, &info);
        e = agreed(g, "distributed QR", e, info);
    }
    mem_free(work);
    mem_free(signs);
    return e;
}
