/* Cost of a learning step: forward with sites, cross entropy, backward to the rotations; random
 * weights, one process, no files.
 *   bench_backward step [bf16|fp32] [window] [repeats] [detached|through|off]
 *     the shape of SmolLM2-135M, W16A4KV4, R1..R4, windows of 1024: tokens a second
 *   bench_backward layer [slice] [window] [repeats] [detached|through|off] [hidden intermediate]
 *     one layer of a 70B model in bf16 (8192, 28672, 64 heads of 8): forward and backward of the
 *     last slice, as a share of the bf16 product peak measured just before */
#include "base/clock.h"
#include "base/gemm.h"
#include "base/mem.h"
#include "base/rng.h"
#include "bench/bench.h"
#include "model/capture.h"
#include "model/objective.h"
#include "rotations/rotation.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A dense orthogonal matrix, quickly: a product of Householder reflections. */
static rotation *some_rotation(int64_t n, uint64_t stream) {
    double *R = bench_room(n * n, sizeof *R), *v = bench_room(n, sizeof *v),
           *p = bench_room(n, sizeof *p);
    for (int64_t i = 0; i < n; i++) R[i * n + i] = 1;
    for (int k = 0; k < 8; k++) {
        double norm = 0;
        for (int64_t i = 0; i < n; i++) {
            v[i] = rng_normal(3, RNG_TEST, (stream << 40) + (uint64_t)(k * n + i));
            norm += v[i] * v[i];
        }
        memset(p, 0, (size_t)n * sizeof *p);
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < n; j++) p[j] += v[i] * R[i * n + j];
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < n; j++) R[i * n + j] -= 2 / norm * v[i] * p[j];
    }
    rotation *r;
    bench_need(rotation_create_dense(n, R, &r));
    mem_free(R);
    mem_free(v);
    mem_free(p);
    return r;
}

typedef struct setting {
    llama_sites sites;
    rotation *r1, *r3, *r4, **r2;
    bool on, through;
} setting;

static void make_sites(const llama_config *c, const char *range, setting *s) {
    *s = (setting){.on = strcmp(range, "off") != 0, .through = strcmp(range, "through") == 0};
    s->sites = llama_sites_none();
    if (!s->on) return;
    s->r2 = bench_room(c->layers, sizeof *s->r2);
    s->r1 = some_rotation(c->hidden, 1);
    for (int64_t i = 0; i < c->layers; i++) s->r2[i] = some_rotation(c->head_dim, 2 + (uint64_t)i);
    bench_need(rotation_create_hadamard(c->head_dim, NULL, &s->r3));
    bench_need(rotation_create_hadamard(c->intermediate, NULL, &s->r4));
    s->sites.act.bits = s->sites.kv.bits = 4;
    s->sites.o_per_head = true;
    s->sites.R1 = s->r1;
    s->sites.R2 = (const rotation *const *)s->r2;
    s->sites.R3 = s->r3;
    s->sites.R4 = s->r4;
}

static void bench_step(compute_type compute, int64_t window, int repeats, const char *range) {
    const llama_config c = {.hidden = 576,
                            .intermediate = 1536,
                            .layers = 30,
                            .heads = 9,
                            .kv_heads = 3,
                            .head_dim = 64,
                            .vocab = 49152,
                            .rms_eps = 1e-5,
                            .rope_theta = 1e5};
    llama_stage stage;
    setting s;
    bench_stage(&c, true, compute, &stage);
    make_sites(&c, range, &s);
    const llama_pass_shape shape = {.compute = compute,
                                    .window = window,
                                    .slice = window,
                                    .through = s.through,
                                    .r1 = s.on,
                                    .r2 = s.on,
                                    .head = true};
    llama_work *work;
    llama_layers *layers;
    bench_need(llama_work_create(&c, &s.sites, &shape, &work));
    bench_need(llama_layers_create(&c, &s.sites, &shape, c.layers, false, &layers));
    bench_need(llama_work_put_r1(work, s.r1));
    float *x = bench_room(window * c.hidden, sizeof *x),
          *R1 = bench_room(c.hidden * c.hidden, sizeof *R1);
    int32_t *ids = bench_room(window, sizeof *ids);
    void **R2 = bench_room(c.layers, sizeof *R2);
    for (int64_t i = 0; i < c.layers; i++)
        R2[i] = bench_room(c.head_dim * c.head_dim, sizeof(float));
    for (int64_t t = 0; t < window; t++) ids[t] = (int32_t)(t * 7919 % c.vocab);
    double best[4] = {1e30}, sum;
    for (int i = 0; i <= repeats; i++) { /* the first warms up */
        double at[4] = {clock_now_s()};
        bench_need(llama_embed(&stage, compute, ids, window, x));
        bench_need(llama_layers_save(layers, &stage, &s.sites, window, x, work));
        at[1] = clock_now_s();
        bench_need(llama_ce_backward(&stage, window, x, ids, 1, x, &sum, NULL, work));
        at[2] = clock_now_s();
        bench_need(llama_layers_backward(layers, &stage, &s.sites, window, x, R1, R2, NULL, work));
        at[3] = clock_now_s();
        if (i == 0 || at[3] - at[0] >= best[0]) continue;
        best[0] = at[3] - at[0];
        for (int k = 1; k < 4; k++) best[k] = at[k] - at[k - 1];
    }
    printf("%s: %.0f tokens/s; forward %.0f ms, loss %.0f ms, backward %.0f ms; saved %.0f MB, "
           "work %.0f MB; loss %.4f\n",
           range, (double)window / best[0], best[1] * 1e3, best[2] * 1e3, best[3] * 1e3,
           (double)llama_layers_bytes(&c, &s.sites, &shape, c.layers, false) / 1e6,
           (double)llama_work_bytes(&c, &s.sites, &shape, gemm_threads()) / 1e6,
           sum / (double)window);
}

