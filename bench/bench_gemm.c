/* Speed of the matrix products: whole products by tiles on all threads, and one tile on one thread,
 * which is what the library itself gives. Prints GF/s of wall time; run it on a quiet machine.
 *   bench_gemm [repeats] */
#include "base/clock.h"
#include "base/gemm.h"
#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>

typedef struct shape {
    int64_t m, n, k;
} shape;

static const shape model_shapes[] = {{1024, 576, 576},   {1024, 192, 576},   {1024, 1536, 576},
                                     {1024, 576, 1536},  {1023, 49152, 576}, {512, 8192, 8192},
                                     {512, 28672, 8192}, {512, 8192, 28672}, {2048, 2048, 2048}};
static const shape tile_shapes[] = {
    {256, 192, 576}, {256, 256, 576}, {256, 192, 512}, {256, 256, 512}, {288, 256, 64}};

static void *filled(int64_t n, size_t size) {
    void *p;
    err e = mem_alloc(n, size, "bench", &p);
    if (e.code) {
        fprintf(stderr, "%s: %s\n", e.where, e.what);
        exit(1);
    }
    for (int64_t i = 0; i < n; i++) {
        float x = (float)(i % 7) - 3;
        if (size == sizeof(double))
            ((double *)p)[i] = x;
        else if (size == sizeof(float))
            ((float *)p)[i] = x;
        else
            ((bf16 *)p)[i] = half_to_bf16(x);
    }
    return p;
}

static void product(size_t element, bool tile, shape s, const void *x, const void *w, void *y) {
    const int64_t m = s.m, n = s.n, k = s.k;
    if (element == 8 && tile) gemm_tile_f64(GEMM_N, GEMM_T, m, n, k, x, k, w, k, GEMM_SET, y, n);
    if (element == 4 && tile) gemm_tile_f32(GEMM_N, GEMM_T, m, n, k, x, k, w, k, GEMM_SET, y, n);
    if (element == 2 && tile) gemm_tile_bf16(GEMM_T, m, n, k, x, k, w, k, GEMM_SET, y, n);
    if (element == 8 && !tile) gemm_f64(GEMM_N, GEMM_T, m, n, k, x, k, w, k, GEMM_SET, y, n);
    if (element == 4 && !tile) gemm_f32(GEMM_N, GEMM_T, m, n, k, x, k, w, k, GEMM_SET, y, n);
    if (element == 2 && !tile) gemm_bf16(GEMM_T, m, n, k, x, k, w, k, GEMM_SET, y, n);
}

static double measure(size_t element, bool tile, shape s, int repeats) {
    void *x = filled(s.m * s.k, element), *w = filled(s.n * s.k, element);
    void *y = filled(s.m * s.n, element == 8 ? 8 : 4);
    const double flop = 2.0 * (double)s.m * (double)s.n * (double)s.k;
    const int inner = flop < 1e9 ? (int)(1e9 / flop) + 1 : 1;
    double best = 1e30;
    for (int i = 0; i <= repeats; i++) { /* the first makes the kernels */
        double start = clock_now_s();
        for (int j = 0; j < inner; j++) product(element, tile, s, x, w, y);
        double t = (clock_now_s() - start) / inner;
        if (i > 0 && t < best) best = t;
    }
    mem_free(x);
    mem_free(w);
    mem_free(y);
    return flop / best * 1e-9;
}

static void table(const char *title, bool tile, const shape *shapes, size_t n, int repeats) {
    printf("%s\n%24s %9s %9s %9s  GF/s\n", title, "y = x W^T [m, n, k]", "bf16", "fp32", "fp64");
    for (size_t i = 0; i < n; i++) {
        const shape s = shapes[i];
        char name[64];
        snprintf(name, sizeof name, "%lld x %lld x %lld", (long long)s.m, (long long)s.n,
                 (long long)s.k);
        printf("%24s", name);
        for (size_t element = 2; element <= 8; element *= 2) {
            printf(" %9.0f", measure(element, tile, s, repeats));
            fflush(stdout);
        }
        printf("\n");
    }
}

int main(int argc, char **argv) {
    const int repeats = argc > 1 ? atoi(argv[1]) : 3;
    gemm_init(1);
    char line[512];
    gemm_kernels(line, sizeof line);
    printf("%s, %d threads\n", line, gemm_threads());
    if (gemm_slow_kernels(line, sizeof line)) printf("warning: %s\n", line);
    table("one tile, one thread", true, tile_shapes, sizeof tile_shapes / sizeof *tile_shapes,
          repeats);
    table("whole products, all threads", false, model_shapes,
          sizeof model_shapes / sizeof *model_shapes, repeats);
    return 0;
}
