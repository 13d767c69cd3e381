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

int64_t r2_part_state_each(optimizer_kind kind, int64_t d) {
    return kind == OPTIMIZER_ADAM ? 3 * d * d + 1 : 2 * d * d;
}

/* The optimiser's own order is steps, v of all, M of all. */
static double *optimizer_doubles(const r2_part *p) {
    const int64_t n = p->o ? optimizer_state_count(p->o) : 0;
    double *s = calloc((size_t)n + 1, sizeof *s);
    if (!s) abort();
    return s;
}

void r2_part_state_save(const r2_part *p, const comm *c, bool give, double *out) {
    const int64_t dd = p->d * p->d, each = r2_part_state_each(p->kind, p->d);
    const int64_t count = give ? p->count : 0;
    double *s = optimizer_doubles(p), *mine = malloc((size_t)(count * each + 1) * sizeof *mine);
    size_t len;
    if (!mine) abort();
    if (count) optimizer_state_save(p->o, s);
    for (int64_t m = 0; m < count; m++) {
        double *to = mine + m * each;
        memcpy(to, p->R + m * dd, (size_t)dd * sizeof *s);
        memcpy(to + dd, p->snapshot + m * dd, (size_t)dd * sizeof *s);
        if (each == 2 * dd) continue;
        to[2 * dd] = s[1 + m];
        memcpy(to + 2 * dd + 1, s + 1 + p->count + m * dd, (size_t)dd * sizeof *s);
    }
    void *all = comm_gather_joined(c, mine, (size_t)(count * each) * sizeof *mine, &len);
    if (all) memcpy(out, all, len);
    free(all);
    free(mine);
    free(s);
}

void r2_part_state_load(r2_part *p, int64_t steps, const double *in) {
    const int64_t dd = p->d * p->d, each = r2_part_state_each(p->kind, p->d);
    double *s = optimizer_doubles(p);
    s[0] = (double)steps;
    in += p->first * each;
    for (int64_t m = 0; m < p->count; m++, in += each) {
        memcpy(p->R + m * dd, in, (size_t)dd * sizeof *s);
        memcpy(p->snapshot + m * dd, in + dd, (size_t)dd * sizeof *s);
        if (each == 2 * dd) continue;
        s[1 + m] = in[2 * dd];
        memcpy(s + 1 + p->count + m * dd, in + 2 * dd + 1, (size_t)dd * sizeof *s);
    }
    if (p->o) optimizer_state_load(p->o, s);
    free(s);
}
