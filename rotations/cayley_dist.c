/* Three ways behind one interface: over a BLACS grid (LU of ScaLAPACK), on one rank, or shared by
 * all ranks (cayley_team.c). Each computes 2 (I - A/2)^-1 R - R. */
#include "rotations/cayley_dist.h"

#include "base/mem.h"
#include "base/rng.h"
#include "base/size.h"
#include "mpi/dmat.h"
#include "rotations/cayley.h"
#include "rotations/cayley_team.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PARALLEL_FROM = 65536 }; /* numbers, for element-wise work */

enum { TEAM_MOST = 2048 }; /* the order up to which all ranks hold a matrix of a 1x1 grid */

/* On a grid of one cell all ranks share the step of a matrix that they hold whole, or, where that
 * is large, the first rank holds plain matrices and runs optimizer_step; else the cells hold parts,
 * T and spare are scratch, and the optimiser is written here once more on parts. */
struct cayley_dist {
    const comm *c;
    cayley_dist_options o;
    cayley_team *team; /* 1x1, up to TEAM_MOST */
    double *snapshot;  /* this rank's part of the R that is remembered */
    /* 1x1 beyond: first rank only */
    double *R, *G; /* [n, n] */
    optimizer *opt;
    /* grid */
    dgrid *g;
    dmat *dR, *dG, *T;
    dmat *extra;     /* adam: momentum; sgd-published: scratch */
    double *numbers; /* [CHANNELS + n] steps that are done, v and c: as the state has them */
    double *room;    /* [3 n] */
};

enum { STEPS, SECOND_MOMENT, CHANNELS };

static bool on_grid(const cayley_dist *d) {
    return d->g != NULL;
}

static bool of_team(const cayley_dist_options *o) {
    return (int64_t)o->grid.rows * o->grid.cols == 1 && o->n <= TEAM_MOST;
}

static bool is_first(const cayley_dist *d) {
    return comm_rank(d->c) == 0;
}

static err create_single(cayley_dist *d) {
    const int64_t n = d->o.n;
    if (!is_first(d)) return err_none();
    err e = MEM_NEW(&d->R, n * n, "R1");
    if (!e.code) e = MEM_NEW(&d->G, n * n, "gradient of R1");
    if (!e.code) e = optimizer_create(d->o.kind, n, 1, &d->opt);
    return e;
}

static err create_grid(cayley_dist *d) {
    const bool adam = optimizer_is_adam(d->o.kind);
    err e = dgrid_create(d->c, d->o.grid, d->o.block, d->o.blas_threads, &d->g);
    if (!e.code) e = dmat_create(d->g, d->o.n, "R1", &d->dR);
    if (!e.code) e = dmat_create(d->g, d->o.n, "gradient of R1", &d->dG);
    if (!e.code) e = dmat_create(d->g, d->o.n, "factors of the R1 step", &d->T);
    if (!e.code)
        e = dmat_create(d->g, d->o.n, adam ? "momentum of R1" : "turned direction", &d->extra);
    if (!e.code) e = MEM_NEW(&d->numbers, CHANNELS + d->o.n, "second moments of R1");
    if (!e.code) e = MEM_NEW(&d->room, 3 * d->o.n, "channels of R1");
    return e;
}

/* R as far as this rank has it, in its own order: NULL and 0 where it has none. */
static double *own_part(const cayley_dist *d, int64_t *entries) {
    const int64_t n = d->o.n;
    if (on_grid(d)) {
        *entries = dmat_part_entries(d->dR);
        return dmat_part(d->dR);
    }
    double *R = d->team ? cayley_team_R(d->team) : d->R;
    *entries = R ? n * n : 0;
    return R;
}

static err create_kept(cayley_dist *d) {
    int64_t entries;
    own_part(d, &entries);
    err e = MEM_NEW(&d->snapshot, entries, "R1 as it was");
    return comm_agree(d->c, e, "R1", NULL);
}

