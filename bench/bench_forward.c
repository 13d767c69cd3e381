/* Tokens per second of the forward pass and its loss on one process, random weights, no files.
 *   bench_forward [bf16|fp32|fp64] [window] [repeats] [hidden intermediate layers heads kv_heads
 * vocab] Default: the shape of SmolLM2-135M, bf16, windows of 1024. Then the same with 4-bit sites.
 */
#include "base/clock.h"
#include "base/gemm.h"
#include "base/mem.h"
#include "bench/bench.h"
#include "model/forward.h"
#include "rotations/rotation_set.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void measure(const char *what, const llama_stage *s, const llama_sites *sites,
                    compute_type compute, int64_t window, int repeats) {
    llama_scratch *scratch;
    void *x, *ids;
    bench_need(llama_scratch_create(s->cfg, sites, compute, window, &scratch));
    bench_need(mem_alloc(window * s->cfg->hidden, llama_real_bytes(compute), "bench", &x));
    bench_need(mem_alloc(window, sizeof(int32_t), "bench", &ids));
    for (int64_t t = 0; t < window; t++) ((int32_t *)ids)[t] = (int32_t)(t * 7919 % s->cfg->vocab);
    double best = 1e30, best_layers = 0, sum;
    for (int i = 0; i <= repeats; i++) { /* the first warms up */
        double start = clock_now_s();
        bench_need(llama_embed(s, compute, ids, window, x));
        bench_need(llama_layers_forward(s, sites, window, x, scratch));
        double layers = clock_now_s() - start;
        bench_need(llama_head_nll(s, window, x, ids, scratch, &sum, NULL));
        double all = clock_now_s() - start;
        if (i > 0 && all < best) {
            best = all;
            best_layers = layers;
        }
    }
    printf("%-24s %8.0f tokens/s, layers %.1f ms, head %.1f ms, scratch %.1f MB\n", what,
           (double)window / best, best_layers * 1e3, (best - best_layers) * 1e3,
           (double)llama_scratch_bytes(s->cfg, sites, compute, window, gemm_threads()) / 1e6);
    mem_free(x);
    mem_free(ids);
    llama_scratch_destroy(&scratch);
}

static compute_type parse_type(const char *name) {
    return strcmp(name, "fp64") == 0   ? COMPUTE_F64
           : strcmp(name, "fp32") == 0 ? COMPUTE_F32
                                       : COMPUTE_BF16;
}

int main(int argc, char **argv) {
    llama_config c = {.hidden = 576,
                      .intermediate = 1536,
                      .layers = 30,
                      .heads = 9,
                      .kv_heads = 3,
                      .vocab = 49152,
                      .rms_eps = 1e-5,
                      .rope_theta = 1e5};
    const compute_type compute = parse_type(argc > 1 ? argv[1] : "bf16");
    const int64_t window = argc > 2 ? atoll(argv[2]) : 1024;
    const int repeats = argc > 3 ? atoi(argv[3]) : 5;
    if (argc > 9) {
        c.hidden = atoll(argv[4]);
        c.intermediate = atoll(argv[5]);
        c.layers = atoll(argv[6]);
        c.heads = atoll(argv[7]);
        c.kv_heads = atoll(argv[8]);
        c.vocab = atoll(argv[9]);
    }
    c.head_dim = c.hidden / c.heads;
    gemm_init(1);
    char kernels[256];
    gemm_kernels(kernels, sizeof kernels);
    printf("%s, %d threads, window %lld\n", kernels, gemm_threads(), (long long)window);
    llama_stage s;
    bench_stage(&c, true, compute, &s);
    measure("plain", &s, NULL, compute, window, repeats);

    const rotation_options opts = {
        .r1 = true, .r2 = R2_NONE, .r3 = true, .r4 = true, .start = START_HAD};
    const rotation_sizes sizes = {c.hidden,   c.layers,       c.heads,  c.kv_heads,
                                  c.head_dim, c.intermediate, c.qk_norm};
    rotation_set *set;
    bench_need(rotation_set_create(&opts, &sizes, &set));
    llama_sites sites = llama_sites_none();
    sites.act.bits = sites.kv.bits = 4;
    sites.o_per_head = true;
    sites.R3 = rotation_set_r3(set);
    sites.R4 = rotation_set_r4(set);
    sites.r4_fused = true;
    measure("A4KV4, R1 fused", &s, &sites, compute, window, repeats);
    sites.R1 = rotation_set_r1(set);
    sites.r4_fused = false;
    measure("A4KV4, R1 and R4 at sites", &s, &sites, compute, window, repeats);
    rotation_set_destroy(&set);
    llama_stage_clear(&s);
    return 0;
}
