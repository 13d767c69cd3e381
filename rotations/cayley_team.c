/* Bands of rows of the product G R^T are dealt to ranks and gathered, every rank eliminates I -
 * A/2 by itself, and slabs of columns of the solution are dealt and gathered again. */
#include "rotations/cayley_team.h"

#include "base/gemm.h"
#include "base/mem.h"
#include "base/size.h"
#include "rotations/cayley.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct cayley_team {
    const comm *c;
    int64_t n;
    bool rough;
    double *R, *W; /* [n, n]; W: the gradient's rows of this rank (rough: in fp32), then W and A */
    cayley_factors f;
    optimizer *opt;
    int64_t *from; /* [ranks + 1] first row, and column, of each rank */
    int64_t *part; /* the same in doubles of bands or slabs */
};

/* Whole units to ranks, as evenly as can be. */
static int64_t first_of(const cayley_team *t, int rank) {
    const int64_t unit = cayley_unit(t->n), units = size_ceil_div(t->n, unit);
    return size_min(t->n, units * rank / comm_size(t->c) * unit);
}

err cayley_team_create(const comm *c, int64_t n, optimizer_kind kind, bool rough,
                       cayley_team **out) {
    cayley_team *t = calloc(1, sizeof *t);
    const size_t ranks = (size_t)comm_size(c);
    if (!t) abort();
    *t = (cayley_team){
        .c = c, .n = n, .rough = rough, .from = calloc(2 * (ranks + 1), sizeof *t->from)};
    if (!t->from) abort();
    t->part = t->from + ranks + 1;
    for (int r = 0; r <= comm_size(c); r++) {
        t->from[r] = first_of(t, r);
        t->part[r] = t->from[r] * n;
    }
    err e = MEM_NEW(&t->R, n * n, "R1");
    if (!e.code) e = MEM_NEW(&t->W, n * n, "gradient of R1");
    if (!e.code) e = cayley_factors_create(n, &t->f);
    if (!e.code) e = optimizer_create(kind, n, 1, &t->opt);
    e = comm_agree(c, e, "R1", NULL);
    if (e.code) cayley_team_destroy(&t);
    *out = t;
    return e;
}

void cayley_team_destroy(cayley_team **t) {
    if (!*t) return;
    mem_free((*t)->R);
    mem_free((*t)->W);
    cayley_factors_destroy(&(*t)->f);
    optimizer_destroy(&(*t)->opt);
    free((*t)->from);
    free(*t);
    *t = NULL;
}

uint64_t cayley_team_bytes(int64_t n, optimizer_kind kind) {
    return (uint64_t)((2 + optimizer_is_adam(kind)) * n * n + cayley_factors_count(n)) *
           sizeof(double);
}

double *cayley_team_R(cayley_team *t) {
    return t->R;
}

void cayley_team_forget(cayley_team *t) {
    optimizer_forget(t->opt);
}

void cayley_team_put_gradient(cayley_team *t, int64_t row, int64_t rows, const double *G) {
    float *rough = (float *)t->W + row * t->n;
    if (!t->rough) memcpy(t->W + row * t->n, G, (size_t)(rows * t->n) * sizeof *G);
    for (int64_t i = 0; t->rough && i < rows * t->n; i++) rough[i] = (float)G[i];
}

/* Rows of the gradient from `first` on: sums * unit. */
static void put_sums(cayley_team *t, int64_t first, int64_t rows, const int64_t *sums,
                     double unit) {
    double *G = t->W + first * t->n;
    float *rough = (float *)t->W + first * t->n;
#pragma omp parallel for
    for (int64_t i = 0; i < rows * t->n; i++) {
        const double g = (double)sums[i] * unit;
        if (t->rough)
            rough[i] = (float)g;
        else
            G[i] = g;
    }
}

void cayley_team_sum_gradient(cayley_team *t, int64_t row, int64_t rows, int64_t *v, int exponent) {
    const int64_t n = t->n;
    const int size = comm_size(t->c), r = comm_rank(t->c);
    int64_t *from = malloc(((size_t)size + 1) * sizeof *from);
    if (!from) abort();
    for (int i = 0; i <= size; i++)
        from[i] = (size_max(row, size_min(t->from[i], row + rows)) - row) * n;
    comm_sum_i64_parts(t->c, v, from, sizeof *v);
    put_sums(t, row + from[r] / n, (from[r + 1] - from[r]) / n, v + from[r], ldexp(1, exponent));
    free(from);
}

