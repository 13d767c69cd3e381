/* Time of GPTQ of one matrix against the fp64 product peak of the same threads, measured here.
 *   bench_gptq [columns] [rows] [group] [alpha] [block]
 * Default: 8192 (one part of a 70B layer), 256 rows as a rank of many has them, groups of 128,
 * alpha 0 (no cross moment), blocks of 128. Prints the peak; order + factor + inverse (2/3 n^3
 * flops); and the loop with the losses of rounding to nearest and of the weights themselves
 * (2 n^2 a row and the energy's n^2; with a cross moment n^2 more). */
#include "base/clock.h"
#include "base/gemm.h"
#include "base/mem.h"
#include "base/rng.h"
#include "bench/bench.h"
#include "quant/gptq.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PEAK_N = 1536, REPEATS = 3 };

static double entry(uint64_t stream, int64_t i) {
    return rng_uniform(stream, RNG_TEST, (uint64_t)i) - 0.5;
}

/* A positive definite matrix without the cost of a moment: a decaying band and a diagonal. */
static void fill_hessian(int64_t n, double *h) {
#pragma omp parallel for
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++)
            h[i * n + j] =
                i == j ? 2 + entry(1, i) : 0.5 * cos(0.1 * (double)(i + j)) / (1 + llabs(i - j));
}

static void report(const char *what, double seconds, double flops, double most) {
    printf("%-34s %8.2f s %8.1f Gflop/s %5.1f %% of the peak\n", what, seconds,
           flops / seconds * 1e-9, 100 * flops / seconds / most);
}

static gptq_order *factor(int64_t n, double *h, gptq_damping *done, double most) {
    double *diagonal = bench_room(n, sizeof *diagonal);
    gptq_order *o;
    fill_hessian(n, h);
    for (int64_t j = 0; j < n; j++) diagonal[j] = h[j * n + j];
    const double start = clock_now_s();
    bench_need(gptq_order_create(n, diagonal, true, &o));
    bench_need(gptq_factor(o, 0.01, h, done));
    report("order, Cholesky and inverse", clock_now_s() - start, 2.0 / 3 * pow((double)n, 3), most);
    mem_free(diagonal);
    return o;
}

static void loop(const gptq_options *options, double alpha, const gptq_order *o, double lambda,
                 double *u, int64_t rows, double most) {
    const int64_t n = o->n;
    float *w = bench_room(rows * n, sizeof *w);
    double *cross = alpha > 0 ? bench_room(rows * n, sizeof *cross) : NULL;
    gptq_loss *loss = bench_room(rows, sizeof *loss);
    gptq_whole whole = {u, n};
    qmatrix *q;
    bench_need(qmatrix_create(rows, n, &options->how, &q));
#pragma omp parallel for
    for (int64_t i = 0; i < rows * n; i++) w[i] = (float)entry(2, i);
    for (int64_t i = 0; i < rows * n && cross; i++) cross[i] = 0.1 * entry(3, i);
    const gptq_try one = {alpha, q, loss};
    const double start = clock_now_s();
    bench_need(gptq_rows(options, o, lambda, gptq_panels_of(&whole), w, cross, rows, 0, &one, 1));
    const double t = clock_now_s() - start, lines = options->energy ? 3 : 2;
    report("loop over the columns", t,
           (lines + (cross ? 1 : 0)) * (double)rows * (double)n * (double)n, most);
    printf("bytes of the loop %.2f GiB; loss of row 0: %.4g, to nearest %.4g\n",
           (double)gptq_rows_bytes(options, rows, n, 1, cross) / 0x1p30, loss[0].gptq, loss[0].rtn);
    qmatrix_destroy(&q);
    mem_free(w), mem_free(cross), mem_free(loss);
}

int main(int argc, char **argv) {
    const int64_t n = bench_argument(argc, argv, 1, 8192),
                  rows = bench_argument(argc, argv, 2, 256);
    const gptq_options options = {
        .how = {.bits = 4,
                .group = bench_argument(argc, argv, 3, 128),
                .symmetric = true,
                .scale_type = SCALE_BF16},
        .block = bench_argument(argc, argv, 5, 128),
        .energy = true,
    };
    gptq_damping done;
    bench_need(comm_start(&argc, &argv));
    const int threads = gemm_init(1);
    const double most = bench_peak_f64(comm_world(), PEAK_N, REPEATS);
    printf("%d threads, fp64 product peak %.1f Gflop/s; n = %lld, %lld rows\n", threads,
           most * 1e-9, (long long)n, (long long)rows);
    double *h = bench_room(n * n, sizeof *h);
    gptq_order *o = factor(n, h, &done, most);
    loop(&options, argc > 4 ? atof(argv[4]) : 0, o, done.lambda, h, rows, most);
    gptq_order_destroy(&o);
    mem_free(h);
    comm_stop();
    return 0;
}