static double product_peak(void) {
    const int64_t m = 512, n = 8192, k = 8192;
    bf16 *a = bench_room(m * k, sizeof *a), *b = bench_room(n * k, sizeof *b);
    float *c = bench_room(m * n, sizeof *c);
    for (int64_t i = 0; i < m * k; i++) a[i] = half_to_bf16((float)(i % 7) - 3);
    for (int64_t i = 0; i < n * k; i++) b[i] = half_to_bf16((float)(i % 5) - 2);
    double best = 1e30;
    for (int i = 0; i < 5; i++) {
        double start = clock_now_s();
        gemm_bf16(GEMM_T, m, n, k, a, k, b, k, GEMM_SET, c, n);
        best = fmin(best, clock_now_s() - start);
    }
    mem_free(a);
    mem_free(b);
    mem_free(c);
    return 2.0 * (double)(m * n) * (double)k / best;
}

static void bench_layer(int64_t slice, int64_t window, int repeats, const char *range,
                        int64_t hidden, int64_t intermediate) {
    const llama_config c = {.hidden = hidden,
                            .intermediate = intermediate,
                            .layers = 1,
                            .heads = hidden / 128,
                            .kv_heads = hidden / 1024,
                            .head_dim = 128,
                            .vocab = 128,
                            .rms_eps = 1e-5,
                            .rope_theta = 5e5};
    llama_stage stage;
    setting s;
    const double peak = product_peak();
    bench_stage(&c, false, COMPUTE_BF16, &stage);
    make_sites(&c, range, &s);
    const llama_pass_shape shape = {.compute = COMPUTE_BF16,
                                    .window = window,
                                    .slice = slice,
                                    .through = s.through,
                                    .r1 = s.on,
                                    .r2 = s.on};
    llama_work *work;
    llama_saved *saved;
    bench_need(llama_work_create(&c, &s.sites, &shape, &work));
    bench_need(llama_saved_create(&c, &s.sites, &shape, &saved));
    bench_need(llama_work_put_r1(work, s.r1));
    float *x = bench_room(window * hidden, sizeof *x),
          *dx = bench_room(window * hidden, sizeof *dx);
    const rotation_grads grads = {.R1 = s.on ? bench_room(hidden * hidden, sizeof(float)) : NULL,
                                  .R2 = s.on ? bench_room(128 * 128, sizeof(float)) : NULL};
    double forward = 1e30, backward = 1e30;
    for (int i = 0; i <= repeats; i++) {
        for (int64_t j = 0; j < window * hidden; j++) {
            x[j] = (float)(j * 7919 % 1009) / 500 - 1;
            dx[j] = (float)(j * 31 % 1013) / 500 - 1;
        }
        double start = 0;
        for (int64_t t = 0; t < window; t += slice) {
            start = clock_now_s();
            bench_need(llama_block_forward_save(&stage, 0, &s.sites, t, slice, x + t * hidden,
                                                saved, work));
        }
        double middle = clock_now_s();
        bench_need(llama_block_backward(&stage, 0, &s.sites, window - slice, slice,
                                        dx + (window - slice) * hidden, saved, &grads, NULL, work));
        double end = clock_now_s();
        forward = fmin(forward, middle - start);
        backward = fmin(backward, end - middle);
    }
    const double weights = (double)(hidden * (2 * hidden + hidden / 4 + 3 * intermediate));
    const double rotations = s.on ? 3.0 * 2 * (double)(hidden * hidden) : 0;
    const double attention = 7.0 * (double)(hidden * (window - slice / 2));
    const double flop = 2 * (double)slice * (2 * weights + rotations + attention);
    printf("%s: peak %.0f GF/s; forward %.0f ms, backward %.0f ms: %.0f GF/s, %.0f %% of the peak "
           "(weights alone %.0f %%); saved %.1f MB, work %.1f MB, held at most %.1f MB\n",
           range, peak / 1e9, forward * 1e3, backward * 1e3, flop / (forward + backward) / 1e9,
           100 * flop / (forward + backward) / peak,
           100 * 4 * (double)slice * weights / (forward + backward) / peak,
           (double)llama_saved_bytes(&c, &s.sites, &shape) / 1e6,
           (double)llama_work_bytes(&c, &s.sites, &shape, gemm_threads()) / 1e6,
           (double)mem_peak_bytes() / 1e6);
}

int main(int argc, char **argv) {
    const bool layer = argc > 1 && strcmp(argv[1], "layer") == 0;
    const char *range = argc > 5 ? argv[5] : "detached";
    gemm_init(1);
    char kernels[256];
    gemm_kernels(kernels, sizeof kernels);
    printf("%s, %d threads\n", kernels, gemm_threads());
    if (layer) {
        const int64_t hidden = argc > 6 ? atoll(argv[6]) : 8192;
        if (hidden < 1024 || hidden % 1024) { /* eight heads of 128 share a key and a value */
            fprintf(stderr, "bench_backward: hidden is a multiple of 1024\n");
            return 2;
        }
        bench_layer(argc > 2 ? atoll(argv[2]) : 512, argc > 3 ? atoll(argv[3]) : 2048,
                    argc > 4 ? atoi(argv[4]) : 3, range, hidden, argc > 7 ? atoll(argv[7]) : 28672);
    } else {
        bench_step(argc > 2 && strcmp(argv[2], "fp32") == 0 ? COMPUTE_F32 : COMPUTE_BF16,
                   argc > 3 ? atoll(argv[3]) : 1024, argc > 4 ? atoi(argv[4]) : 3, range);
    }
    return 0;
}
