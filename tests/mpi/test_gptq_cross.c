/* W C of GPTAQ, whose columns are dealt to ranks: rows of it against sums in fp64 made here from
 * the inputs, the bits of one rank on any number of ranks and nodes, and the bytes that go between
 * them against their plan. */
#include "base/mem.h"
#include "base/rng.h"
#include "pipeline/gptq/gptq_stack.h"
#include "tests/mpi/on_ranks.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Three units of columns, the last one smaller; rows of three units, likewise. */
enum { N = 1300, ROWS = 150, LENGTH = 12, COUNT = 9, TOKENS = LENGTH * COUNT };

static void *room(int64_t n, size_t size) {
    void *p;
    OK(mem_alloc(n, size, "test", &p));
    return p;
}

static bf16 entry(uint64_t seed, int64_t i) {
    return half_to_bf16((float)rng_normal(seed, RNG_TEST, (uint64_t)i));
}

static void fill_windows(gptq_windows *windows, int stream) {
    for (int64_t i = 0; i < gptq_windows_own(windows); i++) {
        const int64_t at = gptq_windows_number(windows, i) * LENGTH * N;
        bf16 *x;
        OK(gptq_windows_get_input(windows, stream, i, &x));
        for (int64_t k = 0; k < LENGTH * N; k++) x[k] = entry((uint64_t)stream, at + k);
        OK(gptq_windows_put_input(windows, stream, i));
    }
}

/* Rows of this rank of W C, in *own0 and on; caller owns them. */
static double *product(const comm *c, int64_t *own0, int64_t *own_n) {
    const llama_config cfg = {.hidden = ROWS,
                              .intermediate = N,
                              .heads = 2,
                              .kv_heads = 2,
                              .head_dim = ROWS / 2,
                              .layers = 1,
                              .vocab = 8};
    const quantize_job job = {.cfg = &cfg,
                              .how = {.bits = 4, .symmetric = true, .scale_type = SCALE_BF16}};
    const gptq_windows_options o = {.cfg = &cfg, .count = COUNT, .length = LENGTH, .streams = 2};
    double *diagonal = room(N, sizeof *diagonal);
    gptq_run r = {.s = {.batches = 1,
                        .c = c,
                        .job = &job,
                        .n_windows = COUNT,
                        .length = LENGTH,
                        .asymmetric = true,
                        .alpha = 1}};
    gptq_stack k;
    OK(gptq_windows_create(c, &o, &r.windows));
    fill_windows(r.windows, GPTQ_QUANTIZED);
    fill_windows(r.windows, GPTQ_FULL);
    r.moments = (gptq_moments){.c = c, .windows = r.windows};
    OK(gptq_stack_init(&r, STEP_DOWN, &k));
    OK(gptq_stack_init_cross(&k));
    for (int64_t i = 0; i < ROWS * N && k.all; i++) k.all[i] = half_from_bf16(entry(7, i));
    for (int64_t i = 0; i < k.own_n * N; i++) k.w[i] = half_from_bf16(entry(7, k.own0 * N + i));
    OK(gptq_moments_diagonal(&r.moments, N, "test", diagonal));
    OK(gptq_stack_cross(&k));
    check(!k.all, "weights of other ranks' rows are given back");
    double *cross = k.cross;
    k.cross = NULL;
    *own0 = k.own0, *own_n = k.own_n;
    gptq_stack_clear(&k);
    gptq_moments_clear(&r.moments);
    gptq_windows_destroy(&r.windows);
    mem_free(diagonal);
    return cross;
}

/* Row i of W C is 2/N sum over tokens of (w_i d_t) x_t, d_t the difference as bf16 holds it. */
static void check_row(const double *row, int64_t i) {
    double y[TOKENS], size = 0;
    for (int64_t t = 0; t < TOKENS; t++) {
        y[t] = 0;
        for (int64_t j = 0; j < N; j++) {
            const float x = half_from_bf16(entry(GPTQ_QUANTIZED, t * N + j)),
                        d = half_from_bf16(
                            half_to_bf16(half_from_bf16(entry(GPTQ_FULL, t * N + j)) - x));
            y[t] += (double)d * (double)half_from_bf16(entry(7, i * N + j));
            size = fmax(size, fabs((double)(d * x)));
        }
    }
    double weights = 0, worst = 0;
    for (int64_t j = 0; j < N; j++) weights += fabs((double)half_from_bf16(entry(7, i * N + j)));
    for (int64_t j = 0; j < N; j += 31) {
        double want = 0;
        for (int64_t t = 0; t < TOKENS; t++)
            want += y[t] * (double)half_from_bf16(entry(GPTQ_QUANTIZED, t * N + j));
        worst = fmax(worst, fabs(row[j] - 2 * want / TOKENS));
    }
    /* LENGTH products a window in fp32, for each weight */
    check(worst <= LENGTH * 0x1p-24 * 2 * size * weights, "a row against fp64");
    check(worst > 0, "products of a window are summed in fp32");
}

/* Sums of columns go to one rank each, products to all but their own; `parties` are ranks or nodes.
 */
static void check_sent(const comm *c, uint64_t sent, int parties, const char *what) {
    int64_t all = (int64_t)sent;
    comm_sum_i64(c, &all, 1);
    const double square = 8.0 * N * N, rows = 8.0 * ROWS * N, most = parties - 1,
                 dealt = rows * most / parties;
    /* the ranks' shares are not equal, and the diagonal and agreements are small */
    check((double)all >= square * most && (double)all <= square * most * 1.03 + 1.5 * dealt, what);
}

static void test_on(const comm *c, const double *alone) {
    const uint64_t sent = comm_sent_bytes(), network = comm_network_bytes();
    int64_t own0, own_n;
    double *cross = product(c, &own0, &own_n);
    check_sent(c, comm_sent_bytes() - sent, comm_size(c), "bytes between ranks");
    check_sent(c, comm_network_bytes() - network, comm_nodes(c), "bytes between nodes");
    check(!memcmp(cross, alone + own0 * N, (size_t)(own_n * N) * sizeof *cross),
          "the bits of one rank");
    mem_free(cross);
}

int main(int argc, char **argv) {
    static const char *const nodes[] = {"0,0,0,0", "0,1,1,0", "0,0,1,2"};
    const comm *c = ranks_start(&argc, &argv);
    comm *one;
    int64_t own0, own_n;
    OK(comm_split(c, comm_rank(c), "alone", &one));
    double *alone = product(one, &own0, &own_n);
    for (int64_t i = comm_rank(c); i < ROWS; i += 29) check_row(alone + i * N, i);
    comm_destroy(&one);
    for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++) {
        comm *dealt;
        setenv("SPINSHARD_TEST_NODES", nodes[i], 1);
        OK(comm_split(c, 0, "nodes", &dealt));
        test_on(dealt, alone);
        comm_destroy(&dealt);
    }
    mem_free(alone);
    return ranks_end();
}
