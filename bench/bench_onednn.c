/* The bf16 product beside what the libraries give at best on one thread: oneDNN's matmul on the
 * whole product, weights packed beforehand and not timed, as its own benchmark does; and the
 * library's product in fp32 on widened factors. CPU time of the thread, best of so many runs in
 * turn, so other work on the machine weighs little. Prints GF/s, and ours as a share of the better
 * one. ONEDNN_MAX_CPU_ISA=AVX512_CORE OMP_NUM_THREADS=1 bench_onednn [repeats] */
#include "base/gemm.h"
#include "base/mem.h"
#include "version.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#if SPINSHARD_DNNL
#include "base/onednn.h"

typedef struct product {
    int64_t m, n, k; /* y [m,n] = x [m,k] w^T, w [n,k] */
    bf16 *x, *w;
    float *x32, *w32, *y;
    matmul whole;
    dnnl_stream_t stream;
    void *packed;
} product;

static void need(dnnl_status_t s) {
    if (s == dnnl_success) return;
    fprintf(stderr, "oneDNN: status %d\n", (int)s);
    exit(1);
}

static void *room(int64_t n, size_t size) {
    void *p;
    err e = mem_alloc(n, size, "bench", &p);
    if (!e.code) return p;
    fprintf(stderr, "%s: %s\n", e.where, e.what);
    exit(1);
}

static void fill(bf16 **narrow, float **wide, int64_t n) {
    *narrow = room(n, sizeof **narrow);
    *wide = room(n, sizeof **wide);
    for (int64_t i = 0; i < n; i++) {
        (*wide)[i] = (float)(i % 7) - 3;
        (*narrow)[i] = half_to_bf16((*wide)[i]);
    }
}

static void prepare(product *p, dnnl_engine_t engine) {
    const matmul_key key = {.m = p->m, .n = p->n, .k = p->k, .lda = p->k, .ldc = p->n, .packed = 1};
    fill(&p->x, &p->x32, p->m * p->k);
    fill(&p->w, &p->w32, p->n * p->k);
    p->y = room(p->m * p->n, sizeof *p->y);
    need(onednn_matmul_create(engine, &key, &p->whole));
    need(onednn_pack_create(engine, true, p->k, &p->whole));
    need(dnnl_stream_create(&p->stream, engine, dnnl_stream_default_flags));
    p->packed = room((int64_t)p->whole.b_bytes, 1);
    need(dnnl_memory_set_data_handle(p->whole.loose, p->w));
    need(dnnl_memory_set_data_handle(p->whole.packed, p->packed));
    const dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, p->whole.loose},
                                    {DNNL_ARG_TO, p->whole.packed}};
    need(dnnl_primitive_execute(p->whole.pack, p->stream, 2, args));
    need(dnnl_stream_wait(p->stream));
    need(dnnl_memory_set_data_handle(p->whole.a, p->x));
    need(dnnl_memory_set_data_handle(p->whole.b, p->packed));
    need(dnnl_memory_set_data_handle(p->whole.c, p->y));
}

static void run_onednn(product *p) {
    const dnnl_exec_arg_t args[] = {
        {DNNL_ARG_SRC, p->whole.a}, {DNNL_ARG_WEIGHTS, p->whole.b}, {DNNL_ARG_DST, p->whole.c}};
    need(dnnl_primitive_execute(p->whole.primitive, p->stream, 3, args));
    need(dnnl_stream_wait(p->stream));
}

static void run_fp32(product *p) {
    gemm_tile_f32(GEMM_N, GEMM_T, p->m, p->n, p->k, p->x32, p->k, p->w32, p->k, GEMM_SET, p->y,
                  p->n);
}

static void run_ours(product *p) {
    gemm_bf16(GEMM_T, p->m, p->n, p->k, p->x, p->k, p->w, p->k, GEMM_SET, p->y, p->n);
}

static double cpu_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void compare(int64_t m, int64_t n, int64_t k, dnnl_engine_t engine, int repeats) {
    product p = {.m = m, .n = n, .k = k};
    void (*const ways[])(product *) = {run_onednn, run_fp32, run_ours};
    double best[] = {1e30, 1e30, 1e30};
    prepare(&p, engine);
    for (int i = 0; i <= repeats; i++) /* the first makes the kernels */
        for (int j = 0; j < 3; j++) {
            const double start = cpu_s();
            ways[j](&p);
            const double t = cpu_s() - start;
            if (i > 0 && t < best[j]) best[j] = t;
        }
    const double flop = 2e-9 * (double)m * (double)n * (double)k;
    const double least = best[0] < best[1] ? best[0] : best[1];
    printf("%5lld x %5lld x %5lld %9.0f %9.0f %9.0f %8.0f %%\n", (long long)m, (long long)n,
           (long long)k, flop / best[0], flop / best[1], flop / best[2], 100 * least / best[2]);
    fflush(stdout);
    void *const rooms[] = {p.x, p.w, p.x32, p.w32, p.y, p.packed};
    for (size_t i = 0; i < sizeof rooms / sizeof *rooms; i++) mem_free(rooms[i]);
}

int main(int argc, char **argv) {
    const int repeats = argc > 1 ? atoi(argv[1]) : 3;
    dnnl_engine_t engine;
    char line[512];
    gemm_init(1);
    gemm_kernels(line, sizeof line);
    if (gemm_threads() != 1) {
        fprintf(stderr, "one thread is compared with one: set OMP_NUM_THREADS=1\n");
        return 1;
    }
    need(dnnl_engine_create(&engine, dnnl_cpu, 0));
    printf("%s\n%21s %9s %9s %9s %10s  GF/s\n", line, "y = x W^T [m, n, k]", "oneDNN", "fp32",
           "ours", "of best");
    compare(2048, 2048, 2048, engine, repeats);
    compare(512, 28672, 8192, engine, repeats);
    return 0;
}
#else
int main(void) {
    fprintf(stderr, "built without oneDNN\n");
    return 1;
}
#endif