enum { TILE = 16 }; /* rows and columns that meet their transpose in cache */

static void transpose(int64_t n, const int64_t *v, int64_t *to) {
#pragma omp parallel for
    for (int64_t i0 = 0; i0 < n; i0 += TILE)
        for (int64_t j0 = 0; j0 < n; j0 += TILE)
            for (int64_t i = i0; i < size_min(i0 + TILE, n); i++)
                for (int64_t j = j0; j < size_min(j0 + TILE, n); j++) to[i * n + j] = v[j * n + i];
}

/* X of the factors holds nothing between steps. */
void cayley_team_sum_transposed(cayley_team *t, const int64_t *v, int exponent) {
    int64_t *sums = (int64_t *)t->f.X;
    transpose(t->n, v, sums);
    cayley_team_sum_gradient(t, 0, t->n, sums, exponent);
}

/* W <- -1/2 (G R^T - R G^T), exactly skew, on every rank; X of the factors holds the product. */
static void direction(cayley_team *t) {
    const int64_t n = t->n, unit = cayley_unit(n);
    const int r = comm_rank(t->c);
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = t->from[r]; i < t->from[r + 1]; i += unit)
        cayley_gradient_rows(n, size_min(unit, n - i), t->W + i * n, t->R, t->f.X + i * n);
    comm_share_f64(t->c, t->f.X, t->part);
    cayley_skew_part(n, -0.5, t->f.X, t->W);
}

/* W as above, computed in fp32: the memory of W holds G and then R, that of X the product, each in
 * the first half. */
static void rough_direction(cayley_team *t) {
    const int64_t n = t->n, unit = cayley_unit(n);
    const int r = comm_rank(t->c);
    float *G = (float *)t->W, *R = G + n * n, *P = (float *)t->f.X;
#pragma omp parallel for
    for (int64_t i = 0; i < n * n; i++) R[i] = (float)t->R[i];
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = t->from[r]; i < t->from[r + 1]; i += unit)
        gemm_tile_f32(GEMM_N, GEMM_T, size_min(unit, n - i), n, n, G + i * n, n, R, n, GEMM_SET,
                      P + i * n, n);
    comm_share_f32(t->c, P, t->part);
    cayley_skew_part_f32(n, -0.5, P, t->W);
}

/* R <- 2 (I - A/2)^-1 R - R with A in W. */
static err move(cayley_team *t) {
    const int64_t n = t->n, unit = cayley_unit(n);
    const int r = comm_rank(t->c);
    err e = cayley_factor(&t->f, t->W);
    if (e.code) return e;
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = t->from[r]; i < t->from[r + 1]; i += unit) cayley_solve_unit(&t->f, i, t->R);
    comm_share_f64(t->c, t->f.X, t->part);
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < n; i += unit) cayley_reflect_unit(&t->f, i, t->R);
    return e;
}

/* All ranks see the same numbers, so they fail together, but for memory. */
err cayley_team_step(cayley_team *t, double lr, double loss, optimizer_report *report) {
    if (t->rough)
        rough_direction(t);
    else
        direction(t);
    err e = optimizer_direct(t->opt, lr, &loss, t->W, t->R, report);
    e = comm_agree(t->c, e, "step of R1", NULL);
    if (!e.code) e = move(t);
    if (!e.code && (optimizer_steps_done(t->opt) + 1) % OPTIMIZER_POLISH_EVERY == 0)
        e = comm_agree(t->c, optimizer_moved(t->opt, t->R), "step of R1", NULL);
    else if (!e.code)
        e = optimizer_moved(t->opt, t->R);
    return e;
}

int cayley_team_state_pieces(cayley_team *t, byte_piece out[CAYLEY_TEAM_PIECES]) {
    out[0] = byte_piece_of_doubles(t->R, t->n * t->n);
    return 1 + optimizer_state_pieces(t->opt, out + 1);
}

void cayley_team_state_taken(cayley_team *t) {
    byte_piece pieces[CAYLEY_TEAM_PIECES];
    const int n = cayley_team_state_pieces(t, pieces);
    for (int i = 0; i < n; i++) comm_bcast(t->c, pieces[i].p, pieces[i].n, 0);
}