void cayley_dist_snapshot(cayley_dist *d) {
    int64_t entries;
    const double *R = own_part(d, &entries);
    if (entries) memcpy(d->snapshot, R, (size_t)entries * sizeof *R);
}

void cayley_dist_restore(cayley_dist *d) {
    int64_t entries;
    double *R = own_part(d, &entries);
    if (entries) memcpy(R, d->snapshot, (size_t)entries * sizeof *R);
    if (d->team) cayley_team_forget(d->team);
    if (d->opt) optimizer_forget(d->opt);
    if (!on_grid(d)) return;
    entries = dmat_part_entries(d->extra);
    if (entries) memset(dmat_part(d->extra), 0, (size_t)entries * sizeof *R);
    memset(d->numbers, 0, (size_t)(CHANNELS + d->o.n) * sizeof *d->numbers);
}

err cayley_dist_create(const comm *c, const cayley_dist_options *o, cayley_dist **out) {
    cayley_dist *d;
    *out = NULL;
    err e = comm_agree(c, MEM_NEW(&d, 1, "R1"), "R1", NULL);
    if (e.code) return e;
    *d = (cayley_dist){.c = c, .o = *o};
    const bool single = (int64_t)o->grid.rows * o->grid.cols == 1;
    if (of_team(o))
        e = cayley_team_create(c, o->n, o->kind, o->rough_gradient, &d->team);
    else
        e = single ? comm_agree(c, create_single(d), "R1", NULL) : create_grid(d);
    if (!e.code) e = create_kept(d);
    if (e.code)
        cayley_dist_destroy(&d);
    else
        *out = d;
    return e;
}

void cayley_dist_destroy(cayley_dist **d) {
    if (!*d) return;
    cayley_team_destroy(&(*d)->team);
    mem_free((*d)->snapshot);
    mem_free((*d)->R);
    mem_free((*d)->G);
    optimizer_destroy(&(*d)->opt);
    dmat_destroy(&(*d)->dR);
    dmat_destroy(&(*d)->dG);
    dmat_destroy(&(*d)->T);
    dmat_destroy(&(*d)->extra);
    dgrid_destroy(&(*d)->g);
    mem_free((*d)->numbers);
    mem_free((*d)->room);
    mem_free(*d);
    *d = NULL;
}

/* Rows in and out. */

void cayley_dist_put_rows(cayley_dist *d, int64_t row, int64_t rows, const double *R) {
    const int64_t n = d->o.n;
    if (d->team)
        memcpy(cayley_team_R(d->team) + row * n, R, (size_t)(rows * n) * sizeof *R);
    else if (on_grid(d))
        dmat_put_rows(d->dR, row, rows, R);
    else if (is_first(d))
        memcpy(d->R + row * n, R, (size_t)(rows * n) * sizeof *R);
}

void cayley_dist_put_gradient(cayley_dist *d, int64_t row, int64_t rows, const double *G) {
    const int64_t n = d->o.n;
    if (d->team)
        cayley_team_put_gradient(d->team, row, rows, G);
    else if (on_grid(d))
        dmat_put_rows(d->dG, row, rows, G);
    else if (is_first(d))
        memcpy(d->G + row * n, G, (size_t)(rows * n) * sizeof *G);
}

/* Where the first rank alone steps, it gets all. */
static void sum_to_first(const cayley_dist *d, int64_t *v, int64_t n, int bytes) {
    int64_t *from = calloc((size_t)comm_size(d->c) + 1, sizeof *from);
    if (!from) abort();
    for (int r = 1; r <= comm_size(d->c); r++) from[r] = n;
    comm_sum_i64_parts(d->c, v, from, bytes);
    free(from);
}

