/* Eigenvectors of a second moment, on one rank or over a grid; where the recipe asks for none, the
 * matrices of the set as it is. */
#include "jobs/phases/learn_start.h"

#include "base/mem.h"
#include "base/size.h"
#include "jobs/run/between_units.h"
#include "mpi/dmat.h"
#include "pipeline/learn/weight_start.h"
#include "rotations/start.h"
#include "rotations/start_dist.h"

#include <stdlib.h>
#include <string.h>

static bool starts_at(const learner *l, start_point point) {
    return (start_point)l->q->set->rotate.start.word == point;
}

static bool r2_starts_at(const learner *l, start_point point) {
    switch (l->q->set->rotate.start_r2) {
    case START_R2_PCA:
        return point == START_POINT_PCA;
    case START_R2_WOMI:
        return point == START_POINT_WOMI;
    default:
        return starts_at(l, point);
    }
}

static err start_r2_eigen(learner *l) {
    int64_t d = learner_cfg(l)->head_dim, dd = d * d;
    double *C = malloc((size_t)dd * sizeof *C);
    if (!C) abort();
    err e = err_none();
    for (int64_t i = 0; i < l->range.n && !e.code; i++) {
        for (int64_t h = 0; h < l->r2_heads && !e.code; h++) {
            int64_t layer = l->range.first + i, head = l->r2_heads > 1 ? h : -1;
            e = r2_starts_at(l, START_POINT_WOMI) ? weight_start_moment_r2(&l->stage, i, head, C)
                                                  : row_pool_moment_r2(&l->pool, layer, head, C);
            if (!e.code) e = start_pca(d, C, l->R2 + layer * learner_r2_entries(l) + h * dd, NULL);
        }
    }
    free(C);
    return e;
}

/* Ranks own layers in rank order. */
void learn_share_layers(const learner *l, double *v, int64_t n) {
    const comm *c = l->q->c;
    const size_t each = (size_t)n * sizeof *v, total = (size_t)learner_cfg(l)->layers * each;
    size_t len;
    void *all = comm_gather_joined(c, v + l->range.first * n, (size_t)l->range.n * each, &len);
    if (all) memcpy(v, all, len);
    comm_bcast(c, v, total, 0);
    free(all);
}

int64_t learn_most_layers(const learner *l) {
    int64_t n = l->range.n;
    comm_max_i64(l->q->c, &n, 1);
    return n;
}

/* ---- R1 over a grid: no rank holds it whole ---- */

static void put_rows(void *to, int64_t row, int64_t rows, const double *R) {
    dealt_rows_put(to, row, rows, R);
}

static err eigen_dist(learner *l, dgrid *g, start_sink sink) {
    const int64_t n = learner_cfg(l)->hidden;
    dmat *C = NULL;
    err e = dmat_create(g, n, "second moment", &C);
    if (!e.code)
        e = starts_at(l, START_POINT_WOMI) ? weight_start_moment_r1_dist(&l->stage, C)
                                           : row_pool_moment_r1_dist(&l->pool, C);
    if (!e.code) e = start_dist_pca(g, C, n, sink);
    dmat_destroy(&C);
    return e;
}

static err start_r1_dist(learner *l, grid_shape shape) {
    const int threads = (int)l->q->set->numerics.threads; /* resolved on such a grid */
    const start_sink sink = {.to = l->R1, .put = put_rows};
    dgrid *g = NULL;
    err e = dgrid_create(l->q->c, shape, 0, threads, &g);
    if (!e.code && !starts_at(l, START_POINT_ORTHOGONAL))
        e = eigen_dist(l, g, sink);
    else if (!e.code)
        e = start_dist_orthogonal(g, (uint64_t)l->q->set->seed, learner_cfg(l)->hidden, sink);
    dgrid_destroy(&g);
    return e;
}

/* ---- R1 on every rank ---- */

/* A whole matrix that every rank holds. */
static void take_whole(learner *l, const double *R1) {
    dealt_rows_put(l->R1, 0, learner_cfg(l)->hidden, R1);
}

