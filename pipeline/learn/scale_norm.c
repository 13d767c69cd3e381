/* u = x R is computed once for a site; each Adam step finds the ends of every row of u / s and
 * differentiates the objective at those two entries and through the mean of s^2 t. */
#include "pipeline/learn/scale_norm.h"

#include "base/gemm.h"
#include "base/mem.h"
#include "base/size.h"
#include "pipeline/learn/adam.h"
#include "pipeline/learn/scale_closed.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PANEL = 256 }; /* rows rotated at a time */

struct scale_norm {
    int64_t n, rows, max_rows, max_groups;
    int64_t group, groups; /* of a row, as the rule says */
    range_rule rule;
    const float *w;                   /* of the rows; borrowed */
    float *u;                         /* [max_rows, n] x R */
    float *wide;                      /* [PANEL, n] */
    float *rotated;                   /* [PANEL, n] */
    float *inverse;                   /* [n] */
    float *y;                         /* [threads, n] */
    range_ends *ends;                 /* [max_rows, max_groups] */
    double *t;                        /* [n] E[(gR)_j^2], mean 1 */
    double *noise, *felt;             /* [max_groups] sums of the objective */
    double *log_s, *gradient, *m, *v; /* [n] of learning */
};

uint64_t scale_norm_bytes(int64_t n, int64_t max_rows, int64_t groups) {
    return (uint64_t)(max_rows * n + (2 * PANEL + 1 + gemm_threads()) * n) * sizeof(float) +
           (uint64_t)(max_rows * groups) * sizeof(range_ends) +
           (uint64_t)(5 * n + 2 * groups) * sizeof(double);
}

static err take_room(scale_norm *s) {
    const char *what = "scales of norms";
    const int64_t n = s->n, groups = s->max_groups;
    err e = MEM_NEW(&s->u, s->max_rows * n, what);
    if (!e.code) e = MEM_NEW(&s->wide, PANEL * n, what);
    if (!e.code) e = MEM_NEW(&s->rotated, PANEL * n, what);
    if (!e.code) e = MEM_NEW(&s->inverse, n, what);
    if (!e.code) e = MEM_NEW(&s->y, gemm_threads() * n, what);
    if (!e.code) e = MEM_NEW(&s->ends, s->max_rows * groups, what);
    double **of_row[] = {&s->t, &s->log_s, &s->gradient, &s->m, &s->v};
    for (size_t i = 0; i < sizeof of_row / sizeof *of_row && !e.code; i++)
        e = MEM_NEW(of_row[i], n, what);
    if (!e.code) e = MEM_NEW(&s->noise, groups, what);
    if (!e.code) e = MEM_NEW(&s->felt, groups, what);
    return e;
}

err scale_norm_create(int64_t n, int64_t max_rows, int64_t groups, scale_norm **out) {
    scale_norm *s;
    *out = NULL;
    err e = MEM_NEW(&s, 1, "scales of norms");
    if (e.code) return e;
    *s = (scale_norm){.n = n, .max_rows = max_rows, .max_groups = groups};
    e = take_room(s);
    if (e.code) scale_norm_destroy(&s);
    *out = s;
    return e;
}

void scale_norm_destroy(scale_norm **s) {
    if (!*s) return;
    scale_norm *x = *s;
    void *all[] = {x->u,     x->wide,     x->rotated, x->inverse, x->y,     x->ends, x->t,
                   x->log_s, x->gradient, x->m,       x->v,       x->noise, x->felt};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) mem_free(all[i]);
    mem_free(x);
    *s = NULL;
}

/* Rows i0 .. i0 + m of bf16 rows times R, into `to`. */
static void rotate_rows(scale_norm *s, const bf16 *from, int64_t m, const float *R, float *to) {
    const int64_t n = s->n;
    half_array_from_bf16(from, m * n, R ? s->wide : to);
    if (R) gemm_f32(GEMM_N, GEMM_N, m, n, n, s->wide, n, R, n, GEMM_SET, to, n);
}

