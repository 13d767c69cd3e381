/* Four arrays [layers, entries of a layer], kinds one after the other within a layer, and the set
 * that is filled from the first of them after each change. */
#include "pipeline/learn/scale_part.h"

#include "base/mem.h"
#include "pipeline/learn/adam.h"
#include "pipeline/learn/scale_closed.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LOG_S, KEPT, FIRST_MOMENT, SECOND_MOMENT, ARRAYS };

struct scale_part {
    scale_sizes sizes;
    uint32_t kinds;
    int64_t first, count, entries, steps;
    double *v[ARRAYS]; /* [count, entries] */
    double *s;         /* [entries] */
    scale_set *set;
};

uint64_t scale_part_bytes(const scale_sizes *sizes, uint32_t kinds) {
    enum { IN_SET = 3, OF_STEP = 1, OF_SUM = 1 };
    const int64_t all = sizes->layers * scale_sizes_at(sizes, kinds, SCALE_KINDS);
    return (uint64_t)(all * (ARRAYS + IN_SET + OF_STEP + OF_SUM)) * sizeof(double);
}

/* The vectors of a layer in the set, from log s. */
static err put_layer(scale_part *p, int64_t i) {
    const double *log_s = p->v[LOG_S] + i * p->entries;
    err e = err_none();
    for (int64_t j = 0; j < p->entries; j++) p->s[j] = exp(log_s[j]);
    for (int k = 0; k < SCALE_KINDS && !e.code; k++)
        if (p->kinds >> k & 1u)
            e = scale_set_put(p->set, (scale_kind)k, p->first + i,
                              p->s + scale_sizes_at(&p->sizes, p->kinds, k));
    return e;
}

static err put_all(scale_part *p) {
    err e = err_none();
    for (int64_t i = 0; i < p->count && !e.code; i++) e = put_layer(p, i);
    return e;
}

err scale_part_create(const scale_sizes *sizes, uint32_t kinds, int64_t first, int64_t count,
                      const double *start, scale_part **out) {
    *out = NULL;
    scale_part *s;
    err e = MEM_NEW(&s, 1, "scales");
    if (e.code) return e;
    *s = (scale_part){.sizes = *sizes, .kinds = kinds, .first = first, .count = count};
    s->entries = scale_sizes_at(sizes, kinds, SCALE_KINDS);
    for (int i = 0; i < ARRAYS && !e.code; i++) {
        e = MEM_NEW(&s->v[i], count * s->entries, "scales and their moments");
    }
    if (!e.code) e = MEM_NEW(&s->s, s->entries, "scales");
    if (!e.code) e = scale_set_create(sizes, &s->set);
    for (int k = 0; k < SCALE_KINDS && !e.code; k++)
        if (kinds >> k & 1u) e = scale_set_add(s->set, (scale_kind)k);
    for (int64_t j = 0; j < count * s->entries && !e.code; j++) s->v[LOG_S][j] = log(start[j]);
    if (!e.code) e = put_all(s);
    if (e.code) scale_part_destroy(&s);
    *out = s;
    return e;
}

void scale_part_destroy(scale_part **part) {
    scale_part *p = *part;
    if (!p) return;
    for (int i = 0; i < ARRAYS; i++) mem_free(p->v[i]);
    mem_free(p->s);
    scale_set_destroy(&p->set);
    mem_free(p);
    *part = NULL;
}

const scale_set *scale_part_set(const scale_part *p) {
    return p->set;
}

void scale_part_take(const scale_part *p, double *out) {
    for (int64_t j = 0; j < p->count * p->entries; j++) out[j] = exp(p->v[LOG_S][j]);
}

/* SCALE_QK: each channel gets the sum over those that share its scale. */
static void tie(const scale_sizes *z, double *G) {
    const int64_t d = z->head_dim, half = d / 2, n = z->kv_heads * d;
    for (int64_t j = 0; j < n; j++) {
        if (j % d >= half || (z->qk_norm && j >= half)) continue;
        double sum = 0;
        for (int64_t k = j; k < (z->qk_norm ? n : j + 1); k += d) sum += G[k] + G[k + half];
        for (int64_t k = j; k < (z->qk_norm ? n : j + 1); k += d) G[k] = G[k + half] = sum;
    }
}

