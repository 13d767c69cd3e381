/* bench_fuse - fusion of one 70B-shaped layer (hidden 8192, intermediate 28672), random weights,
 * part of the rows of gate and of the columns of down, with a dense R1 and with a Hadamard R1, as a
 * share of the fp64 product peak measured in the same run (large square, same library). And all of
 * a small model's layer with Hadamard rotations, in ns a weight. bench_fuse [HIDDEN [PART]]   PART:
 * rows of gate and columns of down that are taken */
#include "base/clock.h"
#include "base/gemm.h"
#include "base/mem.h"
#include "base/rng.h"
#include "bench/bench.h"
#include "model/fuse.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static err drop(void *arg, int64_t row0, int64_t rows, const float *w) {
    *(double *)arg += (double)w[0] + (double)(row0 + rows);
    return err_none();
}

static uint16_t *random_bf16(int64_t n) {
    uint16_t *w = bench_room(n, 2);
    for (int64_t i = 0; i < n; i++)
        w[i] = (uint16_t)(0x3c00 + i * 2654435761u % 0x200 + (i & 1) * 0x8000);
    return w;
}

/* Second of two runs, so that fresh pages are not measured. */
static double seconds(fuse_job *job, double *sink) {
    bench_need(fuse_matrix(job, drop, sink));
    double t = clock_now_s();
    bench_need(fuse_matrix(job, drop, sink));
    return clock_now_s() - t;
}

/* Any dense matrix costs the same; this one is a Hadamard matrix written out. */
static rotation *dense_twin(const rotation *r) {
    int64_t n = rotation_size(r);
    double *R = bench_room(n * n, 8);
    rotation *dense;
    bench_need(rotation_to_dense(r, R));
    bench_need(rotation_create_dense(n, R, &dense));
    mem_free(R);
    return dense;
}

static void large_layer(int64_t hidden, int64_t part, double *sink) {
    rotation *had, *dense;
    bench_need(rotation_create_random_hadamard(hidden, 1, RNG_R1_SIGNS, 0, &had));
    dense = dense_twin(had);
    uint16_t *w = random_bf16(hidden * part);
    fuse_job gate = {.source = w, .dtype = FUSE_BF16, .rows = part, .cols = hidden};
    fuse_job down = {.source = w, .dtype = FUSE_BF16, .rows = hidden, .cols = part};
    double flop = 2.0 * (double)(hidden * hidden * part);
    double peak = bench_peak_f64(comm_world(), 4096, 3);
    printf("hidden %" PRId64 ", part %" PRId64 ", %d threads; fp64 product peak %.1f GF/s\n",
           hidden, part, gemm_threads(), peak * 1e-9);
    gate.in = dense;
    down.out = dense;
    double g = seconds(&gate, sink), d = seconds(&down, sink);
    printf("dense R1:    gate %.2f s (%.0f %% of peak), down %.2f s (%.0f %% of peak)\n", g,
           100 * flop / g / peak, d, 100 * flop / d / peak);
    gate.in = had;
    down.out = had;
    double gh = seconds(&gate, sink), dh = seconds(&down, sink);
    printf("Hadamard R1: gate %.3f s (%.1f ns a weight), down %.3f s (%.1f ns a weight)\n", gh,
           gh * 1e9 / (double)(hidden * part), dh, dh * 1e9 / (double)(hidden * part));
    mem_free(w);
    rotation_destroy(&had);
    rotation_destroy(&dense);
}

/* SmolLM2-135M: hidden 576, intermediate 1536. */
static void small_layer(double *sink) {
    rotation_options opts = {.r1 = true, .r2 = R2_LAYER, .start = START_HAD, .seed = 1};
    rotation_sizes sizes = {576, 1, 9, 3, 64, 1536, false};
    static const struct {
        llama_role role;
        int64_t rows, cols;
    } all[] = {{ROLE_Q, 576, 576},    {ROLE_K, 192, 576},     {ROLE_V, 192, 576},
               {ROLE_O, 576, 576},    {ROLE_GATE, 1536, 576}, {ROLE_UP, 1536, 576},
               {ROLE_DOWN, 576, 1536}};
    rotation_set *set;
    bench_need(rotation_set_create(&opts, &sizes, &set));
    uint16_t *w = random_bf16(576 * 1536);
    double t = 0, n = 0;
    for (int i = 0; i < 7; i++) {
        fuse_plan plan;
        bench_need(fuse_plan_init(all[i].role, 0, set, &plan));
        plan.job.source = w;
        plan.job.dtype = FUSE_BF16;
        plan.job.rows = all[i].rows;
        plan.job.cols = all[i].cols;
        t += seconds(&plan.job, sink);
        n += (double)(all[i].rows * all[i].cols);
        fuse_plan_clear(&plan);
    }
    printf("a layer of SmolLM2-135M, Hadamard R1, R2: %.1f ms, %.2f ns a weight\n", t * 1e3,
           t * 1e9 / n);
    mem_free(w);
    rotation_set_destroy(&set);
}

int main(int argc, char **argv) {
    int64_t hidden = argc > 1 ? atoll(argv[1]) : 8192, part = argc > 2 ? atoll(argv[2]) : 2048;
    double sink = 0;
    gemm_init(1);
    small_layer(&sink);
    large_layer(hidden, part, &sink);
    printf("(%g)\n", sink);
    return 0;
}