void scale_norm_take(scale_norm *s, const row_set *rows, const float *R, range_rule rule) {
    const int64_t n = s->n;
    double sum = 0;
    s->rows = size_min(rows->n, s->max_rows);
    s->rule = rule;
    s->rule.group = 0; /* ranges are cut here */
    s->group = rule.group ? rule.group : n;
    s->groups = n / s->group;
    if (s->groups > s->max_groups) abort();
    s->w = rows->w;
    memset(s->t, 0, (size_t)n * sizeof *s->t);
    for (int64_t i0 = 0; i0 < s->rows; i0 += PANEL) {
        const int64_t m = size_min(PANEL, s->rows - i0);
        rotate_rows(s, rows->x + i0 * n, m, R, s->u + i0 * n);
        rotate_rows(s, rows->g + i0 * n, m, R, s->rotated);
#pragma omp parallel for schedule(static)
        for (int64_t j = 0; j < n; j++) {
            for (int64_t i = 0; i < m; i++) {
                const double g = s->rotated[i * n + j];
                s->t[j] += g * g;
            }
        }
    }
    for (int64_t j = 0; j < n; j++) sum += s->t[j];
    for (int64_t j = 0; j < n; j++) s->t[j] = sum > 0 ? s->t[j] * (double)n / sum : 1;
}

/* Ends of all rows of u / s; each row by itself. */
static void find_ends(scale_norm *s, const double *log_s) {
    const int64_t n = s->n;
    for (int64_t j = 0; j < n; j++) s->inverse[j] = (float)exp(-log_s[j]);
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < s->rows; r++) {
        float *y = s->y + gemm_thread() * n;
        const float *u = s->u + r * n;
#pragma omp simd
        for (int64_t j = 0; j < n; j++) y[j] = u[j] * s->inverse[j];
        for (int64_t g = 0; g < s->groups; g++)
            s->ends[r * s->groups + g] = range_ends_of(y + g * s->group, s->group, s->rule);
    }
}

/* The noise of each group, and what is felt of it, without the factor that they share. Rows are
 * summed in their order. */
static double sum_groups(scale_norm *s, const double *log_s) {
    double total = 0;
    for (int64_t g = 0; g < s->groups; g++) {
        s->noise[g] = s->felt[g] = 0;
        for (int64_t r = 0; r < s->rows; r++) {
            const double range = s->ends[r * s->groups + g].range;
            s->noise[g] += (double)s->w[r] * range * range;
        }
        for (int64_t j = g * s->group; j < (g + 1) * s->group; j++)
            s->felt[g] += exp(2 * log_s[j]) * s->t[j];
        total += s->noise[g] * s->felt[g];
    }
    return total;
}

/* d log (noise felt) / d log s_j for the channels of a group: d range / d log s_j = -sign y_j at
 * the ends of a range. */
static void add_gradient(const scale_norm *s, int64_t g, const double *log_s, double *gradient) {
    const int64_t n = s->n, first = g * s->group;
    for (int64_t j = first; j < first + s->group; j++)
        gradient[j] = 2 * exp(2 * log_s[j]) * s->t[j] / s->felt[g];
    for (int64_t r = 0; s->noise[g] > 0 && r < s->rows; r++) {
        const range_ends *e = &s->ends[r * s->groups + g];
        for (int k = 0; k < 2; k++) {
            if (e->channel[k] < 0) continue;
            const int64_t j = first + e->channel[k];
            const double y = (double)(s->u[r * n + j] * s->inverse[j]);
            gradient[j] -= 2 * (double)s->w[r] * (double)e->range * e->sign[k] * y / s->noise[g];
        }
    }
}

double scale_norm_objective(scale_norm *s, const double *log_s, double *gradient) {
    const int64_t n = s->n;
    find_ends(s, log_s);
    const double total = sum_groups(s, log_s);
    for (int64_t g = 0; gradient && g < s->groups; g++) {
        const double share = total > 0 ? s->noise[g] * s->felt[g] / total : 1;
        add_gradient(s, g, log_s, gradient);
        for (int64_t j = g * s->group; j < (g + 1) * s->group; j++) gradient[j] *= share;
    }
    if (s->groups > 1) return total > 0 ? log(total / (double)s->rows / (double)n) : 0;
    return (s->noise[0] > 0 ? log(s->noise[0] / (double)s->rows) : 0) + log(s->felt[0] / (double)n);
}

void scale_norm_learn(scale_norm *s, int steps, double rate, double *scale, double *before,
                      double *after) {
    const int64_t n = s->n;
    memset(s->log_s, 0, (size_t)n * sizeof *s->log_s);
    memset(s->m, 0, (size_t)n * sizeof *s->m);
    memset(s->v, 0, (size_t)n * sizeof *s->v);
    for (int i = 0; i < steps; i++) {
        const double value = scale_norm_objective(s, s->log_s, s->gradient);
        if (i == 0) *before = value;
        adam_step(rate, i + 1, n, s->gradient, s->m, s->v, s->log_s);
    }
    *after = scale_norm_objective(s, s->log_s, NULL);
    for (int64_t j = 0; j < n; j++) scale[j] = exp(s->log_s[j]);
    scale_settle(scale, n);
}
