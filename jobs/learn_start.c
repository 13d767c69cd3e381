/* Start points of R1 and R2: those of the recipe's set, or eigenvectors of activations. */
#include "jobs/learn.h"

#include "base/mem.h"
#include "rotations/start.h"

#include <stdlib.h>
#include <string.h>

static err start_r2_pca(learner *l) {
    int64_t d = learner_cfg(l)->head_dim, dd = d * d;
    double *C = malloc((size_t)dd * sizeof *C);
    if (!C) abort();
    err e = err_none();
    for (int64_t i = 0; i < l->range.n && !e.code; i++) {
        for (int64_t h = 0; h < l->r2_heads && !e.code; h++) {
            int64_t layer = l->range.first + i;
            e = row_pool_moment_r2(&l->pool, layer, l->r2_heads > 1 ? h : -1, C);
            if (!e.code) e = start_pca(d, C, l->R2 + layer * learner_r2_entries(l) + h * dd, NULL);
        }
    }
    free(C);
    return e;
}

/* Ranks own layers in rank order. */
void learn_share_r2(learner *l) {
    const comm *c = l->q->c;
    size_t each = (size_t)learner_r2_entries(l) * sizeof(double),
           *lens = calloc((size_t)comm_size(c), sizeof *lens);
    size_t total = (size_t)learner_cfg(l)->layers * each;
    void *all = NULL;
    if (!lens) abort();
    comm_gather_blobs(c, l->R2 + l->range.first * learner_r2_entries(l), (size_t)l->range.n * each,
                      &all, lens, 0);
    if (comm_rank(c) == 0) memcpy(l->R2, all, total);
    comm_bcast(c, l->R2, total, 0);
    free(all);
    free(lens);
}

static err start_from_activations(learner *l) {
    int64_t n = learner_cfg(l)->hidden;
    void *C = NULL;
    err e = err_none();
    if (l->R1) {
        e = mem_alloc(n * n, sizeof(double), "second moment", &C);
        e = comm_agree(l->q->c, e, "start points", NULL);
        if (!e.code) e = row_pool_moment_r1(l->q->c, &l->pool, C);
        if (!e.code) e = start_pca(n, C, l->R1, NULL);
        mem_free(C);
    }
    if (!e.code && l->r2_heads) e = start_r2_pca(l);
    e = comm_agree(l->q->c, e, "start points", NULL);
    if (!e.code && l->r2_heads) learn_share_r2(l);
    return e;
}

/* The rotations that the recipe starts from, dense. */
static err start_from_set(learner *l) {
    rotation_set *set = l->q->rotations;
    int64_t dd = learner_cfg(l)->head_dim * learner_cfg(l)->head_dim;
    err e = err_none();
    if (l->R1) e = rotation_to_dense(rotation_set_r1(set), l->R1);
    for (int64_t i = 0; l->r2_heads && i < learner_cfg(l)->layers && !e.code; i++) {
        e = rotation_set_prepare_r2(set, i);
        for (int64_t h = 0; h < l->r2_heads && !e.code; h++)
            e = rotation_to_dense(rotation_set_r2(set, i, h),
                                  l->R2 + i * learner_r2_entries(l) + h * dd);
    }
    return comm_agree(l->q->c, e, "start points", NULL);
}

err learn_start(learner *l) {
    return recipe_is(l->q->recipe, "rotate.start", "pca") ? start_from_activations(l)
                                                          : start_from_set(l);
}
