/* Time of the factor of a large Hessian over a grid (Cholesky and triangular inverse, 2/3 n^3
 * flops), of its panels on their way to all ranks, and of one local product of the same cores for
 * scale.
 *   [mpirun -n RANKS] bench_cholesky [n] [grid]
 * Default: 4096, auto. Prints what a 70B's 28672 would take at that rate. */
#include "base/clock.h"
#include "base/gemm.h"
#include "base/mem.h"
#include "mpi/comm.h"
#include "mpi/dmat.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { PEAK_N = 1536, ROWS = 128, LARGE = 28672 };

static void need(err e) {
    if (!e.code) return;
    fprintf(stderr, "%s: %s\n", e.where, e.what);
    comm_abort(1, "bench_cholesky");
}

static double *room(int64_t count) {
    void *p;
    need(mem_alloc(count, sizeof(double), "bench", &p));
    return p;
}

/* Seconds since start of the slowest rank. */
static double slowest(const comm *c, double start) {
    double t = clock_now_s() - start;
    comm_max_f64(c, &t, 1);
    return t;
}

/* Products of all ranks at once, best of three. */
static double peak(const comm *c) {
    const int64_t n = PEAK_N;
    double *a = room(n * n), *r = room(n * n), best = INFINITY;
    for (int64_t i = 0; i < n * n; i++) a[i] = (double)(i % 7) - 3;
    for (int k = 0; k < 3; k++) {
        comm_barrier(c);
        const double start = clock_now_s();
        gemm_f64(false, false, n, n, n, a, n, a, n, false, r, n);
        best = fmin(best, slowest(c, start));
    }
    mem_free(a);
    mem_free(r);
    return comm_size(c) * 2 * pow((double)n, 3) / best;
}

/* Positive definite: correlation that falls with the distance, convex (Polya). Slowly: powers of a
 * fast fall would end in denormal numbers, which take a hundred times as long as others. */
static void fill(dmat *m) {
    int64_t rows, cols;
    double *part = dmat_part(m);
    dmat_part_shape(m, &rows, &cols);
    for (int64_t j = 0; j < cols && part; j++)
        for (int64_t i = 0; i < rows; i++)
            part[j * rows + i] = 1 / (1 + 0.1 * fabs((double)(dmat_row(m, i) - dmat_col(m, j)))) +
                                 (dmat_row(m, i) == dmat_col(m, j) ? 0.01 : 0);
}

int main(int argc, char **argv) {
    need(comm_start(&argc, &argv));
    const comm *c = comm_world();
    const int64_t n = argc > 1 ? atoll(argv[1]) : 4096;
    grid_shape grid;
    dgrid *g;
    dmat *m;
    char shape[24];
    bool failed;
    gemm_init(comm_core_sharers());
    need(grid_resolve("grid", argc > 2 ? argv[2] : "auto", n > 4096 ? n : 4096, comm_size(c),
                      &grid));
    const double flops = 2.0 / 3 * pow((double)n, 3), best = peak(c);
    need(dgrid_create(c, grid, 0, gemm_threads(), &g));
    need(dmat_create(g, n, "Hessian", &m));
    fill(m);
    comm_barrier(c);
    double start = clock_now_s();
    need(dmat_cholesky_inverse(m, &failed));
    const double factor_s = slowest(c, start);
    double *panel = room(ROWS * n);
    comm_barrier(c);
    start = clock_now_s();
    for (int64_t row = 0; row + ROWS <= n; row += ROWS) dmat_get_rows(m, row, ROWS, panel);
    const double panels_s = slowest(c, start), ratio = (double)LARGE / (double)n;
    if (comm_rank(c) == 0) {
        printf("%lld on a grid of %s, %d ranks x %d threads, product peak %.1f Gflop/s%s\n",
               (long long)n, grid_text(grid, shape), comm_size(c), gemm_threads(), best / 1e9,
               failed ? ", NOT POSITIVE DEFINITE" : "");
        printf("Cholesky and inverse %.2f s, %.1f Gflop/s, %.0f %% of the peak; panels to all %.2f "
               "s\n",
               factor_s, flops / factor_s / 1e9, 100 * flops / factor_s / best, panels_s);
        printf("at that rate %d takes %.0f s and %.0f s\n", LARGE, factor_s * pow(ratio, 3),
               panels_s * ratio * ratio);
    }
    mem_free(panel);
    dmat_destroy(&m);
    dgrid_destroy(&g);
    comm_stop();
    return failed;
}
