/* LAPACK sees the transpose of a row-major matrix. Inverse and symmetric eigenvectors do not mind
 * (the inverse of the transpose is the transpose of the inverse); QR is made unique by a positive
 * diagonal of U. */
#include "base/lapack.h"

#include "base/gemm_internal.h"
#include "base/mem.h"
#include "base/size.h"

#include <math.h>

/* LAPACK's Fortran routines, which OpenBLAS holds. Each character argument has its length at the
 * end of the list. */
void dgetrf_(const int *m, const int *n, double *a, const int *lda, int *pivots, int *info);
void dgetri_(const int *n, double *a, const int *lda, const int *pivots, double *work,
             const int *lwork, int *info);
void dgeqrf_(const int *m, const int *n, double *a, const int *lda, double *tau, double *work,
             const int *lwork, int *info);
void dorgqr_(const int *m, const int *n, const int *k, double *a, const int *lda, const double *tau,
             double *work, const int *lwork, int *info);
void spotrf_(const char *uplo, const int *n, float *a, const int *lda, int *info, size_t uplo_len);
void dsyevd_(const char *job, const char *uplo, const int *n, double *a, const int *lda, double *w,
             double *work, const int *lwork, int *iwork, const int *liwork, int *info,
             size_t job_len, size_t uplo_len);

enum { BLOCK = 64 }; /* columns that QR and the inverse take at a time */

static err failed(const char *routine, const char *what, int info) {
    if (info < 0)
        return err_make(ERR_BUG, what, NULL, "%s refused its argument %d", routine, -info);
    return err_make(ERR_NUMERICS, what, NULL, "%s failed at %d: singular or not a number", routine,
                    info);
}

/* The order as int, and doubles of workspace behind each other. */
static err prepare(int64_t n, int64_t doubles, const char *what, int *order, double **work) {
    gemm_enter_blas();
    *work = NULL;
    err e = size_to_int(n, what, order);
    if (!e.code) e = MEM_NEW(work, doubles, what);
    return e;
}

err lapack_inverse(int64_t n, double *a, const char *what) {
    int order, info = 0, lwork = (int)(size_min(n, BLOCK) * BLOCK);
    double *work;
    err e = prepare(n, lwork + n, what, &order, &work);
    if (e.code) return e;
    int *pivots = (int *)(work + lwork);
    dgetrf_(&order, &order, a, &order, pivots, &info);
    if (!info) dgetri_(&order, a, &order, pivots, work, &lwork, &info);
    mem_free(work);
    return info ? failed("LU", what, info) : err_none();
}

/* Columns whose diagonal entry in U is negative change sign. */
static bool remember_signs(int64_t n, const double *a, double *signs) {
    for (int64_t j = 0; j < n; j++) {
        double u = a[j * n + j];
        if (!(fabs(u) > 0)) return false;
        signs[j] = u < 0 ? -1 : 1;
    }
    return true;
}

err lapack_qr(int64_t n, double *a) {
    int order, info = 0, lwork;
    double *work;
    err e = prepare(n, n * (BLOCK + 2), "QR", &order, &work);
    if (e.code) return e;
    double *tau = work + n * BLOCK, *signs = tau + n;
    e = size_to_int(n * BLOCK, "workspace of QR", &lwork);
    if (!e.code) {
        dgeqrf_(&order, &order, a, &order, tau, work, &lwork, &info);
        if (!info && !remember_signs(n, a, signs)) info = 1;
        if (!info) dorgqr_(&order, &order, &order, a, &order, tau, work, &lwork, &info);
        if (info) e = failed("QR", "QR", info);
    }
    for (int64_t j = 0; j < n && !e.code; j++)
        for (int64_t i = 0; i < n; i++) a[j * n + i] *= signs[j];
    mem_free(work);
    return e;
}

err lapack_eigen(int64_t n, double *a, double *values) {
    const int64_t doubles = 1 + 6 * n + 2 * n * n, ints = 3 + 5 * n;
    int order, info = 0, lwork, liwork;
    double *work;
    err e = prepare(n, doubles + ints, "eigenvectors", &order, &work);
    if (!e.code) e = size_to_int(doubles, "workspace of eigenvectors", &lwork);
    if (!e.code) e = size_to_int(ints, "workspace of eigenvectors", &liwork);
    if (!e.code) {
        dsyevd_("V", "L", &order, a, &order, values, work, &lwork, (int *)(work + doubles), &liwork,
                &info, 1, 1);
        if (info) e = failed("dsyevd", "eigenvectors", info);
    }
    mem_free(work);
    return e;
}

/* log det = 2 sum of the logs of the factor's diagonal. */
err lapack_log_det(int64_t n, float *a, double least, double *out) {
    int order, info = 0;
    double *unused, sum = 0;
    err e = prepare(n, 1, "log det", &order, &unused);
    if (e.code) return e;
    spotrf_("L", &order, a, &order, &info, 1);
    for (int64_t j = 0; j < n && !info; j++) {
        const double root = (double)a[j * n + j];
        sum += root * root > least ? log(root) : NAN;
    }
    mem_free(unused);
    *out = info ? NAN : 2 * sum;
    return info < 0 ? failed("spotrf", "log det", info) : err_none();
}