/* Of each kind of a layer: the geometric mean is one, no entry is far from it. */
static void settle(const scale_part *p, double *log_s) {
    for (int k = 0; k < SCALE_KINDS; k++) {
        if (!(p->kinds >> k & 1u)) continue;
        const int64_t at = scale_sizes_at(&p->sizes, p->kinds, k),
                      n = scale_sizes_length(&p->sizes, (scale_kind)k);
        for (int64_t j = at; j < at + n; j++) p->s[j] = exp(log_s[j]);
        scale_settle(p->s + at, n);
        for (int64_t j = at; j < at + n; j++) log_s[j] = log(p->s[j]);
    }
}

err scale_part_step(scale_part *p, double lr, double *G) {
    for (int64_t j = 0; j < p->count * p->entries; j++)
        if (!isfinite(G[j]))
            return err_make(ERR_NUMERICS, "step of scales", NULL, "a gradient is not finite");
    if (p->count) p->steps++;
    for (int64_t i = 0; i < p->count; i++) {
        const int64_t at = i * p->entries;
        if (p->kinds >> SCALE_QK & 1u)
            tie(&p->sizes, G + at + scale_sizes_at(&p->sizes, p->kinds, SCALE_QK));
        adam_step(lr, p->steps, p->entries, G + at, p->v[FIRST_MOMENT] + at,
                  p->v[SECOND_MOMENT] + at, p->v[LOG_S] + at);
        settle(p, p->v[LOG_S] + at);
    }
    return put_all(p);
}

double scale_part_condition(const scale_part *p) {
    double worst = 1;
    for (int64_t i = 0; i < p->count * SCALE_KINDS; i++) {
        const scale_vector *v =
            scale_set_get(p->set, (scale_kind)(i % SCALE_KINDS), p->first + i / SCALE_KINDS);
        double least = INFINITY, most = 0;
        for (int64_t j = 0; v && j < v->n; j++) {
            least = fmin(least, v->s[j]);
            most = fmax(most, v->s[j]);
        }
        worst = fmax(worst, most / least);
    }
    return worst;
}

static size_t array_bytes(const scale_part *p) {
    return (size_t)(p->count * p->entries) * sizeof(double);
}

void scale_part_snapshot(scale_part *p) {
    memcpy(p->v[KEPT], p->v[LOG_S], array_bytes(p));
}

void scale_part_restore(scale_part *p) {
    memcpy(p->v[LOG_S], p->v[KEPT], array_bytes(p));
    memset(p->v[FIRST_MOMENT], 0, array_bytes(p));
    memset(p->v[SECOND_MOMENT], 0, array_bytes(p));
    p->steps = 0;
    if (put_all(p).code) abort(); /* they were there before */
}

int64_t scale_part_steps_done(const scale_part *p) {
    return p->steps;
}

int64_t scale_part_state_each(const scale_sizes *sizes, uint32_t kinds) {
    return ARRAYS * scale_sizes_at(sizes, kinds, SCALE_KINDS);
}

void scale_part_state_save(const scale_part *p, const comm *c, bool give, double *out) {
    const int64_t count = give ? p->count : 0, each = ARRAYS * p->entries;
    const size_t row = (size_t)p->entries * sizeof(double);
    double *mine = malloc((size_t)(count * each + 1) * sizeof *mine);
    size_t len;
    if (!mine) abort();
    for (int64_t i = 0; i < count; i++)
        for (int k = 0; k < ARRAYS; k++)
            memcpy(mine + i * each + k * p->entries, p->v[k] + i * p->entries, row);
    void *all = comm_gather_joined(c, mine, (size_t)(count * each) * sizeof *mine, &len);
    if (all) memcpy(out, all, len);
    free(all);
    free(mine);
}

err scale_part_state_load(scale_part *p, int64_t steps, const double *in) {
    const int64_t each = ARRAYS * p->entries;
    const size_t row = (size_t)p->entries * sizeof(double);
    p->steps = p->count ? steps : 0;
    for (int64_t i = 0; i < p->count; i++)
        for (int k = 0; k < ARRAYS; k++)
            memcpy(p->v[k] + i * p->entries, in + (p->first + i) * each + k * p->entries, row);
    return put_all(p);
}