static err start_r1_whole(learner *l) {
    int64_t n = learner_cfg(l)->hidden;
    double *C = NULL, *R1 = NULL;
    const bool eigen = !starts_at(l, START_POINT_ORTHOGONAL);
    err e = MEM_NEW(&R1, n * n, "start of R1");
    if (!e.code && eigen) e = MEM_NEW(&C, n * n, "second moment");
    e = comm_agree(l->q->c, e, "start points", NULL);
    if (!e.code && eigen)
        e = starts_at(l, START_POINT_WOMI) ? weight_start_moment_r1(l->q->c, &l->stage, C)
                                           : row_pool_moment_r1(l->q->c, &l->pool, C);
    if (!e.code && eigen) e = start_pca(n, C, R1, NULL);
    if (!e.code && !eigen) e = start_orthogonal(n, (uint64_t)l->q->set->seed, RNG_R1_NORMAL, 0, R1);
    if (!e.code) take_whole(l, R1);
    mem_free(C);
    mem_free(R1);
    return e;
}

/* Collective. Starts that are factored: pca, womi and orthogonal. */
static err start_r1_factored(learner *l) {
    grid_shape shape;
    err e = grid_resolve("numerics.grid", l->q->set->numerics.grid.text, learner_cfg(l)->hidden,
                         comm_size(l->q->c), &shape);
    if (e.code) return e;
    return shape.rows * shape.cols > 1 ? start_r1_dist(l, shape) : start_r1_whole(l);
}

/* Rows of R1 as the set has it, as many at a time as pass. */
static err start_r1_from_set(learner *l) {
    const int64_t n = learner_cfg(l)->hidden;
    double *band;
    err e = MEM_NEW(&band, DEALT_ROWS_BAND * n, "rows of R1");
    for (int64_t row = 0; !e.code && row < n; row += DEALT_ROWS_BAND) {
        const int64_t b = size_min(DEALT_ROWS_BAND, n - row);
        rotation_dense_rows(rotation_set_r1(l->q->rotations), row, b, band);
        dealt_rows_put(l->R1, row, b, band);
    }
    mem_free(band);
    return e;
}

/* Of the set NULL is the identity. */
static void put_r2(const rotation *r, int64_t d, double *out) {
    if (r) {
        rotation_dense_rows(r, 0, d, out);
        return;
    }
    memset(out, 0, (size_t)(d * d) * sizeof *out);
    for (int64_t i = 0; i < d; i++) out[i * d + i] = 1;
}

static err start_r2_from_set(learner *l) {
    rotation_set *set = l->q->rotations;
    const int64_t d = learner_cfg(l)->head_dim;
    err e = err_none();
    for (int64_t i = 0; i < learner_cfg(l)->layers && !e.code; i++) {
        e = rotation_set_prepare_r2(set, i);
        for (int64_t h = 0; h < l->r2_heads && !e.code; h++)
            put_r2(rotation_set_r2(set, i, h), d, l->R2 + i * learner_r2_entries(l) + h * d * d);
    }
    return e;
}

err learn_start(learner *l) {
    const bool eigen = r2_starts_at(l, START_POINT_PCA) || r2_starts_at(l, START_POINT_WOMI);
    err e = err_none();
    if (l->R1 && (starts_at(l, START_POINT_PCA) || starts_at(l, START_POINT_WOMI) ||
                  starts_at(l, START_POINT_ORTHOGONAL)))
        e = start_r1_factored(l);
    else if (l->R1)
        e = start_r1_from_set(l);
    e = comm_agree(l->q->c, e, "start points", NULL);
    if (!e.code && l->r2_heads && eigen) e = between_units(l->q, l->q->c, "start", 1, 2);
    if (!e.code && l->r2_heads) e = eigen ? start_r2_eigen(l) : start_r2_from_set(l);
    e = comm_agree(l->q->c, e, "start points", NULL);
    if (!e.code && l->r2_heads && eigen) learn_share_layers(l, l->R2, learner_r2_entries(l));
    return e;
}
