/* R1 over ranks: the same steps as on one, the same bits on any number of ranks beside the cells,
 * sums in fixed point, restart bit for bit. */
#include "base/err.h"
#include "base/rng.h"
#include "rotations/cayley.h"
#include "rotations/cayley_dist.h"
#include "rotations/optimizer.h"
#include "rotations/start.h"
#include "rotations/start_dist.h"
#include "tests/mpi/on_ranks.h"
#include "tests/mpi/state_copy.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 136, BLOCK = 16 }; /* eight whole blocks and a half; on 1x1 five units and 16 columns */

static double *room(int64_t count) {
    double *p = calloc((size_t)count, sizeof *p);
    if (!p) abort();
    return p;
}

static double *start(void) {
    double *R = room(N * N);
    check_ok(start_orthogonal(N, 1, RNG_TEST, 0, R), "start");
    return R;
}

static double *gradient(int64_t t) {
    double *G = room(N * N);
    for (int64_t i = 0; i < N * N; i++) G[i] = rng_normal(2, RNG_TEST, (uint64_t)(t * N * N + i));
    return G;
}

static cayley_dist *make(const comm *c, grid_shape shape, optimizer_kind kind) {
    const cayley_dist_options o = {
        .n = N, .kind = kind, .grid = shape, .blas_threads = 1, .block = BLOCK};
    cayley_dist *d;
    double *R = start();
    check_ok(cayley_dist_create(c, &o, &d), "create");
    cayley_dist_put_rows(d, 0, 5, R);
    cayley_dist_put_rows(d, 5, N - 5, R + 5 * N);
    free(R);
    return d;
}

static const double rates[] = {0.05, 1.5, 0.05}; /* of adam, sgd-published, adam with channels */

static void go(cayley_dist *d, optimizer_kind kind, int64_t first, int64_t steps) {
    for (int64_t t = first; t < first + steps; t++) {
        double *G = gradient(t);
        cayley_dist_put_gradient(d, 0, N, G);
        check_ok(cayley_dist_step(d, rates[kind], 0, NULL), "step");
        free(G);
    }
}

static double *result(const cayley_dist *d) {
    double *R = room(N * N);
    cayley_dist_get_rows(d, 0, 31, R);
    cayley_dist_get_rows(d, 31, N - 31, R + 31 * N);
    return R;
}

static double distance(const double *a, const double *b) {
    double most = 0;
    for (int64_t i = 0; i < N * N; i++) most = fmax(most, fabs(a[i] - b[i]));
    return most;
}

static bool same_bits(const double *a, const double *b) {
    return !memcmp(a, b, sizeof *a * N * N);
}

/* Against optimizer_step on whole matrices, held by another test against its formulas. */
static void steps_are_those_of_one_rank(const comm *c, grid_shape shape, optimizer_kind kind) {
    optimizer *o;
    double *R = start(), *W = room(N * N), max, probe;
    optimizer_report one, said;
    cayley_dist *d = make(c, shape, kind);
    check_ok(optimizer_create(kind, N, 1, &o), "optimizer");
    for (int64_t t = 0; t < 6; t++) {
        double *G = gradient(t);
        check_ok(cayley_skew(N, G, R, W), "skew");
        check_ok(optimizer_step(o, rates[kind], NULL, W, R, &one), "step of one rank");
        cayley_dist_put_gradient(d, 0, N, G);
        check_ok(cayley_dist_step(d, rates[kind], 0, &said), "step");
        check(fabs(said.alpha / one.alpha - 1) < 1e-12, "alpha");
        check(fabs(said.angle / one.angle - 1) < 1e-12, "angle");
        check(fabs(said.rms_angle / one.rms_angle - 1) < 1e-12, "angle of a turn");
        check(fabs(said.gradient / one.gradient - 1) < 1e-12, "gradient");
        free(G);
    }
    double *got = result(d);
    check(distance(R, got) < 1e-12, "the same R as on one rank");
    if (shape.rows * shape.cols == 1) check(same_bits(R, got), "the same bits as on one rank");
    float f[2 * N];
    cayley_dist_get_rows_f32(d, 40, 2, f);
    bool same = true;
    for (int64_t i = 0; i < 2 * N; i++) same &= f[i] == (float)got[40 * N + i];
    check(same, "rows in fp32");
    check_ok(cayley_dist_orthogonality(d, &max), "orthogonality");
    check_ok(cayley_dist_probe(d, 1, 2, &probe), "probe");
    check(max > 0 && max < 1e-13 && probe > 0 && probe < 1e-13, "orthogonal");
    for (int64_t i = 0; i < N; i++) got[i] *= 1 + 1e-5; /* row 0 too long */
    cayley_dist_put_rows(d, 0, 1, got);
    check_ok(cayley_dist_orthogonality(d, &max), "orthogonality");
    check_ok(cayley_dist_probe(d, 1, 2, &probe), "probe");
    check(max > 1e-9 && probe > 1e-9, "a defect is seen on every rank");
    cayley_dist_destroy(&d);
    optimizer_destroy(&o);
    free(R), free(W), free(got);
}

