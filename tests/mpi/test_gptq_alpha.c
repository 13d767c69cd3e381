/* The strength of GPTAQ's term, chosen by windows that are held out. The windows learned from all
 * ask for the same correction of the weights; those held out ask for all, some, none or the
 * opposite of it. What is taken must leave the least error there, by sums in fp64 made here, and
 * the codes must be those of that strength; the same on any number of ranks. */
#include "base/mem.h"
#include "base/rng.h"
#include "pipeline/gptq/gptq_stack.h"
#include "tests/mpi/on_ranks.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 96, ROWS = 96, LENGTH = 48, COUNT = 16, BITS = 4 };

static void check_value(bool ok, const char *what, double value) {
    if (!ok) fprintf(stderr, "at %g: ", value);
    check(ok, what);
}

static void *room(int64_t n, size_t size) {
    void *p;
    OK(mem_alloc(n, size, "test", &p));
    return p;
}

static bool held_out(int64_t window, int64_t count) {
    return count >= GPTQ_HOLD_OUT && window % GPTQ_HOLD_OUT == GPTQ_HOLD_OUT - 1;
}

/* Inputs of a window, the same whoever makes them. Full precision: each channel and `share` of 0.3
 * of the one after it, which weights can make good. */
static void make_inputs(int64_t w, double share, bf16 *quantized, bf16 *full) {
    for (int64_t t = 0; t < LENGTH; t++) {
        float x[N];
        for (int64_t j = 0; j < N; j++)
            x[j] = half_from_bf16(
                half_to_bf16((float)rng_normal(3, RNG_TEST, (uint64_t)((w * LENGTH + t) * N + j))));
        for (int64_t j = 0; j < N; j++) {
            quantized[t * N + j] = half_to_bf16(x[j]);
            full[t * N + j] = half_to_bf16(x[j] + (float)(0.3 * share) * x[(j + 1) % N]);
        }
    }
}

typedef struct fixture {
    llama_config cfg;
    quantize_job job;
    gptq_run r;
    gptq_stack k;
    llama_stage full;
    gptq_order *o;
    hessian_factor *factor;
    float *w; /* [ROWS, N], as bf16 holds them */
    double held_share;
} fixture;

static void fill_windows(const fixture *f, int64_t count) {
    gptq_windows *w = f->r.windows;
    for (int64_t i = 0; i < gptq_windows_own(w); i++) {
        const int64_t number = gptq_windows_number(w, i);
        bf16 *q, *full;
        OK(gptq_windows_get_input(w, GPTQ_QUANTIZED, i, &q));
        OK(gptq_windows_get_input(w, GPTQ_FULL, i, &full));
        make_inputs(number, held_out(number, count) ? f->held_share : 1, q, full);
        OK(gptq_windows_put_input(w, GPTQ_QUANTIZED, i));
        OK(gptq_windows_put_input(w, GPTQ_FULL, i));
    }
}

static void fill_weights(fixture *f) {
    wmat *o;
    f->w = room(ROWS * N, sizeof *f->w);
    OK(llama_stage_init(&f->full, &f->cfg, 0, 1));
    o = llama_layer_linear(&f->full.layers[0], f->k.first_linear);
    OK(wmat_init(o, WMAT_BF16, ROWS, N, "test"));
    for (int64_t i = 0; i < ROWS * N; i++) {
        ((bf16 *)o->data)[i] = half_to_bf16((float)rng_normal(4, RNG_TEST, (uint64_t)i));
        f->w[i] = half_from_bf16(((bf16 *)o->data)[i]);
    }
    memcpy(f->k.w, f->w + f->k.own0 * N, (size_t)(f->k.own_n * N) * sizeof *f->w);
    if (f->k.all) memcpy(f->k.all, f->w, (size_t)(ROWS * N) * sizeof *f->w);
}

/* A run whose only layer is at the input of o_proj. */
static void begin(fixture *f, const comm *c, int64_t count, double held_share) {
    double diagonal[N];
    *f = (fixture){.cfg = {.hidden = ROWS,
                           .intermediate = N,
                           .heads = 2,
                           .kv_heads = 2,
                           .head_dim = N / 2,
                           .layers = 1,
                           .vocab = 8},
                   .held_share = held_share};
    f->job = (quantize_job){.cfg = &f->cfg,
                            .how = {.bits = BITS, .symmetric = true, .scale_type = SCALE_BF16}};
    f->r.s = (gptq_settings){
        .batches = 1,
        .c = c,
        .job = &f->job,
        .n_windows = count,
        .length = LENGTH,
        .asymmetric = true,
        .alpha = 1,
        .factor = {
            .damp = 0.01, .block = 32, .dist_from = 1 << 20, .grid = {1, 1}, .blas_threads = 1}};
    const gptq_windows_options o = {.cfg = &f->cfg, .count = count, .length = LENGTH, .streams = 2};
    OK(gptq_windows_create(c, &o, &f->r.windows));
    fill_windows(f, count);
    f->r.moments =
        (gptq_moments){.c = c, .windows = f->r.windows, .hold_out = count >= GPTQ_HOLD_OUT};
    OK(gptq_stack_init(&f->r, STEP_O, &f->k));
    OK(gptq_stack_init_cross(&f->k));
    fill_weights(f);
    OK(gptq_moments_diagonal(&f->r.moments, N, "the tensor", diagonal));
    OK(gptq_order_create(N, diagonal, true, &f->o));
    OK(hessian_factor_create(&f->r.moments, f->o, &f->r.s.factor, "test", &f->factor));
    OK(gptq_stack_cross(&f->k));
}

