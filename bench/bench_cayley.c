/* Time of the Cayley step of R1 against the fp64 product peak of the same ranks, measured here.
 *   [mpirun -n RANKS] bench_cayley [n] [grid] [block] [repeats]
 * Default: 4096, auto, 128, 3. Prints the peak, the solve alone (8/3 n^3 flops), a whole adam step
 * with its gradient product (14/3 n^3), and the bytes of a rank. */
#include "base/clock.h"
#include "base/gemm.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/size.h"
#include "bench/bench.h"
#include "mpi/dmat.h"
#include "rotations/cayley.h"
#include "rotations/cayley_dist.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { PEAK_N = 2048, ROWS = 128 };

static double entry(uint64_t stream, int64_t i) {
    return rng_uniform(stream, RNG_TEST, (uint64_t)i) - 0.5;
}

/* I - A/2 with A skew and short, and a right side. */
static void fill_system(dmat *M, dmat *X) {
    int64_t rows, cols;
    const int64_t n = dmat_order(M);
    dmat_part_shape(M, &rows, &cols);
#pragma omp parallel for
    for (int64_t j = 0; j < cols; j++)
        for (int64_t i = 0; i < rows; i++) {
            const int64_t p = dmat_row(M, i), q = dmat_col(M, j);
            const double a = p < q ? entry(1, p * n + q) : -entry(1, q * n + p);
            dmat_part(M)[j * rows + i] = p == q ? 1 : 0.01 * a;
            dmat_part(X)[j * rows + i] = entry(2, p * n + q);
        }
}

static double time_of_solve(const comm *c, int64_t n, grid_shape shape, int block, int repeats) {
    dgrid *g;
    dmat *M, *X;
    double best = INFINITY;
    bench_need(dgrid_create(c, shape, block, gemm_threads(), &g));
    bench_need(dmat_create(g, n, "bench", &M));
    bench_need(dmat_create(g, n, "bench", &X));
    for (int k = 0; k < repeats; k++) {
        fill_system(M, X);
        comm_barrier(c);
        const double start = clock_now_s();
        bench_need(dmat_solve(M, X));
        best = fmin(best, bench_slowest(c, start));
    }
    dmat_destroy(&M), dmat_destroy(&X);
    dgrid_destroy(&g);
    return best;
}

static double time_of_local_solve(int64_t n, int repeats) {
    double *A = bench_room(n * n, sizeof(double)), *R = bench_room(n * n, sizeof(double)),
           best = INFINITY;
    for (int64_t i = 0; i < n; i++) {
        R[i * n + i] = 1;
        for (int64_t j = 0; j < i; j++) {
            A[i * n + j] = 0.02 * entry(1, i * n + j);
            A[j * n + i] = -A[i * n + j];
        }
    }
    for (int k = 0; k < repeats; k++) {
        const double start = clock_now_s();
        bench_need(cayley_step(n, A, R));
        best = fmin(best, clock_now_s() - start);
    }
    mem_free(A), mem_free(R);
    return best;
}

static double time_of_step(const comm *c, const cayley_dist_options *o, int repeats,
                           uint64_t *bytes) {
    cayley_dist *d;
    const int64_t n = o->n;
    double *rows = bench_room(ROWS * n, sizeof(double)), best = INFINITY;
    bench_need(cayley_dist_create(c, o, &d));
    for (int k = -1; k < repeats; k++) { /* first R = I, then gradients */
        for (int64_t row = 0; row < n; row += ROWS) {
            const int64_t b = size_min(ROWS, n - row);
#pragma omp parallel for
            for (int64_t i = 0; i < b * n; i++)
                rows[i] = k < 0 ? (double)(i % n == row + i / n) : entry(3, row * n + i);
            if (k < 0)
                cayley_dist_put_rows(d, row, b, rows);
            else
                cayley_dist_put_gradient(d, row, b, rows);
        }
        if (k < 0) continue;
        comm_barrier(c);
        const double start = clock_now_s();
        bench_need(cayley_dist_step(d, 0.002, 0, NULL));
        best = fmin(best, bench_slowest(c, start));
    }
    *bytes = cayley_dist_bytes(d);
    cayley_dist_destroy(&d);
    mem_free(rows);
    return best;
}

int main(int argc, char **argv) {
    bench_need(comm_start(&argc, &argv));
    const comm *c = comm_world();
    const int threads = gemm_init(comm_node_size());
    const int64_t n = argc > 1 ? atoll(argv[1]) : 4096;
    const char *grid = argc > 2 ? argv[2] : "auto";
    const int block = argc > 3 ? atoi(argv[3]) : DMAT_BLOCK, repeats = argc > 4 ? atoi(argv[4]) : 3;
    grid_shape shape;
    char kernels[256], text[24], size[32];
    uint64_t bytes;
    bench_need(grid_resolve("grid", grid, n, comm_size(c), &shape));
    gemm_kernels(kernels, sizeof kernels);
    const double top = bench_peak_f64(c, PEAK_N, repeats), cube = (double)n * (double)n * (double)n;
    const bool single = shape.rows * shape.cols == 1;
    const double solve =
        single ? time_of_local_solve(n, repeats) : time_of_solve(c, n, shape, block, repeats);
    const cayley_dist_options o = {
        .n = n, .kind = OPTIMIZER_ADAM, .grid = shape, .blas_threads = threads, .block = block};
    const double step = time_of_step(c, &o, repeats, &bytes);
    if (comm_rank(c) == 0) {
        printf("%s\n%d ranks x %d threads, grid %s, block %d, order %lld\n", kernels, comm_size(c),
               threads, grid_text(shape, text), block, (long long)n);
        printf("fp64 product peak  %8.1f GF/s\n", top / 1e9);
        printf("solve   %8.3f s   %8.1f GF/s  %5.1f %% of the peak (8/3 n^3)\n", solve,
               8.0 / 3 * cube / solve / 1e9, 100 * 8.0 / 3 * cube / solve / top);
        printf("step    %8.3f s   %8.1f GF/s  %5.1f %% of the peak (14/3 n^3)\n", step,
               14.0 / 3 * cube / step / 1e9, 100 * 14.0 / 3 * cube / step / top);
        printf("matrices of the first rank: %s\n", size_text(bytes, size));
    }
    comm_stop();
    return 0;
}
