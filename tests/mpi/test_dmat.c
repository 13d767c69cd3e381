/* Distributed matrices against plain loops on whole copies, on every grid that the ranks allow; and
 * the same bits whatever ranks stand beside the cells. */
#include "base/err.h"
#include "base/rng.h"
#include "mpi/dmat.h"
#include "mpi/grid_shape.h"
#include "tests/mpi/on_ranks.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N = 50, BLOCK = 8 }; /* six whole blocks and a rest */

static double *room(int64_t count) {
    double *p = calloc((size_t)count, sizeof *p);
    if (!p) abort();
    return p;
}

static double *normal(uint64_t seed) {
    double *x = room(N * N);
    for (int64_t i = 0; i < N * N; i++) x[i] = rng_normal(seed, RNG_TEST, (uint64_t)i);
    return x;
}

static double *product(const double *a, bool ta, const double *b, bool tb) {
    double *c = room(N * N);
    for (int64_t i = 0; i < N; i++)
        for (int64_t k = 0; k < N; k++) {
            double f = ta ? a[k * N + i] : a[i * N + k];
            for (int64_t j = 0; j < N; j++) c[i * N + j] += f * (tb ? b[j * N + k] : b[k * N + j]);
        }
    return c;
}

static double distance(const double *a, const double *b) {
    double most = 0;
    for (int64_t i = 0; i < N * N; i++) most = fmax(most, fabs(a[i] - b[i]));
    return most;
}

static dmat *deal(dgrid *g, const double *x) {
    dmat *m;
    check_ok(dmat_create(g, N, "test", &m), "create");
    dmat_put_rows(m, 0, 13, x); /* in uneven pieces */
    dmat_put_rows(m, 13, N - 13, x + 13 * N);
    return m;
}

static double *collect(const dmat *m) {
    double *x = room(N * N);
    dmat_get_rows(m, 0, 29, x);
    dmat_get_rows(m, 29, N - 29, x + 29 * N);
    return x;
}

static void rows_come_back(dgrid *g) {
    double *x = normal(1);
    float *f = calloc(N * N, sizeof *f);
    dmat *m = deal(g, x);
    double *back = collect(m);
    check(!memcmp(x, back, sizeof *x * N * N), "rows come back as they were");
    dmat_get_rows_f32(m, 0, N, f);
    bool same = true;
    for (int64_t i = 0; i < N * N; i++) same &= f[i] == (float)x[i];
    check(same, "rows rounded to fp32");
    int64_t rows, cols, entries = dmat_part_entries(m);
    dmat_part_shape(m, &rows, &cols);
    same = rows * cols == entries;
    for (int64_t j = 0; j < cols; j++)
        for (int64_t i = 0; i < rows; i++)
            same &= dmat_part(m)[j * rows + i] == x[dmat_row(m, i) * N + dmat_col(m, j)];
    check(same, "entries of a part stand where the header says");
    check((entries > 0) == dgrid_is_cell(g), "ranks that are no cell hold nothing");
    comm_sum_i64(dgrid_comm(g), &entries, 1);
    check(entries == N * N, "each entry is at one cell");
    check(grid_cell_entries(dgrid_shape(g), N, BLOCK) >= dmat_part_entries(m), "largest part");
    dmat_destroy(&m);
    free(x), free(f), free(back);
}

/* Bands that begin and end within blocks. Blocks behind the diagonal are not sent. */
static void triangles_come_back(dgrid *g) {
    const comm *c = dgrid_comm(g);
    double *x = normal(1), *back = room(N * N);
    dmat *m = deal(g, x);
    const uint64_t before = comm_sent_bytes();
    for (int64_t row = 0; row < N; row += 6)
        dmat_get_rows_lower(m, row, row + 6 < N ? 6 : N - row, back + row * N);
    int64_t sent = (int64_t)(comm_sent_bytes() - before), want = 0;
    bool same = true;
    for (int64_t i = 0; i < N; i++)
        for (int64_t j = 0; j <= i; j++) same &= back[i * N + j] == x[i * N + j];
    check(same, "rows of a lower triangle come back as they were");
    for (int64_t row = 0, end; row < N; row = end) { /* ends of bands and of blocks */
        end = row / 6 * 6 + 6 < row / BLOCK * BLOCK + BLOCK ? row / 6 * 6 + 6
                                                            : row / BLOCK * BLOCK + BLOCK;
        end = end < N ? end : N;
        want += (end - row) * end * (int64_t)sizeof *x * (comm_size(c) - 1);
    }
    comm_sum_i64(c, &sent, 1);
    check(sent == want, "each row up to its diagonal to every other rank");
    dmat_destroy(&m);
    free(x), free(back);
}