void cayley_dist_sum_gradient(cayley_dist *d, int64_t row, int64_t rows, int64_t *v, int exponent,
                              int bytes) {
    const int64_t n = d->o.n;
    if (d->team) {
        cayley_team_sum_gradient(d->team, row, rows, v, exponent);
        return;
    }
    if (on_grid(d)) {
        dmat_sum_rows_i64(d->dG, row, rows, v, exponent, bytes);
        return;
    }
    sum_to_first(d, v, rows * n, bytes);
    for (int64_t i = 0; is_first(d) && i < rows * n; i++)
        d->G[row * n + i] = ldexp((double)v[i], exponent);
}

bool cayley_dist_sum_transposed(cayley_dist *d, const int64_t *v, int exponent) {
    if (d->team) cayley_team_sum_transposed(d->team, v, exponent);
    return d->team != NULL;
}

void cayley_dist_get_rows(const cayley_dist *d, int64_t row, int64_t rows, double *R) {
    const int64_t n = d->o.n;
    if (on_grid(d)) {
        dmat_get_rows(d->dR, row, rows, R);
        return;
    }
    if (d->team) {
        memcpy(R, cayley_team_R(d->team) + row * n, (size_t)(rows * n) * sizeof *R);
        return;
    }
    if (is_first(d)) memcpy(R, d->R + row * n, (size_t)(rows * n) * sizeof *R);
    comm_bcast(d->c, R, (uint64_t)(rows * n) * sizeof *R, 0);
}

void cayley_dist_get_rows_f32(const cayley_dist *d, int64_t row, int64_t rows, float *R) {
    const int64_t n = d->o.n;
    if (on_grid(d)) {
        dmat_get_rows_f32(d->dR, row, rows, R);
        return;
    }
    const double *whole = d->team ? cayley_team_R(d->team) : d->R;
    for (int64_t i = 0; whole && i < rows * n; i++) R[i] = (float)whole[row * n + i];
    if (!d->team) comm_bcast(d->c, R, (uint64_t)(rows * n) * sizeof *R, 0);
}

void cayley_dist_get_rows_bf16(const cayley_dist *d, int64_t row, int64_t rows, bf16 *R) {
    const int64_t n = d->o.n;
    if (on_grid(d)) {
        dmat_get_rows_bf16(d->dR, row, rows, R);
        return;
    }
    const double *whole = d->team ? cayley_team_R(d->team) : d->R;
    for (int64_t i = 0; whole && i < rows * n; i++) R[i] = half_to_bf16((float)whole[row * n + i]);
    if (!d->team) comm_bcast(d->c, R, (uint64_t)(rows * n) * sizeof *R, 0);
}

/* Steps. */

static err step_single(cayley_dist *d, double lr, double loss, optimizer_report *said) {
    err e = err_none();
    if (is_first(d)) {
        e = cayley_skew(d->o.n, d->G, d->R, d->G);
        if (!e.code) e = optimizer_step(d->opt, lr, &loss, d->G, d->R, said);
    }
    e = comm_agree(d->c, e, "step of R1", NULL);
    if (!e.code) comm_bcast(d->c, said, sizeof *said, 0);
    return e;
}

/* dG <- W = -1/2 (G R^T - R G^T), exactly skew. */
static void direction(cayley_dist *d) {
    dmat_gemm(GEMM_N, GEMM_T, 1, d->dG, d->dR, 0, d->T);
    dmat_copy(d->T, d->dG);
    dmat_add_transpose(0.5, d->T, -0.5, d->dG);
}

static err times_parts(int64_t n, const void *m, const double *z, double *y) {
    (void)n;
    return dmat_times(false, m, z, y);
}

/* |m|_2 of a skew matrix over the grid. */
static err angle_of(const cayley_dist *d, const dmat *m, double *angle) {
    double *room;
    err e = MEM_NEW(&room, 2 * d->o.n, "angle of R1");
    e = comm_agree(d->c, e, "step of R1", NULL);
    if (!e.code) e = cayley_angle_by(d->o.n, times_parts, m, room, angle);
    mem_free(room);
    return e;
}

