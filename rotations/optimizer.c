/* W is turned into a step A (adam or the capped published step, formulas in optimizer.h), R is
 * moved by the Cayley transform, and every 100 steps one Newton-Schulz iteration R (3 I - R^T R) /
 * 2 restores orthogonality. */
#include "rotations/optimizer.h"

#include "base/mem.h"
#include "base/size.h"
#include "rotations/cayley.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

enum { PARALLEL_FROM = 65536 }; /* numbers, for element-wise work */

static const double PI = 3.14159265358979323846;
static const double BETA_2 = 0.99;

struct optimizer {
    optimizer_kind kind;
    int64_t n, count, steps;
    double *v;       /* [count] */
    double *M;       /* adam: [count, n, n]; else NULL */
    double *squares; /* [count] sum of W^2 of the step at hand */
};

double lr_schedule_at(lr_schedule schedule, double lr, int64_t t, int64_t steps) {
    double done = steps > 0 ? (double)t / (double)steps : 0;
    if (schedule == SCHEDULE_COSINE) return lr * 0.5 * (1 + cos(PI * done));
    if (schedule == SCHEDULE_LINEAR) return lr * (1 - done);
    return lr;
}

err optimizer_create(optimizer_kind kind, int64_t n, int64_t count, optimizer **out) {
    void *body, *v = NULL, *M = NULL, *squares = NULL;
    *out = NULL;
    err e = mem_alloc(1, sizeof(optimizer), "optimizer", &body);
    if (e.code) return e;
    e = mem_alloc(count, sizeof(double), "second moments of an optimizer", &v);
    if (!e.code && kind == OPTIMIZER_ADAM)
        e = mem_alloc(count * n * n, sizeof(double), "momentum of an optimizer", &M);
    if (!e.code) e = mem_alloc(count, sizeof(double), "norms of an optimizer", &squares);
    *out = body;
    **out = (optimizer){.kind = kind, .n = n, .count = count, .v = v, .M = M, .squares = squares};
    if (e.code) optimizer_destroy(out);
    return e;
}

void optimizer_destroy(optimizer **o) {
    if (!*o) return;
    mem_free((*o)->v);
    mem_free((*o)->M);
    mem_free((*o)->squares);
    mem_free(*o);
    *o = NULL;
}

double optimizer_adam_factor(double lr, int64_t step, double sum_squares, int64_t n, double *v) {
    double mean = sum_squares / ((double)n * (double)n), t = (double)step;
    *v = BETA_2 * *v + (1 - BETA_2) * mean;
    double corrected = *v / (1 - pow(BETA_2, t));
    return lr / (1 - pow(OPTIMIZER_BETA_1, t)) / (sqrt(corrected) + 1e-12);
}

double optimizer_sgd_factor(double lr, double norm_1) {
    return fmin(lr, 1 / (norm_1 + 1e-8));
}

/* W becomes A = factor M, after M took W in. */
static double adam_direction(optimizer *o, int64_t k, double lr, double *W) {
    const int64_t size = o->n * o->n;
    double *M = o->M + k * size;
    double factor = optimizer_adam_factor(lr, o->steps + 1, o->squares[k], o->n, &o->v[k]);
#pragma omp parallel for if (size >= PARALLEL_FROM)
    for (int64_t i = 0; i < size; i++) {
        M[i] = OPTIMIZER_BETA_1 * M[i] + (1 - OPTIMIZER_BETA_1) * W[i];
        W[i] = factor * M[i];
    }
    return factor;
}

/* W becomes A = alpha W; scratch [n, n]. */
static err sgd_direction(const optimizer *o, double lr, double *W, const double *R, double *scratch,
                         double *alpha) {
    err e = cayley_turn(o->n, W, R, scratch);
    if (e.code) return e;
    *alpha = optimizer_sgd_factor(lr, cayley_norm_1(o->n, scratch));
    for (int64_t i = 0; i < o->n * o->n; i++) W[i] *= *alpha;
    return e;
}