/* The grid on the first k ranks, for every k that has room for it. */
static void bits_depend_on_the_grid_alone(const comm *c, grid_shape shape) {
    double *first = NULL;
    const int cells = shape.rows * shape.cols;
    for (int k = cells; k <= comm_size(c); k++) {
        comm *part = NULL;
        check_ok(comm_split(c, comm_rank(c) < k ? 0 : -1, "first ranks", &part), "split");
        double *got = room(N * N);
        if (part) {
            cayley_dist *d = make(part, shape, OPTIMIZER_ADAM_CHANNELS);
            go(d, OPTIMIZER_ADAM_CHANNELS, 0, 4);
            free(got);
            got = result(d);
            check(cayley_dist_is_cell(d) == (comm_rank(part) < cells), "cells are the first ranks");
            check((cayley_dist_bytes(d) > 0) == (cells == 1 || cayley_dist_is_cell(d)),
                  "bytes at cells alone, of a matrix that all share at all");
            const cayley_dist_options o = {.n = N, .grid = shape, .block = BLOCK};
            double most = (double)cayley_dist_bytes(d);
            comm_max_f64(part, &most, 1);
            check((uint64_t)most == cayley_dist_plan_bytes(&o), "bytes as planned");
            if (!cayley_dist_is_cell(d))
                check(cayley_dist_bytes(d) == cayley_dist_beside_bytes(&o), "bytes beside cells");
            cayley_dist_destroy(&d);
        }
        comm_destroy(&part);
        comm_bcast(c, got, sizeof *got * N * N, 0);
        if (!first)
            first = got;
        else {
            check(same_bits(first, got), "the same bits with more ranks");
            free(got);
        }
    }
    free(first);
}

/* At the sizes of large models a cell of P holds at most 1.2 / P of what one rank would. */
static void cells_share_the_bytes(void) {
    static const int64_t orders[] = {4096, 5120, 8192, 16384};
    for (size_t i = 0; i < sizeof orders / sizeof *orders; i++) {
        cayley_dist_options o = {.n = orders[i], .grid = {1, 1}};
        const double alone = (double)cayley_dist_plan_bytes(&o);
        for (int ranks = 4; ranks <= 64; ranks++) {
            o.grid = grid_choose(o.n, ranks);
            const int cells = o.grid.rows * o.grid.cols;
            check(cells >= 4, "four ranks and more are at least four cells");
            check((double)cayley_dist_plan_bytes(&o) <= 1.2 / cells * alone, "bytes of a cell");
        }
    }
}

/* Rows in bands give the bits of all of the transpose at once, where that is taken. */
static void transposed_contributions_are_the_same(const comm *c, bool rough) {
    const cayley_dist_options o = {
        .n = N, .grid = {1, 1}, .blas_threads = 1, .rough_gradient = rough};
    double *R = start(), *got[2];
    int64_t *v = calloc(N * N, sizeof *v), *t = calloc(N * N, sizeof *t);
    for (int64_t i = 0; i < N; i++)
        for (int64_t j = 0; j < N; j++) {
            const uint64_t at = (uint64_t)((comm_rank(c) * N + i) * N + j);
            v[i * N + j] = t[j * N + i] = (int64_t)(1e12 * rng_normal(6, RNG_TEST, at));
        }
    for (int k = 0; k < 2; k++) {
        cayley_dist *d;
        check_ok(cayley_dist_create(c, &o, &d), "create");
        cayley_dist_put_rows(d, 0, N, R);
        if (k)
            check(cayley_dist_sum_transposed(d, t, -40), "ranks share small steps");
        else
            cayley_dist_sum_gradient(d, 0, N, v, -40, 8);
        check_ok(cayley_dist_step(d, 0.1, 0, NULL), "step");
        got[k] = result(d);
        cayley_dist_destroy(&d);
    }
    check(same_bits(got[0], got[1]), "the transpose at once");
    check(!same_bits(got[0], R), "a step");
    free(v), free(t), free(R), free(got[0]), free(got[1]);
}

/* So many bytes have gone to each rank but one since `before`. */
static void check_sent(const comm *c, uint64_t before, int64_t bytes, const char *what) {
    int64_t sent = (int64_t)(comm_sent_bytes() - before);
    comm_sum_i64(c, &sent, 1);
    check(sent == bytes * (comm_size(c) - 1), what);
}