/* What this cell has of c, by the lines of its part: columns, as W is stored, and their rows. */
static err channels_of_part(cayley_dist *d, optimizer_part *p) {
    const int64_t n = d->o.n;
    double *c = d->numbers + CHANNELS, *squares = d->room, *of_line = squares + n,
           *of_entry = of_line + n;
    err e = dmat_col_squares(d->dG, squares);
    if (e.code) return e;
    p->mean = optimizer_adam_channels(n, squares, c);
    for (int64_t j = 0; j < p->lines; j++) of_line[j] = c[dmat_col(d->dG, j)];
    for (int64_t i = 0; i < p->length; i++) of_entry[i] = c[dmat_row(d->dG, i)];
    p->of_line = of_line;
    p->of_entry = of_entry;
    return e;
}

/* dG: W becomes W', which the momentum takes in. */
static err adam_take(cayley_dist *d, double sums[2]) {
    optimizer_part p = {.lines = 0};
    err e = err_none();
    dmat_part_shape(d->dG, &p.length, &p.lines);
    if (d->o.kind == OPTIMIZER_ADAM_CHANNELS) e = channels_of_part(d, &p);
    if (e.code) return e;
    optimizer_adam_take(&p, dmat_part(d->dG), dmat_part(d->extra), sums);
    for (int k = 0; k < 2; k++) sums[k] = dmat_sum_of_cells(d->dG, sums[k]);
    return e;
}

/* dG: W becomes A. */
static err adam_direction(cayley_dist *d, double lr, double loss, optimizer_report *said) {
    const int64_t entries = dmat_part_entries(d->dG);
    double angle, sums[2], *W = dmat_part(d->dG), *M = dmat_part(d->extra);
    err e = adam_take(d, sums);
    if (!e.code) e = angle_of(d, d->dG, &angle);
    if (e.code) return e;
    said->alpha = optimizer_adam_factor(lr, (int64_t)d->numbers[STEPS] + 1, angle,
                                        &d->numbers[SECOND_MOMENT]);
    const double inner = optimizer_adam_inner(entries, sums[0], sums[1], W, M);
    said->alpha = optimizer_bound_promise(said->alpha, inner, loss, &said->promise);
    optimizer_adam_direct(entries, said->alpha, M, W);
    return e;
}

/* dG: W becomes A = alpha W, alpha by the norm of W' = R^T W R. */
static err sgd_direction(cayley_dist *d, double lr, double *alpha) {
    const int64_t entries = dmat_part_entries(d->dG);
    double norm, *W = dmat_part(d->dG);
    dmat_gemm(GEMM_N, GEMM_N, 1, d->dG, d->dR, 0, d->T);
    dmat_gemm(GEMM_T, GEMM_N, 1, d->dR, d->T, 0, d->extra);
    err e = dmat_norm_1(d->extra, &norm);
    *alpha = optimizer_sgd_factor(lr, norm);
    for (int64_t i = 0; i < entries; i++) W[i] *= *alpha;
    return e;
}

/* to = f from, plus `diagonal` on the diagonal of the whole. */
static void scaled_plus_diagonal(const cayley_dist *d, double f, dmat *from, double diagonal,
                                 dmat *to) {
    int64_t rows, cols;
    const double *in = dmat_part(from);
    double *out = dmat_part(to);
    dmat_part_shape(d->T, &rows, &cols);
#pragma omp parallel for if (rows * cols >= PARALLEL_FROM)
    for (int64_t j = 0; j < cols; j++)
        for (int64_t i = 0; i < rows; i++) {
            const int64_t at = j * rows + i;
            out[at] = f * in[at] + (dmat_row(to, i) == dmat_col(to, j) ? diagonal : 0);
        }
}

/* R <- 2 (I - A/2)^-1 R - R with A in dG. */
static err move(cayley_dist *d) {
    const int64_t entries = dmat_part_entries(d->dR);
    scaled_plus_diagonal(d, -0.5, d->dG, 1, d->T);
    dmat_copy(d->dR, d->dG);
    err e = dmat_solve(d->T, d->dG);
    if (e.code) return e;
    double *R = dmat_part(d->dR), *X = dmat_part(d->dG);
#pragma omp parallel for if (entries >= PARALLEL_FROM)
    for (int64_t i = 0; i < entries; i++) R[i] = 2 * X[i] - R[i];
    return e;
}

