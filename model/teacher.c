/* The best k of a row by Hoare's quickselect on at most 2 k candidates, whenever so many are there.
 */
#include "model/teacher.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

static bool better(candidate a, candidate b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

/* The k best to the front (Hoare's quickselect); no two are equal, so the set is one. */
static void select_best(candidate *c, int64_t n, int64_t k) {
    int64_t lo = 0, hi = n - 1;
    while (lo < hi) {
        const candidate pivot = c[lo + (hi - lo) / 2];
        int64_t i = lo, j = hi;
        while (i <= j) {
            while (better(c[i], pivot)) i++;
            while (better(pivot, c[j])) j--;
            if (i > j) break;
            const candidate t = c[i];
            c[i++] = c[j];
            c[j--] = t;
        }
        if (k - 1 <= j)
            hi = j;
        else if (k - 1 >= i)
            lo = i;
        else
            return;
    }
}

static int by_id(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

void teacher_add(teacher_rows *t, int64_t i, int64_t k, double logit, int64_t id) {
    candidate *c = t->c + i * 2 * k;
    c[t->count[i]++] = (candidate){logit, (int32_t)id};
    if (t->count[i] < 2 * k) return;
    select_best(c, 2 * k, k);
    t->count[i] = k;
    t->worst[i] = c[0].logit;
    for (int64_t j = 1; j < k; j++) t->worst[i] = fmin(t->worst[i], c[j].logit);
}

void teacher_take(teacher_rows *t, int64_t i, int64_t k, int32_t *token, float *log_p) {
    candidate *c = t->c + i * 2 * k;
    const double lse = t->max[i] + log(t->total[i]);
    select_best(c, t->count[i], k);
    qsort(c, (size_t)k, sizeof *c, by_id);
    for (int64_t j = 0; j < k; j++) {
        token[j] = c[j].id;
        log_p[j] = (float)(c[j].logit - lse);
    }
}
