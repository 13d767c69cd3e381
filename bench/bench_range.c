/* Cost of a step of the objective range against its own matrix products at the measured peak.
 *   [mpirun -n RANKS] bench_range [steps] [rows] [hidden] [layers]
 * Default: 100 steps of 32768 rows, the shape of SmolLM2-135M (576, 30). Rows are random: what a
 * step costs does not depend on them. The limit to hold is 2.5 (2 ranks, bf16). */
#include "base/clock.h"
#include "base/gemm.h"
#include "base/mem.h"
#include "base/rng.h"
#include "bench/bench.h"
#include "pipeline/learn/learn_range.h"
#include "pipeline/plan/product_peak.h"
#include "rotations/start.h"

#include <stdio.h>

enum { HEAD_DIM = 64, HEADS = 9, KV_HEADS = 3, TOKENS = 4096 };

static void fill(row_pool *p) {
    for (int k = 0; k < POOL_KINDS; k++)
        for (int64_t i = 0; i < (k == POOL_R1 ? 2 : 1) * p->n_layers; i++) {
            row_set *s = &p->sets[k][i];
            for (int64_t j = 0; j < s->n * s->width; j++) {
                const uint64_t r = rng_u64(1, RNG_TEST, (uint64_t)j);
                s->x[j] = half_to_bf16((float)((int)(r % 2001) - 1000) * 1e-3F);
            }
            row_fix(s->x, s->n * s->width);
            for (int64_t j = 0; j < s->n; j++) s->w[j] = 1;
        }
}

static dealt_rows *start_r1(const comm *c, int64_t n) {
    void *R;
    dealt_rows *d;
    bench_need(mem_alloc(n * n, sizeof(double), "bench", &R));
    bench_need(start_orthogonal(n, 1, RNG_TEST, 0, R));
    bench_need(dealt_rows_create(c, n, n, "bench", &d));
    dealt_rows_put(d, 0, n, R);
    mem_free(R);
    return d;
}

static double *start_r2(int64_t layers) {
    void *R;
    bench_need(mem_alloc(layers * HEAD_DIM * HEAD_DIM, sizeof(double), "bench", &R));
    for (int64_t l = 0; l < layers; l++)
        bench_need(
            start_orthogonal(HEAD_DIM, 2, RNG_TEST, 0, (double *)R + l * HEAD_DIM * HEAD_DIM));
    return R;
}

/* Flop of the products u = x R of a step. */
static double flop_of(const learn_range_options *o, int64_t n) {
    const double r2_rows = 2 * 512; /* values and o_proj inputs of a layer */
    return 2 *
           ((double)o->rows * (double)(n * n) + (double)o->layers * r2_rows * HEAD_DIM * HEAD_DIM);
}

/* Flop of a Cayley step: G R^T in fp32, then 8/3 n^3 in fp64. */
static double product_of_step(int64_t n) {
    return 2 * (double)n * (double)(n * n);
}
static double cayley_of_step(int64_t n) {
    return 8.0 / 3 * (double)n * (double)(n * n);
}

static double peak_of(const comm *c, compute_type type) {
    double all = 0;
    for (int r = 0; r < comm_size(c); r++) {
        double mine = 0;
        comm_barrier(c); /* all at once, as they compute */
        mine = product_peak(type);
        comm_bcast(c, &mine, sizeof mine, r);
        all += mine;
    }
    return all;
}

int main(int argc, char **argv) {
    bench_need(comm_start(&argc, &argv));
    const comm *c = comm_world();
    const int64_t n = bench_argument(argc, argv, 3, 576),
                  layers = bench_argument(argc, argv, 4, 30),
                  first = layers * comm_rank(c) / comm_size(c),
                  mine = layers * (comm_rank(c) + 1) / comm_size(c) - first;
    const llama_config cfg = {
        .hidden = n, .layers = layers, .heads = HEADS, .kv_heads = KV_HEADS, .head_dim = HEAD_DIM};
    const aquant four = {.bits = 4, .clip = {1, 1}};
    learn_range_options o = {.steps = bench_argument(argc, argv, 1, 100),
                             .rows = bench_argument(argc, argv, 2, 32768),
                             .kind = OPTIMIZER_ADAM,
                             .schedule = SCHEDULE_COSINE,
                             .lr_r1 = 1,
                             .lr_r2 = 0.3,
                             .act = four,
                             .kv = four,
                             .o_rows = true,
                             .r1 = true,
                             .r2_heads = 1,
                             .layers = layers,
                             .grid = grid_choose(n, comm_size(c)),
                             .blas_threads = gemm_threads()};
    row_pool pool;
    learn_range *l;
    learn_report report = {.step = 0};
    dealt_rows *R1 = start_r1(c, n);
    double *R2 = start_r2(mine);
    bench_need(row_pool_init(&cfg, first, mine, TOKENS, &pool));
    fill(&pool);
    bench_need(learn_range_create(c, &o, &pool, NULL, R1, R2, &l));
    bench_need(learn_range_step(l, &report)); /* memory is touched for the first time */
    comm_barrier(c);
    const double start = clock_now_s();
    while (report.step < o.steps) bench_need(learn_range_step(l, &report));
    comm_barrier(c);
    const double step_s = (clock_now_s() - start) / (double)(o.steps - 1), flop = flop_of(&o, n),
                 peak = peak_of(c, COMPUTE_BF16),
                 steps_s = flop / peak + product_of_step(n) / peak_of(c, COMPUTE_F32) +
                           cayley_of_step(n) / peak_of(c, COMPUTE_F64);
    if (comm_rank(c) == 0)
        printf("range: %d ranks x %d threads, hidden %lld, %lld layers, %lld rows: %.1f ms a step; "
               "its products at the peak of %.0f GF/s take %.1f ms: %.2f (at most 2.5); with the "
               "products of the Cayley step at the peaks of their types %.1f ms: %.2f\n",
               comm_size(c), gemm_threads(), (long long)n, (long long)layers, (long long)o.rows,
               1e3 * step_s, peak * 1e-9, 1e3 * flop / peak, step_s * peak / flop, 1e3 * steps_s,
               step_s / steps_s);
    learn_range_destroy(&l);
    row_pool_clear(&pool);
    dealt_rows_destroy(&R1);
    mem_free(R2);
    comm_stop();
    return 0;
}