static void contributions_are_summed(dgrid *g) {
    const comm *c = dgrid_comm(g);
    int64_t *v = calloc(N * N, sizeof *v);
    dmat *m;
    check_ok(dmat_create(g, N, "test", &m), "create");
    const int64_t size = comm_size(c), rank = comm_rank(c);
    for (int64_t i = 0; i < N * N; i++) v[i] = (i - 1000) * (rank + 1) + ((int64_t)1 << 50) * rank;
    dmat_sum_rows_i64(m, 0, 20, v, -3, 8);
    dmat_sum_rows_i64(m, 20, N - 20, v + 20 * N, -3, 7);
    double *got = collect(m);
    bool same = true;
    for (int64_t i = 0; i < N * N; i++) {
        int64_t want =
            (i - 1000) * (size * (size + 1) / 2) + ((int64_t)1 << 50) * (size * (size - 1) / 2);
        same &= got[i] == (double)want / 8;
    }
    check(same, "fixed point is summed exactly");
    dmat_destroy(&m);
    free(v), free(got);
}

static void products_are_right(dgrid *g) {
    double *x = normal(2), *y = normal(3);
    dmat *A = deal(g, x), *B = deal(g, y), *C = deal(g, x);
    for (int t = 0; t < 4; t++) {
        double *want = product(x, t & 1, y, t & 2);
        dmat_copy(A, C);
        dmat_gemm(gemm_op_of(t & 1), gemm_op_of(t & 2), 2, A, B, -1, C);
        double *got = collect(C);
        for (int64_t i = 0; i < N * N; i++) want[i] = 2 * want[i] - x[i];
        check(distance(got, want) < 1e-12, "product");
        free(want), free(got);
    }
    dmat_copy(B, C);
    dmat_add_transpose(0.5, A, -0.25, C);
    double *got = collect(C);
    bool same = true;
    for (int64_t i = 0; i < N; i++)
        for (int64_t j = 0; j < N; j++)
            same &= fabs(got[i * N + j] - (0.5 * x[j * N + i] - 0.25 * y[i * N + j])) < 1e-15;
    check(same, "transpose");
    dmat_destroy(&A), dmat_destroy(&B), dmat_destroy(&C);
    free(x), free(y), free(got);
}

static void systems_are_solved(dgrid *g) {
    double *x = normal(4), *y = normal(5);
    dmat *A = deal(g, x), *B = deal(g, y);
    check_ok(dmat_solve(A, B), "solve");
    double *X = collect(B), *AX = product(x, false, X, false);
    check(distance(AX, y) < 1e-10, "A X = B");
    memset(x, 0, sizeof *x * N);
    dmat *S = deal(g, x);
    check(dmat_solve(S, B).code == ERR_NUMERICS, "a singular matrix is refused on every rank");
    dmat_destroy(&A), dmat_destroy(&B), dmat_destroy(&S);
    free(x), free(y), free(X), free(AX);
}

static void factors_are_right(dgrid *g) {
    double *x = normal(6), values[N];
    dmat *A = deal(g, x);
    check_ok(dmat_qr(A), "QR");
    double *Q = collect(A), *U = product(Q, true, x, false), *I = product(Q, true, Q, false);
    bool upper = true, one = true;
    for (int64_t i = 0; i < N; i++)
        for (int64_t j = 0; j < N; j++) {
            if (j < i) upper &= fabs(U[i * N + j]) < 1e-12;
            if (j == i) upper &= U[i * N + i] > 0;
            one &= fabs(I[i * N + j] - (i == j)) < 1e-13;
        }
    check(upper && one, "A = Q U, U upper with a positive diagonal");
    /* C = Q D Q^T with D = 1 .. N: vectors are the columns of Q up to sign. */
    double *QD = room(N * N);
    for (int64_t i = 0; i < N * N; i++) QD[i] = Q[i] * (double)(1 + i % N);
    double *C = product(QD, false, Q, true);
    for (int64_t i = 0; i < N; i++)
        for (int64_t j = 0; j < i; j++) C[i * N + j] = C[j * N + i];
    dmat *S = deal(g, C), *V = deal(g, x);
    check_ok(dmat_eigen(S, V, values), "eigenvectors");
    double *got = collect(V), *QV = product(Q, true, got, false);
    bool same = true;
    for (int64_t i = 0; i < N; i++) {
        same &= fabs(values[i] - (double)(1 + i)) < 1e-11;
        for (int64_t j = 0; j < N; j++) same &= fabs(fabs(QV[i * N + j]) - (i == j)) < 1e-11;
    }
    check(same, "known eigenvectors, ascending");
    dmat_destroy(&A), dmat_destroy(&S), dmat_destroy(&V);
    free(x), free(Q), free(U), free(I), free(QD), free(C), free(got), free(QV);
}