/* R <- R (3 I - R^T R) / 2. */
static void polish(cayley_dist *d) {
    dmat_gemm(GEMM_T, GEMM_N, 1, d->dR, d->dR, 0, d->T);
    scaled_plus_diagonal(d, -0.5, d->T, 1.5, d->T);
    dmat_gemm(GEMM_N, GEMM_N, 1, d->dR, d->T, 0, d->dG);
    dmat_copy(d->dG, d->dR);
}

static err step_grid(cayley_dist *d, double lr, double loss, optimizer_report *said) {
    const double n = (double)d->o.n;
    direction(d);
    if (!dmat_finite(d->dG))
        return err_make(ERR_NUMERICS, "optimizer", "use a smaller learning rate",
                        "gradient of R1 at step %.0f holds NaN or infinity", d->numbers[STEPS]);
    err e = err_none();
    said->gradient = sqrt(dmat_sum_squares(d->dG));
    if (optimizer_is_adam(d->o.kind))
        e = adam_direction(d, lr, loss, said);
    else
        e = sgd_direction(d, lr, &said->alpha);
    if (e.code) return e;
    said->rms_angle = sqrt(dmat_sum_squares(d->dG) / n);
    e = angle_of(d, d->dG, &said->angle);
    if (!e.code) e = move(d);
    if (!e.code && (int64_t)++d->numbers[STEPS] % OPTIMIZER_POLISH_EVERY == 0) polish(d);
    return e;
}

err cayley_dist_step(cayley_dist *d, double lr, double loss, optimizer_report *report) {
    optimizer_report said = {0};
    err e = d->team      ? cayley_team_step(d->team, lr, loss, &said)
            : on_grid(d) ? step_grid(d, lr, loss, &said)
                         : step_single(d, lr, loss, &said);
    if (!e.code && report) *report = said;
    return e;
}

/* Measures. */

err cayley_dist_orthogonality(cayley_dist *d, double *max) {
    err e = err_none();
    if (on_grid(d)) {
        dmat_gemm(GEMM_T, GEMM_N, 1, d->dR, d->dR, 0, d->T);
        *max = dmat_max_minus_identity(d->T);
        return e;
    }
    if (is_first(d)) e = cayley_orthogonality(d->o.n, d->team ? cayley_team_R(d->team) : d->R, max);
    e = comm_agree(d->c, e, "orthogonality of R1", NULL);
    if (!e.code) comm_bcast(d->c, max, sizeof *max, 0);
    return e;
}

static err probe_grid(const cayley_dist *d, uint64_t seed, int64_t step, double *max) {
    const int64_t n = d->o.n;
    double *p;
    *max = 0;
    err e = comm_agree(d->c, MEM_NEW(&p, 3 * n, "probe of R1"), "probe", NULL);
    if (e.code) {
        mem_free(p);
        return e;
    }
    double *z = p, *u = z + n, *back = u + n;
    for (int64_t i = 0; i < n; i++)
        z[i] = rng_sign(seed, RNG_PROBE, (uint64_t)(step * n + i)) / sqrt((double)n);
    e = dmat_times(false, d->dR, z, u);
    if (!e.code) e = dmat_times(true, d->dR, u, back);
    for (int64_t i = 0; i < n; i++) {
        const double off = fabs(back[i] - z[i]);
        if (off > *max || isnan(off)) *max = off;
    }
    mem_free(p);
    return e;
}

err cayley_dist_probe(cayley_dist *d, uint64_t seed, int64_t step, double *max) {
    err e = err_none();
    if (on_grid(d)) return probe_grid(d, seed, step, max);
    if (is_first(d))
        e = cayley_probe(d->o.n, d->team ? cayley_team_R(d->team) : d->R, seed, step, max);
    e = comm_agree(d->c, e, "probe of R1", NULL);
    if (!e.code) comm_bcast(d->c, max, sizeof *max, 0);
    return e;
}

