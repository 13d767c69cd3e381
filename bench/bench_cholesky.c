/* Time of the factor of a large Hessian over a grid (Cholesky and triangular inverse, 2/3 n^3
 * flops), of its panels on their way to all ranks, and of one local product of the same cores for
 * scale.
 *   [mpirun -n RANKS] bench_cholesky [n] [grid]
 * Default: 4096, auto. Prints what a 70B's 28672 would take at that rate. */
#include "base/clock.h"
#include "base/gemm.h"
#include "base/mem.h"
#include "bench/bench.h"
#include "mpi/dmat.h"

#include <math.h>
#include <stdio.h>

enum { PEAK_N = 1536, REPEATS = 3, ROWS = 128, LARGE = 28672 };

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
    bench_need(comm_start(&argc, &argv));
    const comm *c = comm_world();
    const int64_t n = bench_argument(argc, argv, 1, 4096);
    grid_shape grid;
    dgrid *g;
    dmat *m;
    char shape[24];
    bool failed;
    gemm_init(comm_core_sharers());
    bench_need(grid_resolve("grid", argc > 2 ? argv[2] : "auto", n > 4096 ? n : 4096, comm_size(c),
                            &grid));
    const double flops = 2.0 / 3 * pow((double)n, 3), best = bench_peak_f64(c, PEAK_N, REPEATS);
    bench_need(dgrid_create(c, grid, 0, gemm_threads(), &g));
    bench_need(dmat_create(g, n, "Hessian", &m));
    fill(m);
    comm_barrier(c);
    double start = clock_now_s();
    bench_need(dmat_cholesky_inverse(m, &failed));
    const double factor_s = bench_slowest(c, start);
    double *panel = bench_room(ROWS * n, sizeof *panel);
    comm_barrier(c);
    start = clock_now_s();
    for (int64_t row = 0; row + ROWS <= n; row += ROWS) dmat_get_rows(m, row, ROWS, panel);
    const double panels_s = bench_slowest(c, start), ratio = (double)LARGE / (double)n;
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