static void measures_are_right(dgrid *g) {
    double *x = normal(7), squares = 0, norm = 0, most = 0, got, v[N], y[N];
    dmat *A = deal(g, x);
    for (int64_t j = 0; j < N; j++) {
        double sum = 0;
        for (int64_t i = 0; i < N; i++) {
            sum += fabs(x[i * N + j]);
            squares += x[i * N + j] * x[i * N + j];
            most = fmax(most, fabs(x[i * N + j] - (i == j)));
        }
        norm = fmax(norm, sum);
        v[j] = rng_normal(8, RNG_TEST, (uint64_t)j);
    }
    check(fabs(dmat_sum_squares(A) / squares - 1) < 1e-13, "sum of squares");
    check_ok(dmat_norm_1(A, &got), "norm");
    check(fabs(got / norm - 1) < 1e-14, "largest column sum");
    check(dmat_max_minus_identity(A) == most, "distance to the identity");
    for (int trans = 0; trans < 2; trans++) {
        check_ok(dmat_times(trans, A, v, y), "times a vector");
        bool same = true;
        for (int64_t i = 0; i < N; i++) {
            double sum = 0;
            for (int64_t j = 0; j < N; j++) sum += (trans ? x[j * N + i] : x[i * N + j]) * v[j];
            same &= fabs(y[i] - sum) < 1e-12;
        }
        check(same, "matrix times vector");
    }
    check(dmat_finite(A), "finite");
    x[N * N - 1] = NAN;
    dmat_put_rows(A, N - 1, 1, x + (N - 1) * N);
    check(!dmat_finite(A) && isinf(dmat_max_minus_identity(A)), "NaN is seen on every rank");
    dmat_destroy(&A);
    free(x);
}

static void all_of_it(const comm *c, grid_shape shape) {
    dgrid *g;
    check_ok(dgrid_create(c, shape, BLOCK, 1, &g), "grid");
    rows_come_back(g);
    triangles_come_back(g);
    contributions_are_summed(g);
    products_are_right(g);
    systems_are_solved(g);
    factors_are_right(g);
    measures_are_right(g);
    dgrid_destroy(&g);
}

static void choice_of_grid(const comm *c) {
    static const struct {
        int64_t n;
        int ranks, rows, cols;
    } cases[] = {{4095, 64, 1, 1}, {4096, 1, 1, 1},  {4096, 2, 2, 1}, {8192, 3, 2, 1},
                 {8192, 4, 2, 2},  {8192, 8, 2, 2},  {8192, 9, 3, 3}, {8192, 15, 3, 3},
                 {8192, 16, 4, 4}, {16384, 24, 4, 4}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        grid_shape g;
        check_ok(grid_resolve("grid", "auto", cases[i].n, cases[i].ranks, &g), "auto");
        check(g.rows == cases[i].rows && g.cols == cases[i].cols, "grid of a rule");
        /* At most 1.2 / P of the whole at a cell. */
        const double part = (double)grid_cell_entries(g, cases[i].n, DMAT_BLOCK);
        check(part * g.rows * g.cols <= 1.2 * (double)(cases[i].n * cases[i].n), "size of a part");
    }
    grid_shape g = {7, 7};
    char text[24];
    check_ok(grid_resolve("grid", "3x2", 64, 6, &g), "a grid by name");
    check(g.rows == 3 && g.cols == 2 && !strcmp(grid_text(g, text), "3x2"), "3x2");
    err e = grid_resolve("grid", "3x2", 64, 5, &g);
    check(e.code == ERR_MISMATCH && strstr(e.what, "needs 6 ranks"), "too few ranks");
    const char *bad[] = {"", "2", "2x", "x2", "2x2x", "0x2", "2x-1", "2 x2y", "Auto"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        check(grid_resolve("grid", bad[i], 64, 6, &g).code == ERR_USAGE, "no grid");
    dgrid *none;
    e = dgrid_create(c, (grid_shape){comm_size(c) + 1, 1}, 0, 1, &none);
    check(e.code == ERR_MISMATCH && !none, "a grid larger than its ranks");
}

int main(int argc, char **argv) {
    const comm *c = ranks_start(&argc, &argv);
    for (int rows = 1; rows <= comm_size(c); rows++)
        for (int cols = 1; rows * cols <= comm_size(c); cols++)
            all_of_it(c, (grid_shape){rows, cols});
    choice_of_grid(c);
    return ranks_end();
}
