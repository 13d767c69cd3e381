/* Rows of R1 drawn by importance, from as many tokens as there is room for: then every token is
 * there once, and its weight is its sensitivity, clamped at the 99.99 % quantile of the model, over
 * the mean; on any number of ranks. With room for a part, the mean is estimated. */
#include "base/rng.h"
#include "pipeline/learn/row_pool.h"
#include "tests/mpi/on_ranks.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N = 32, WINDOW = 1500, LAYERS = 4, SETS = 2 * LAYERS };

static const llama_config cfg = {
    .hidden = N, .intermediate = 40, .layers = LAYERS, .heads = 4, .kv_heads = 2, .head_dim = 8};

/* Gradients of powers of two, exact in bf16: token t of a set has |g|^2 = N 4^k. The first of the
 * model is far above all, and above the clamp: it is one of more than 10^4 tokens, and of no other
 * is k above 4. */
static int exponent_of(int64_t set, int64_t t) {
    if (set == 0 && t == 0) return 12;
    return (int)(rng_u64(1, RNG_TEST, (uint64_t)(set * WINDOW + t)) % 5);
}

static void fill(int64_t set, float *x, float *g) {
    for (int64_t t = 0; t < WINDOW; t++)
        for (int64_t j = 0; j < N; j++) {
            /* Which token it is, in two numbers that bf16 has. */
            x[t * N + j] = j == 0 ? (float)(t % 64) : j == 1 ? (float)(t / 64) : 1;
            g[t * N + j] = ldexpf(1, exponent_of(set, t)) * (j % 2 ? 1 : -1);
        }
}

static noise_rows *offer(int64_t first, int64_t n, int64_t rows) {
    noise_rows *p;
    const int64_t window = 0;
    OK(noise_rows_create(&cfg, first, n, 1u << CLIP_ATTN | 1u << CLIP_MLP, WINDOW, rows, &p));
    const llama_hook hook = noise_rows_hook(p, &window);
    float *x = calloc((size_t)WINDOW * N, sizeof *x), *g = calloc((size_t)WINDOW * N, sizeof *g);
    if (!x || !g) abort();
    for (int64_t i = 0; i < 2 * n; i++) {
        fill(2 * first + i, x, g);
        OK(hook.take(hook.ctx, first + i / 2, i % 2 ? HOOK_MLP_IN : HOOK_ATTN_IN, 0, WINDOW, N, x,
                     g));
    }
    noise_rows_finish(p);
    free(x);
    free(g);
    return p;
}

/* |g|^2 as it counts. */
static double clamped(int64_t set, int64_t t) {
    const int k = exponent_of(set, t);
    return N * ldexp(1, 2 * (k > 4 ? 4 : k));
}

static double mean_of_all(void) {
    double sum = 0;
    for (int64_t s = 0; s < SETS; s++)
        for (int64_t t = 0; t < WINDOW; t++) sum += clamped(s, t);
    return sum / (SETS * WINDOW);
}

static void whole(const comm *c, int64_t first, int64_t n) {
    row_pool p;
    noise_rows *rows = offer(first, n, WINDOW);
    const double mean = mean_of_all();
    OK(row_pool_init(&cfg, first, n, WINDOW, &p));
    OK(row_pool_draw(c, &p, rows, WINDOW));
    check(fabs(p.drawn_mean / mean - 1) < 1e-5, "the mean over tokens"); /* weights are floats */
    for (int64_t i = 0; i < 2 * n; i++) {
        bool seen[WINDOW] = {false}, right = true;
        for (int64_t r = 0; r < WINDOW; r++) {
            const bf16 *x = p.drawn[i].x + r * N;
            const int64_t t = (int64_t)(half_from_bf16(x[0]) + 64 * half_from_bf16(x[1]));
            const double want = clamped(2 * first + i, t) / mean;
            right &= !seen[t] && fabs((double)p.drawn[i].w[r] / want - 1) < 1e-5;
            seen[t] = true;
        }
        check(right, "every token once, by its sensitivity");
    }
    row_pool_switch(&p);
    check(fabs(p.mean[POOL_R1] / mean - 1) < 1e-5, "switched");
    row_pool_switch(&p);
    check(fabs(p.drawn_mean / mean - 1) < 1e-5, "and back");
    row_pool_clear(&p);
    noise_rows_destroy(&rows);
}

/* A third of the tokens. Sizes are (N 4^k)^(3/4), k below 5, but for one row that is surely there;
 * an estimate of a sum of w has a variance of at most sum w^2 / p t, and t <= sum p / (m - 1): five
 * standard deviations of that. */
static void part(const comm *c, int64_t first, int64_t n) {
    enum { ROOM = WINDOW / 3 };
    row_pool p;
    noise_rows *rows = offer(first, n, ROOM);
    double variance = 0;
    for (int64_t s = 0; s < SETS; s++) {
        double sizes = 0, spread = 0;
        for (int64_t t = 0; t < WINDOW; t++) {
            if (s == 0 && t == 0) continue;
            const double w = clamped(s, t), size = pow(w, 0.75);
            sizes += size;
            spread += w * w / size;
        }
        variance += spread * sizes / (ROOM - 2);
    }
    OK(row_pool_init(&cfg, first, n, ROOM, &p));
    OK(row_pool_draw(c, &p, rows, WINDOW));
    const double off = fabs(p.drawn_mean - mean_of_all()) * SETS * WINDOW;
    check(off <= 5 * sqrt(variance), "the mean is estimated");
    row_pool_clear(&p);
    noise_rows_destroy(&rows);
}

int main(int argc, char **argv) {
    const comm *c = ranks_start(&argc, &argv);
    const int64_t rank = comm_rank(c), size = comm_size(c), first = LAYERS * rank / size,
                  n = LAYERS * (rank + 1) / size - first;
    whole(c, first, n);
    part(c, first, n);
    return ranks_end();
}