static err sgd_directions(const optimizer *o, double lr, double *W, const double *R,
                          double *alpha) {
    const int64_t size = o->n * o->n;
    void *scratch;
    err e = mem_alloc(size, sizeof(double), "turned direction", &scratch);
    for (int64_t k = 0; k < o->count && !e.code; k++)
        e = sgd_direction(o, lr, W + k * size, R + k * size, scratch, alpha);
    mem_free(scratch);
    return e;
}

static void adam_directions(optimizer *o, double lr, double *W, double *factor) {
    const int64_t size = o->n * o->n, last = o->count - 1;
#pragma omp parallel for if (o->count > 1)
    for (int64_t k = 0; k < o->count; k++) {
        double f = adam_direction(o, k, lr, W + k * size);
        if (k == last) *factor = f;
    }
}

/* One pass over each W: a sum of squares is not finite where an entry is not. */
static err take_squares(optimizer *o, const double *W) {
    const int64_t size = o->n * o->n;
    for (int64_t k = 0; k < o->count; k++) {
        o->squares[k] = cayley_sum_squares(o->n, W + k * size);
        if (!isfinite(o->squares[k]) && !cayley_finite(size, W + k * size))
            return err_make(ERR_NUMERICS, "optimizer", "use a smaller learning rate",
                            "gradient of matrix %" PRId64 " (order %" PRId64 ") at step %" PRId64
                            " holds NaN or infinity",
                            k, o->n, o->steps);
    }
    return err_none();
}

static double largest_norm(const optimizer *o) {
    double most = 0;
    for (int64_t k = 0; k < o->count; k++) most = fmax(most, o->squares[k]);
    return sqrt(most);
}

static double largest_step(const optimizer *o, const double *A) {
    double most = 0;
    for (int64_t k = 0; k < o->count; k++)
        most = fmax(most, cayley_sum_squares(o->n, A + k * o->n * o->n));
    return sqrt(most);
}

static err polish_all(const optimizer *o, double *R) {
    err e = err_none();
    for (int64_t k = 0; k < o->count && !e.code; k++) e = cayley_polish(o->n, R + k * o->n * o->n);
    return e;
}

err optimizer_direct(optimizer *o, double lr, double *W, const double *R,
                     optimizer_report *report) {
    const int64_t n = o->n;
    optimizer_report said = {0};
    err e = take_squares(o, W);
    if (e.code) return e;
    said.gradient = largest_norm(o);
    if (o->kind == OPTIMIZER_ADAM)
        adam_directions(o, lr, W, &said.alpha);
    else
        e = sgd_directions(o, lr, W, R, &said.alpha);
    said.angle_rms = largest_step(o, W) / (double)n;
    said.angle_turn = said.angle_rms * sqrt((double)n);
    if (!e.code && report) *report = said;
    return e;
}

err optimizer_moved(optimizer *o, double *R) {
    return ++o->steps % OPTIMIZER_POLISH_EVERY == 0 ? polish_all(o, R) : err_none();
}

err optimizer_step(optimizer *o, double lr, double *W, double *R, optimizer_report *report) {
    optimizer_report said;
    err e = optimizer_direct(o, lr, W, R, &said);
    /* One large matrix takes all threads, many small ones take one each. */
    if (!e.code)
        e = o->count > 1 ? cayley_step_batch(o->n, o->count, W, R) : cayley_step(o->n, W, R);
    if (!e.code) e = optimizer_moved(o, R);
    if (!e.code && report) *report = said;
    return e;
}

int64_t optimizer_steps_done(const optimizer *o) {
    return o->steps;
}

int64_t optimizer_state_count(const optimizer *o) {
    return 1 + o->count + (o->M ? o->count * o->n * o->n : 0);
}

void optimizer_state_save(const optimizer *o, double *out) {
    out[0] = (double)o->steps;
    memcpy(out + 1, o->v, (size_t)o->count * sizeof *out);
    if (o->M) memcpy(out + 1 + o->count, o->M, (size_t)(o->count * o->n * o->n) * sizeof *out);
}

void optimizer_state_load(optimizer *o, const double *in) {
    o->steps = (int64_t)in[0];
    memcpy(o->v, in + 1, (size_t)o->count * sizeof *in);
    if (o->M) memcpy(o->M, in + 1 + o->count, (size_t)(o->count * o->n * o->n) * sizeof *in);
}
