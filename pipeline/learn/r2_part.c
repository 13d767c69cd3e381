/* A batch of small matrices with one optimiser; state is saved by matrix, so that another number
 * of ranks can load it. */
#include "pipeline/learn/r2_part.h"

#include "base/mem.h"
#include "rotations/cayley.h"

#include <stdlib.h>
#include <string.h>

struct r2_part {
    optimizer_kind kind;
    int64_t d, first, count;
    double *R, *W;    /* [count, d, d] */
    double *snapshot; /* R as it is remembered */
    optimizer *o;     /* NULL where count is 0 */
};

err r2_part_create(optimizer_kind kind, int64_t d, int64_t first, int64_t count, const double *R,
                   r2_part **out) {
    *out = NULL;
    r2_part *r;
    err e = MEM_NEW(&r, 1, "R2");
    if (e.code) return e;
    *r = (r2_part){.kind = kind, .d = d, .first = first, .count = count};
    e = MEM_NEW(&r->R, count * d * d, "R2");
    if (!e.code) e = MEM_NEW(&r->W, count * d * d, "directions of R2");
    if (!e.code) e = MEM_NEW(&r->snapshot, count * d * d, "R2 as it was");
    if (!e.code && count) e = optimizer_create(kind, d, count, &r->o);
    if (!e.code && count) memcpy(r->R, R, (size_t)(count * d * d) * sizeof *R);
    if (e.code) r2_part_destroy(&r);
    *out = r;
    return e;
}

void r2_part_destroy(r2_part **p) {
    if (!*p) return;
    optimizer_destroy(&(*p)->o);
    mem_free((*p)->R);
    mem_free((*p)->W);
    mem_free((*p)->snapshot);
    mem_free(*p);
    *p = NULL;
}

const double *r2_part_get(const r2_part *p) {
    return p->R;
}

err r2_part_step(r2_part *p, double lr, double loss, double *G, optimizer_report *report) {
    *report = (optimizer_report){0};
    if (!p->count) return err_none();
    double *each = malloc((size_t)p->count * sizeof *each);
    if (!each) abort();
    for (int64_t m = 0; m < p->count; m++) each[m] = loss;
    err e = cayley_skew_batch(p->d, p->count, G, p->R, p->W);
    if (!e.code) e = optimizer_step(p->o, lr, each, p->W, p->R, report);
    free(each);
    return e;
}

void r2_part_snapshot(r2_part *p) {
    memcpy(p->snapshot, p->R, (size_t)(p->count * p->d * p->d) * sizeof *p->R);
}

void r2_part_restore(r2_part *p) {
    memcpy(p->R, p->snapshot, (size_t)(p->count * p->d * p->d) * sizeof *p->R);
    if (p->o) optimizer_forget(p->o);
}

int64_t r2_part_steps_done(const r2_part *p) {
    return p->o ? optimizer_steps_done(p->o) : 0;
}

/* R, R as it is remembered, and what the optimiser keeps of it. */
int64_t r2_part_state_each(optimizer_kind kind, int64_t d) {
    return 2 * d * d + optimizer_matrix_count(kind, d);
}

void r2_part_state_save(const r2_part *p, const comm *c, bool give, double *out) {
    const int64_t dd = p->d * p->d, each = r2_part_state_each(p->kind, p->d);
    const int64_t count = give ? p->count : 0;
    double *mine = malloc((size_t)(count * each + 1) * sizeof *mine);
    size_t len;
    if (!mine) abort();
    for (int64_t m = 0; m < count; m++) {
        double *to = mine + m * each;
        memcpy(to, p->R + m * dd, (size_t)dd * sizeof *to);
        memcpy(to + dd, p->snapshot + m * dd, (size_t)dd * sizeof *to);
        optimizer_matrix_save(p->o, m, to + 2 * dd);
    }
    void *all = comm_gather_joined(c, mine, (size_t)(count * each) * sizeof *mine, &len);
    if (all) memcpy(out, all, len);
    free(all);
    free(mine);
}

void r2_part_state_load(r2_part *p, int64_t steps, const double *in) {
    const int64_t dd = p->d * p->d, each = r2_part_state_each(p->kind, p->d);
    in += p->first * each;
    for (int64_t m = 0; m < p->count; m++, in += each) {
        memcpy(p->R + m * dd, in, (size_t)dd * sizeof *in);
        memcpy(p->snapshot + m * dd, in + dd, (size_t)dd * sizeof *in);
        optimizer_matrix_load(p->o, m, in + 2 * dd);
    }
    if (p->o) optimizer_put_steps(p->o, steps);
}
