/* Time of the sums of a Hessian as GPTQ makes them (pipeline/gptq/gptq_moments.h), against the bf16
 * product peak of all ranks at once, measured in the same run.
 *   [mpirun -n RANKS] bench_hessian [columns] [tokens of a window] [windows]
 * Default: 28672 (down_proj of a 70B), 2 windows of 2048. Random inputs, columns in an order as
 * over a grid. Panel by panel, so that no rank holds a whole Hessian (28672: 6.6 GB). Prints the
 * diagonal, the columns into their order and back, products and exact sums of each rank with the
 * sums over ranks, and these alone; flops are n^2 a token, of the upper triangle. The second of two
 * layers: the first touches the memory, which stays for all layers of a run. */
#include "bench/bench.h"

#include "base/clock.h"
#include "base/gemm.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/size.h"
#include "pipeline/gptq/gptq_moments.h"
#include "pipeline/plan/product_peak.h"

#include <math.h>
#include <stdio.h>

static double peak(const comm *c) {
    comm_barrier(c);
    double least = -product_peak(COMPUTE_BF16);
    comm_max_f64(c, &least, 1);
    return -least * comm_size(c);
}

static void fill(gptq_windows *w, int64_t n) {
    const int64_t length = gptq_windows_get_options(w)->length;
    for (int64_t i = 0; i < gptq_windows_own(w); i++) {
        const uint64_t stream = (uint64_t)gptq_windows_number(w, i);
        bf16 *x;
        bench_need(gptq_windows_get_input(w, GPTQ_QUANTIZED, i, &x));
#pragma omp parallel for
        for (int64_t j = 0; j < length * n; j++)
            x[j] = half_to_bf16((float)rng_uniform(stream, RNG_TEST, (uint64_t)j) - 0.5F);
        bench_need(gptq_windows_put_input(w, GPTQ_QUANTIZED, i));
    }
}

/* So many integers, each rank its equal part. */
static void sum_over_ranks(const gptq_moments *m, int64_t entries) {
    const int ranks = comm_size(m->c);
    int64_t *from = bench_room(ranks + 1, sizeof *from);
    for (int r = 0; r <= ranks; r++) from[r] = entries / ranks * r;
    comm_sum_i64_parts(m->c, m->sum, from, sizeof(int64_t));
    mem_free(from);
}

typedef struct times {
    double diagonal, arrange, panels, over_ranks;
} times;

static times run(gptq_moments *m, int64_t n) {
    const comm *c = m->c;
    const int64_t step = gptq_moments_panel_rows(n);
    const grid_shape grid = grid_choose(n, comm_size(c));
    times t = {0};
    int64_t *order = bench_room(n, sizeof *order), *v = NULL;
    double *diagonal = bench_room(n, sizeof *diagonal), start = clock_now_s();
    for (int64_t j = 0; j < n; j++) order[j] = (j * 7919 + 13) % n; /* 7919: a prime */
    bench_need(gptq_moments_diagonal(m, n, "bench", diagonal));
    t.diagonal = bench_slowest(c, start);
    comm_barrier(c);
    start = clock_now_s();
    bench_need(gptq_moments_arrange(m, order, false));
    bench_need(gptq_moments_arrange(m, order, true));
    t.arrange = bench_slowest(c, start);
    comm_barrier(c);
    start = clock_now_s();
    for (int64_t first = 0; first < n; first += step)
        bench_need(gptq_moments_cells(m, first, size_min(step, n - first), grid, &v));
    t.panels = bench_slowest(c, start);
    comm_barrier(c);
    start = clock_now_s();
    for (int64_t first = 0; first < n; first += step)
        sum_over_ranks(m, size_min(step, n - first) * (n - first));
    t.over_ranks = bench_slowest(c, start);
    mem_free(order);
    mem_free(diagonal);
    return t;
}

static void report(const char *what, double seconds, double flops, double most) {
    printf("%-40s %8.2f s", what, seconds);
    if (flops > 0)
        printf(" %8.1f Gflop/s %5.1f %% of the peak", flops / seconds * 1e-9,
               100 * flops / seconds / most);
    printf("\n");
}

int main(int argc, char **argv) {
    bench_need(comm_start(&argc, &argv));
    const comm *c = comm_world();
    const int64_t n = bench_argument(argc, argv, 1, 28672),
                  length = bench_argument(argc, argv, 2, 2048),
                  count = bench_argument(argc, argv, 3, 2);
    const llama_config cfg = {.hidden = 64, .intermediate = n, .heads = 1, .head_dim = 64};
    gemm_init(comm_core_sharers());
    int32_t *ids = bench_room(count * length, sizeof *ids);
    const gptq_windows_options o = {
        .cfg = &cfg, .ids = ids, .count = count, .length = length, .streams = 1};
    gptq_windows *w;
    bench_need(gptq_windows_create(c, &o, &w));
    gptq_moments m = {.c = c, .windows = w};
    fill(w, n);
    const double most = peak(c), flops = (double)n * (double)n * (double)(count * length);
    run(&m, n);
    const times t = run(&m, n);
    if (comm_rank(c) == 0) {
        printf("%lld columns, %lld x %lld tokens, %d ranks x %d threads, bf16 product peak %.0f "
               "Gflop/s\n",
               (long long)n, (long long)count, (long long)length, comm_size(c), gemm_threads(),
               most * 1e-9);
        report("diagonal, in two passes", t.diagonal, 0, most);
        report("columns into their order, and back", t.arrange, 0, most);
        report("products, exact sums, sums over ranks", t.panels, flops, most);
        report("of that, sums over ranks", t.over_ranks, 0, most);
        report("without these", t.panels - t.over_ranks, flops, most);
        report("all of it", t.diagonal + t.arrange + t.panels, flops, most);
    }
    gptq_moments_clear(&m);
    gptq_windows_destroy(&w);
    mem_free(ids);
    comm_stop();
    return 0;
}