/* As they are after rounding to fp32 and from there, in two bytes each. */
static void rows_go_in_bf16(const comm *c, grid_shape shape) {
    cayley_dist *d = make(c, shape, OPTIMIZER_ADAM_CHANNELS);
    float *f = calloc(N * N, sizeof *f);
    bf16 *got = calloc(N * N, sizeof *got);
    if (!f || !got) abort();
    cayley_dist_get_rows_f32(d, 0, N, f);
    const uint64_t before = comm_sent_bytes();
    cayley_dist_get_rows_bf16(d, 0, N, got);
    if (shape.rows * shape.cols > 1) check_sent(c, before, 2 * N * N, "two bytes of a number");
    bool right = true;
    for (int64_t i = 0; i < N * N; i++) right = right && got[i] == half_to_bf16(f[i]);
    check(right, "rows in bf16");
    cayley_dist_destroy(&d);
    free(f), free(got);
}

static void contributions_are_summed(const comm *c, grid_shape shape) {
    cayley_dist *a = make(c, shape, OPTIMIZER_ADAM_CHANNELS),
                *b = make(c, shape, OPTIMIZER_ADAM_CHANNELS);
    int64_t *v = calloc(N * N, sizeof *v);
    double *G = room(N * N);
    const int64_t size = comm_size(c);
    for (int64_t i = 0; i < N * N; i++) {
        const int64_t base = (int64_t)(1e6 * rng_normal(5, RNG_TEST, (uint64_t)i));
        v[i] = base + comm_rank(c) * 1000;
        G[i] = (double)(base * size + 1000 * (size * (size - 1) / 2)) / 1024;
    }
    const uint64_t before = comm_sent_bytes();
    cayley_dist_sum_gradient(a, 0, 33, v, -10, 7);
    cayley_dist_sum_gradient(a, 33, N - 33, v + 33 * N, -10, 8);
    if (shape.rows * shape.cols > 1)
        check_sent(c, before, 7 * 33 * N + 8 * (N - 33) * N, "seven bytes of a number");
    cayley_dist_put_gradient(b, 0, N, G);
    check_ok(cayley_dist_step(a, 0.1, 0, NULL), "step");
    check_ok(cayley_dist_step(b, 0.1, 0, NULL), "step");
    double *x = result(a), *y = result(b);
    check(same_bits(x, y), "contributions in fixed point");
    cayley_dist_destroy(&a), cayley_dist_destroy(&b);
    free(v), free(G), free(x), free(y);
}

/* With a gradient in fp32: the same steps to its precision, R no less orthogonal, the same bits on
 * the first k ranks for every k. */
static void rough_gradients_step_alike(const comm *c) {
    double *R = start(), *first = NULL, max;
    for (int k = 1; k <= comm_size(c); k++) {
        comm *part = NULL;
        check_ok(comm_split(c, comm_rank(c) < k ? 0 : -1, "first ranks", &part), "split");
        double *got = room(N * N);
        if (part) {
            const cayley_dist_options o = {.n = N,
                                           .kind = OPTIMIZER_ADAM_CHANNELS,
                                           .grid = {1, 1},
                                           .blas_threads = 1,
                                           .rough_gradient = true};
            cayley_dist *d, *fine = make(part, o.grid, OPTIMIZER_ADAM_CHANNELS);
            check_ok(cayley_dist_create(part, &o, &d), "create");
            cayley_dist_put_rows(d, 0, N, R);
            go(d, OPTIMIZER_ADAM_CHANNELS, 0, 4);
            go(fine, OPTIMIZER_ADAM_CHANNELS, 0, 4);
            double *want = result(fine);
            free(got);
            got = result(d);
            const double off = distance(got, want);
            check(off > 0 && off < 1e-5, "as with a gradient in fp64, but for fp32");
            check_ok(cayley_dist_orthogonality(d, &max), "orthogonality");
            check(max < 1e-13, "orthogonal");
            cayley_dist_destroy(&d), cayley_dist_destroy(&fine);
            free(want);
        }
        comm_destroy(&part);
        comm_bcast(c, got, sizeof *got * N * N, 0);
        if (first) check(same_bits(first, got), "the same bits with more ranks");
        if (first)
            free(got);
        else
            first = got;
    }
    free(R), free(first);
}

static void restart_continues(const comm *c, grid_shape shape, optimizer_kind kind) {
    cayley_dist *a = make(c, shape, kind), *d = make(c, shape, kind);
    const int64_t cut = shape.rows * shape.cols == 2 ? 98 : 3; /* once over a polish */
    go(a, kind, 0, cut);
    byte_piece from[CAYLEY_STATE_PIECES], to[CAYLEY_STATE_PIECES];
    const int pieces = cayley_dist_state_pieces(a, from);
    const int64_t count = byte_pieces_doubles(from, pieces);
    check(cayley_dist_state_pieces(d, to) == pieces && byte_pieces_doubles(to, pieces) == count,
          "equal states have equal pieces");
    check((count > 0) == cayley_dist_is_cell(a), "state at cells alone");
    double *state = room(count + 1);
    state_copy_out(from, pieces, state);
    state_copy_in(state, to, pieces);
    cayley_dist_state_taken(d);
    go(a, kind, cut, 5);
    go(d, kind, cut, 5);
    double *x = result(a), *y = result(d);
    check(same_bits(x, y), "a restored state continues bit for bit");
    cayley_dist_destroy(&a), cayley_dist_destroy(&d);
    free(state), free(x), free(y);
}

