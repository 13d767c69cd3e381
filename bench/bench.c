#include "bench/bench.h"

#include "base/clock.h"
#include "base/gemm.h"
#include "base/half.h"
#include "base/mem.h"
#include "base/rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

void bench_need(err e) {
    if (!e.code) return;
    fprintf(stderr, "%s: %s\n", e.where, e.what);
    comm_abort(1, "the benchmark ends");
}

void *bench_room(int64_t count, size_t size) {
    void *p;
    bench_need(mem_alloc(count, size, "bench", &p));
    return p;
}

int64_t bench_argument(int argc, char **argv, int i, int64_t standard) {
    return argc > i ? strtoll(argv[i], NULL, 10) : standard;
}

double bench_slowest(const comm *c, double start) {
    double t = clock_now_s() - start;
    comm_max_f64(c, &t, 1);
    return t;
}

double bench_peak_f64(const comm *c, int64_t n, int repeats) {
    double *a = bench_room(n * n, 8), *b = bench_room(n * n, 8), *r = bench_room(n * n, 8),
           best = INFINITY;
    for (int64_t i = 0; i < n * n; i++) a[i] = b[i] = (double)(i % 7) - 3;
    for (int k = 0; k <= repeats; k++) {
        comm_barrier(c);
        const double start = clock_now_s();
        gemm_f64(GEMM_N, GEMM_N, n, n, n, a, n, b, n, GEMM_SET, r, n);
        const double t = bench_slowest(c, start);
        if (k > 0) best = fmin(best, t);
    }
    mem_free(a), mem_free(b), mem_free(r);
    return comm_size(c) * 2 * pow((double)n, 3) / best;
}

static void random_matrix(int64_t rows, int64_t cols, uint64_t stream, wmat *w) {
    bench_need(wmat_init(w, WMAT_BF16, rows, cols, "bench"));
    bf16 *v = w->data;
    const float scale = (float)sqrt(12.0 / (double)cols);
#pragma omp parallel for
    for (int64_t i = 0; i < rows * cols; i++) {
        const uint64_t at = (stream << 40) + (uint64_t)i;
        v[i] = half_to_bf16((float)(rng_uniform(1, RNG_TEST, at) - 0.5) * scale);
    }
}

static float *ones(int64_t n) {
    float *p = bench_room(n, sizeof *p);
    for (int64_t i = 0; i < n; i++) p[i] = 1;
    return p;
}

void bench_stage(const llama_config *c, bool ends, compute_type compute, llama_stage *s) {
    bench_need(llama_stage_init(s, c, 0, c->layers));
    for (int64_t i = 0; i < c->layers; i++) {
        llama_layer *l = &s->layers[i];
        for (int k = 0; k < LLAMA_LINEARS; k++) {
            llama_tensor t;
            llama_tensor_of(c, llama_linears[k], i, &t);
            random_matrix(t.rows, t.cols, (uint64_t)k + 1, llama_layer_linear(l, k));
        }
        l->attn_norm = ones(c->hidden);
        l->mlp_norm = ones(c->hidden);
    }
    if (ends) {
        random_matrix(c->vocab, c->hidden, LLAMA_LINEARS + 1, &s->embed);
        s->head_is_embed = true;
        s->final_norm = ones(c->hidden);
    }
    bench_need(llama_stage_prepare(s, compute));
}