static void end(fixture *f) {
    hessian_factor_destroy(&f->factor);
    gptq_order_destroy(&f->o);
    gptq_stack_clear(&f->k);
    gptq_moments_clear(&f->r.moments);
    gptq_windows_destroy(&f->r.windows);
    llama_stage_clear(&f->full);
    mem_free(f->w);
}

/* |X W^T - X~ Q^T|^2 for the codes at hand, and *energy |X W^T|^2, of the windows held out; of all
 * where none are. */
static double slow_error(const fixture *f, double *energy) {
    const qmatrix *q = f->k.q;
    bf16 *seen = room(LENGTH * N, sizeof *seen), *full = room(LENGTH * N, sizeof *full);
    const int64_t count = f->r.s.n_windows;
    double sum = 0;
    *energy = 0;
    for (int64_t number = 0; number < count; number++) {
        if (count >= GPTQ_HOLD_OUT && !held_out(number, count)) continue;
        make_inputs(number, count >= GPTQ_HOLD_OUT ? f->held_share : 1, seen, full);
        for (int64_t t = 0; t < LENGTH; t++)
            for (int64_t i = 0; i < ROWS; i++) {
                double y = 0, z = 0;
                for (int64_t j = 0; j < N; j++) {
                    const int code = q->codes[i * N + j] - (1 << (BITS - 1));
                    y += (double)half_from_bf16(full[t * N + j]) * (double)f->w[i * N + j];
                    z += (double)half_from_bf16(seen[t * N + j]) * (double)q->scales[i] * code;
                }
                sum += (y - z) * (y - z);
                *energy += y * y;
            }
    }
    mem_free(seen);
    mem_free(full);
    return sum;
}

/* What is told of the outputs. Values of codes are rounded to bf16 there: 2^-9 of an output. */
static void check_told(fixture *f) {
    double energy;
    const double chosen = slow_error(f, &energy), bound = energy * 0x1p-9 * 0x1p-9,
                 both = 2 * sqrt(chosen * bound);
    check(f->k.measured && fabs(f->k.chosen.error[0] - chosen) <= bound + both, "error as kept");
    check(fabs(f->k.chosen.energy[0] - energy) <= 1e-5 * energy, "norm of the outputs");
    rtn_quantize_rows(&f->job.how, f->w, ROWS, N, 0, f->k.q);
    const double nearest = slow_error(f, &energy);
    check(fabs(f->k.nearest.error[0] - nearest) <= bound + 2 * sqrt(nearest * bound),
          "error by rounding to nearest");
}

/* Windows held out ask for so much of the correction; from first the strength `want` is taken. */
static void test_choice(const comm *c, double held_share, double first, double want,
                        uint8_t codes[ROWS * N]) {
    fixture f;
    double alpha = -1;
    begin(&f, c, COUNT, held_share);
    OK(gptq_stack_round_best(&f.k, f.o, f.factor, &f.full, first, &alpha));
    check_value(alpha == want, "the strength that is taken", alpha);
    memcpy(codes, f.k.q->codes, ROWS * N);
    double energy;
    const double taken = slow_error(&f, &energy);
    check_told(&f);
    for (int i = 0; i <= 2; i++) {
        const double other = first * i / 2;
        OK(gptq_stack_round(&f.k, f.o, f.factor, other));
        const double error = slow_error(&f, &energy);
        if (other == want)
            check_value(error == taken && !memcmp(codes, f.k.q->codes, ROWS * N), "its codes",
                        error);
        else
            check_value(taken < 0.9 * error, "its error is the least", taken / error);
    }
    end(&f);
}

/* Too few windows to hold any out: the strength that was asked for, no trials. */
static void test_no_windows_held_out(const comm *c) {
    fixture f;
    double alpha = -1;
    begin(&f, c, GPTQ_HOLD_OUT - 1, 0);
    OK(gptq_stack_round_best(&f.k, f.o, f.factor, &f.full, 0.7, &alpha));
    check_value(alpha == 0.7, "the strength asked for", alpha);
    check_told(&f);
    end(&f);
}

/* Infinity in the stream of full precision, in a window that is held out: no sum of H or C sees it.
 */
static void test_not_finite(const comm *c) {
    fixture f;
    bf16 *x;
    double alpha = -1;
    begin(&f, c, COUNT, 1);
    for (int64_t i = 0; i < gptq_windows_own(f.r.windows); i++) {
        if (gptq_windows_number(f.r.windows, i) != GPTQ_HOLD_OUT - 1) continue;
        OK(gptq_windows_get_input(f.r.windows, GPTQ_FULL, i, &x));
        x[5] = half_to_bf16(INFINITY);
    }
    const err e = gptq_stack_round_best(&f.k, f.o, f.factor, &f.full, 1, &alpha);
    check(e.code == ERR_NUMERICS && strstr(e.where, "the tensor") && strstr(e.what, "window 7"),
          "outputs that are not finite are refused on every rank");
    end(&f);
}

int main(int argc, char **argv) {
    static const struct {
        double held_share, first, want;
    } cases[] = {{1, 1, 1},  {0.5, 1, 0.5},     {0, 1, 0},
                 {-1, 1, 0}, {0.25, 0.5, 0.25}, {0.9, 0.5, 0.5}};
    static uint8_t codes[ROWS * N], others[ROWS * N];
    const comm *c = ranks_start(&argc, &argv);
    comm *alone;
    OK(comm_split(c, comm_rank(c), "alone", &alone));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        test_choice(c, cases[i].held_share, cases[i].first, cases[i].want, codes);
        test_choice(alone, cases[i].held_share, cases[i].first, cases[i].want, others);
        check_value(!memcmp(codes, others, sizeof codes), "the codes of one rank", (double)i);
    }
    test_no_windows_held_out(c);
    test_not_finite(c);
    comm_destroy(&alone);
    return ranks_end();
}