/* State: R with its optimiser (on a grid steps, v, c, R and, of adam, M, as this cell has them);
 * what is remembered of R stands behind it. */

int cayley_dist_state_pieces(cayley_dist *d, byte_piece out[CAYLEY_STATE_PIECES]) {
    int64_t entries;
    int n = 0;
    double *R = own_part(d, &entries);
    if (!cayley_dist_is_cell(d)) return 0;
    if (d->team) {
        n = cayley_team_state_pieces(d->team, out);
    } else if (on_grid(d)) {
        out[n++] = byte_piece_of_doubles(d->numbers, CHANNELS + d->o.n);
        out[n++] = byte_piece_of_doubles(R, entries);
        if (optimizer_is_adam(d->o.kind))
            out[n++] = byte_piece_of_doubles(dmat_part(d->extra), entries);
    } else {
        out[n++] = byte_piece_of_doubles(R, entries);
        n += optimizer_state_pieces(d->opt, out + n);
    }
    out[n++] = byte_piece_of_doubles(d->snapshot, entries);
    return n;
}

void cayley_dist_state_taken(cayley_dist *d) {
    int64_t entries;
    own_part(d, &entries);
    if (d->team) {
        cayley_team_state_taken(d->team);
        comm_bcast(d->c, d->snapshot, (uint64_t)entries * sizeof *d->snapshot, 0);
    }
    /* Ranks beside the cells count steps too: the polish is a collective of all. */
    if (on_grid(d))
        comm_bcast(d->c, d->numbers, (uint64_t)(CHANNELS + d->o.n) * sizeof *d->numbers, 0);
}

/* As many for both optimisers: what adam keeps, sgd-published takes within a step. */
static uint64_t single_bytes(int64_t n) {
    return cayley_team_bytes(n, OPTIMIZER_ADAM) + (uint64_t)(n * n) * sizeof(double);
}

uint64_t cayley_dist_plan_bytes(const cayley_dist_options *o) {
    const int64_t block = o->block > 0 ? o->block : DMAT_BLOCK;
    if ((int64_t)o->grid.rows * o->grid.cols == 1) return single_bytes(o->n);
    return (uint64_t)(5 * grid_cell_entries(o->grid, o->n, block) + 4 * o->n) * sizeof(double);
}

uint64_t cayley_dist_beside_bytes(const cayley_dist_options *o) {
    return of_team(o) ? single_bytes(o->n) : 0;
}

/* Of a team G's integers, the product with G (in fp32 where rough) and the solution; else the
 * integers to those who step, and R to all. */
uint64_t cayley_dist_step_network(const cayley_dist_options *o, int sum_bytes, int r_bytes) {
    const uint64_t team =
                       2 * sizeof(int64_t) + (o->rough_gradient ? sizeof(float) : sizeof(double)),
                   cells = (uint64_t)(sum_bytes + r_bytes);
    return (uint64_t)(o->n * o->n) * (of_team(o) ? team : cells);
}

/* Ranks of a team hold R whole. */
uint64_t cayley_dist_get_network(const cayley_dist_options *o, int r_bytes) {
    return of_team(o) ? 0 : (uint64_t)(o->n * o->n) * (uint64_t)r_bytes;
}

uint64_t cayley_dist_bytes(const cayley_dist *d) {
    if (on_grid(d) && dgrid_is_cell(d->g))
        return (uint64_t)(5 * dmat_part_entries(d->dR) + 4 * d->o.n) * sizeof(double);
    if (on_grid(d)) return 0;
    return is_first(d) || d->team ? single_bytes(d->o.n) : 0;
}

bool cayley_dist_is_cell(const cayley_dist *d) {
    return on_grid(d) ? dgrid_is_cell(d->g) : is_first(d);
}