static void put_start(void *to, int64_t row, int64_t rows, const double *R) {
    cayley_dist_put_rows(to, row, rows, R);
}

/* Against the start points of one rank, held by another test against their definitions. */
static void start_points_are_those_of_one_rank(const comm *c, grid_shape shape, int block) {
    cayley_dist *d = make(c, shape, OPTIMIZER_ADAM_CHANNELS);
    const start_sink sink = {.to = d, .put = put_start};
    dgrid *g;
    dmat *C;
    double *want = room(N * N), *moment = room(N * N), *x = gradient(3);
    check_ok(dgrid_create(c, shape, block, 1, &g), "grid");
    check_ok(dmat_create(g, N, "moment", &C), "moment");
    check_ok(start_dist_orthogonal(g, 9, N, sink), "random start");
    double *got = result(d);
    check_ok(start_orthogonal(N, 9, RNG_R1_NORMAL, 0, want), "random start of one rank");
    check(distance(got, want) < 1e-11, "the same random matrix");
    free(got);
    for (int64_t i = 0; i < N; i++) /* symmetric; its eigenvalues lie apart */
        for (int64_t j = 0; j < N; j++)
            moment[i * N + j] = (i == j) * (double)(3 * i) + 0.1 * (x[i * N + j] + x[j * N + i]);
    dmat_put_rows(C, 0, N, moment);
    check_ok(start_dist_pca(g, C, N, sink), "pca");
    got = result(d);
    check_ok(start_pca(N, moment, want, NULL), "pca of one rank");
    check(distance(got, want) < 1e-10, "the same eigenvectors");
    moment[7] = NAN;
    dmat_put_rows(C, 0, N, moment);
    check(start_dist_pca(g, C, N, sink).code == ERR_NUMERICS, "NaN is refused on every rank");
    cayley_dist_destroy(&d);
    dmat_destroy(&C);
    dgrid_destroy(&g);
    free(want), free(moment), free(x), free(got);
}

static void nan_is_refused(const comm *c, grid_shape shape) {
    cayley_dist *d = make(c, shape, OPTIMIZER_ADAM_CHANNELS),
                *whole = make(c, shape, OPTIMIZER_ADAM_CHANNELS);
    go(d, OPTIMIZER_ADAM_CHANNELS, 0, 2);
    double *before = result(d), *G = gradient(7);
    G[N * N / 2] = NAN;
    cayley_dist_put_gradient(d, 0, N, G);
    err e = cayley_dist_step(d, 0.1, 0, NULL);
    check(e.code == ERR_NUMERICS, "NaN is refused on every rank");
    double *after = result(d);
    check(same_bits(before, after), "R is as before");
    go(d, OPTIMIZER_ADAM_CHANNELS, 2, 1);
    go(whole, OPTIMIZER_ADAM_CHANNELS, 0, 3);
    double *x = result(d), *y = result(whole);
    check(same_bits(x, y), "the optimiser is as before");
    cayley_dist_destroy(&d), cayley_dist_destroy(&whole);
    free(before), free(after), free(G), free(x), free(y);
}

int main(int argc, char **argv) {
    const comm *c = ranks_start(&argc, &argv);
    cells_share_the_bytes();
    rough_gradients_step_alike(c);
    transposed_contributions_are_the_same(c, false);
    transposed_contributions_are_the_same(c, true);
    static const grid_shape shapes[] = {{1, 1}, {2, 1}, {1, 2}, {2, 2}, {3, 2}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        if (shapes[i].rows * shapes[i].cols > comm_size(c)) continue;
        for (int kind = 0; kind < 3; kind++) {
            steps_are_those_of_one_rank(c, shapes[i], (optimizer_kind)kind);
            restart_continues(c, shapes[i], (optimizer_kind)kind);
        }
        bits_depend_on_the_grid_alone(c, shapes[i]);
        contributions_are_summed(c, shapes[i]);
        rows_go_in_bf16(c, shapes[i]);
        nan_is_refused(c, shapes[i]);
        start_points_are_those_of_one_rank(c, shapes[i], BLOCK);
        start_points_are_those_of_one_rank(c, shapes[i], 2 * N); /* a block above the order */
    }
    return ranks_end();
}
