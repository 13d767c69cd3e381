/* W is made into a step A (adam or the capped published step, formulas in optimizer.h), R is
 * moved by the Cayley transform, and every 100 steps one Newton-Schulz iteration R (3 I - R^T R) /
 * 2 restores orthogonality. */
#include "rotations/optimizer.h"

#include "base/mem.h"
#include "base/size.h"
#include "rotations/cayley.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

enum { PARALLEL_FROM = 65536 }; /* numbers, for element-wise work */

static const double PI = 3.14159265358979323846;
static const double BETA_2 = 0.99;

struct optimizer {
    optimizer_kind kind;
    int64_t n, count;
    double *numbers; /* steps that are done, then v, then c: as the state has them */
    double *v;       /* [count]; behind the steps */
    double *c;       /* with channels: [count, n]; behind v */
    double *M;       /* adam: [count, n, n]; else NULL */
    double *squares; /* [count] sum of W^2 of the step at hand */
    double *angles;  /* [count] |W'|_2 of the step at hand, then |A|_2; behind squares */
    double *promise; /* [count] of the step at hand; behind angles */
    double *sums;    /* [count, 2] <W, M> and <W, W'> of the step at hand; behind promise */
    double *rows;    /* with channels: [count, n] sums of W^2 of their rows; behind sums */
};

double lr_schedule_at(lr_schedule schedule, double lr, int64_t t, int64_t steps) {
    double done = steps > 0 ? (double)t / (double)steps : 0;
    if (schedule == SCHEDULE_COSINE) return lr * 0.5 * (1 + cos(PI * done));
    if (schedule == SCHEDULE_LINEAR) return lr * (1 - done);
    return lr;
}

/* Of all matrices. */
static int64_t count_channels(const optimizer *o) {
    return o->kind == OPTIMIZER_ADAM_CHANNELS ? o->count * o->n : 0;
}

static int64_t count_numbers(const optimizer *o) {
    return 1 + o->count + count_channels(o);
}

err optimizer_create(optimizer_kind kind, int64_t n, int64_t count, optimizer **out) {
    optimizer *o;
    *out = NULL;
    err e = MEM_NEW(&o, 1, "optimizer");
    if (e.code) return e;
    *o = (optimizer){.kind = kind, .n = n, .count = count};
    e = MEM_NEW(&o->numbers, count_numbers(o), "second moments of an optimizer");
    if (!e.code && optimizer_is_adam(kind))
        e = MEM_NEW(&o->M, count * n * n, "momentum of an optimizer");
    if (!e.code) e = MEM_NEW(&o->squares, 5 * count + count_channels(o), "norms of an optimizer");
    if (e.code) {
        optimizer_destroy(&o);
        return e;
    }
    o->v = o->numbers + 1;
    o->c = o->v + count;
    o->angles = o->squares + count;
    o->promise = o->angles + count;
    o->sums = o->promise + count;
    o->rows = o->sums + 2 * count;
    *out = o;
    return e;
}

void optimizer_destroy(optimizer **o) {
    if (!*o) return;
    mem_free((*o)->numbers);
    mem_free((*o)->M);
    mem_free((*o)->squares);
    mem_free(*o);
    *o = NULL;
}

double optimizer_adam_factor(double lr, int64_t step, double angle, double *v) {
    const double t = (double)step;
    *v = BETA_2 * *v + (1 - BETA_2) * angle * angle;
    double corrected = *v / (1 - pow(BETA_2, t));
    return lr / (1 - pow(OPTIMIZER_BETA_1, t + 1)) / (sqrt(corrected) + 1e-12);
}

double optimizer_bound_promise(double factor, double inner, double loss, double *promise) {
    *promise = 0;
    if (!(loss > 0)) return factor;
    *promise = factor * inner / loss;
    if (!(*promise > OPTIMIZER_PROMISE)) return factor;
    factor *= OPTIMIZER_PROMISE / *promise;
    *promise = OPTIMIZER_PROMISE;
    return factor;
}

double optimizer_sgd_factor(double lr, double norm_1) {
    return fmin(lr, 1 / (norm_1 + 1e-8));
}

double optimizer_adam_channels(int64_t n, const double *squares, double *c) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        c[i] = BETA_2 * c[i] + (1 - BETA_2) * squares[i];
        sum += c[i];
    }
    return sum / (double)n;
}

/* Entries of a line of W become those of W': `own` is c of the line, other [count] that of each
 * entry. `least` keeps channels that have no gradient from 0 / 0. */
static void even_out(double mean, double own, const double *other, int64_t count, double *W) {
    const double least = 1e-12 * mean + DBL_MIN;
#pragma omp simd
    for (int64_t i = 0; i < count; i++) W[i] *= sqrt(2 * mean / (own + least + other[i]));
}

enum { PIECE = 256 }; /* entries of a line whose W is kept beside W' */

/* One line of optimizer_adam_take; its sums are added to `sums`. */
static void take_line(const optimizer_part *p, int64_t line, double *W, double *M, double sums[2]) {
    double down = 0, squares = 0, as_it_was[PIECE];
    for (int64_t at = 0; at < p->length; at += PIECE) {
        const int64_t count = size_min(PIECE, p->length - at);
        double *even = W + at, *m = M + at;
        memcpy(as_it_was, even, (size_t)count * sizeof *even);
        if (p->of_line) even_out(p->mean, p->of_line[line], p->of_entry + at, count, even);
#pragma omp simd reduction(+ : down, squares)
        for (int64_t i = 0; i < count; i++) {
            m[i] = OPTIMIZER_BETA_1 * m[i] + (1 - OPTIMIZER_BETA_1) * even[i];
            down += as_it_was[i] * m[i];
            squares += as_it_was[i] * even[i];
        }
    }
    sums[0] += down;
    sums[1] += squares;
}

void optimizer_adam_take(const optimizer_part *p, double *W, double *M, double sums[2]) {
    enum { BLOCKS = 64 }; /* of lines, whose sums are added in their order */
    double of_block[BLOCKS][2] = {{0}};
#pragma omp parallel for schedule(dynamic) if (p->lines * p->length >= PARALLEL_FROM)
    for (int b = 0; b < BLOCKS; b++)
        for (int64_t j = p->lines * b / BLOCKS; j < p->lines * (b + 1) / BLOCKS; j++)
            take_line(p, j, W + j * p->length, M + j * p->length, of_block[b]);
    sums[0] = sums[1] = 0;
    for (int b = 0; b < BLOCKS; b++)
        for (int k = 0; k < 2; k++) sums[k] += of_block[b][k];
}

double optimizer_adam_inner(int64_t count, double inner, double squares, const double *W,
                            double *M) {
    if (inner < 0) {
#pragma omp parallel for if (count >= PARALLEL_FROM)
        for (int64_t i = 0; i < count; i++) M[i] = (1 - OPTIMIZER_BETA_1) * W[i];
        inner = (1 - OPTIMIZER_BETA_1) * squares;
    }
    return OPTIMIZER_BETA_1 * inner + (1 - OPTIMIZER_BETA_1) * squares;
}

void optimizer_adam_direct(int64_t count, double factor, const double *M, double *W) {
#pragma omp parallel for if (count >= PARALLEL_FROM)
    for (int64_t i = 0; i < count; i++)
        W[i] = factor * (OPTIMIZER_BETA_1 * M[i] + (1 - OPTIMIZER_BETA_1) * W[i]);
}

/* W becomes W', which M takes in. */
static void adam_take(optimizer *o, int64_t k, double *W) {
    optimizer_part whole = {.lines = o->n, .length = o->n};
    if (o->kind == OPTIMIZER_ADAM_CHANNELS) {
        double *c = o->c + k * o->n, *rows = o->rows + k * o->n;
        cayley_row_squares(o->n, W, rows);
        whole.mean = optimizer_adam_channels(o->n, rows, c);
        whole.of_line = whole.of_entry = c;
    }
    optimizer_adam_take(&whole, W, o->M + k * o->n * o->n, o->sums + 2 * k);
}

/* W' becomes A. */
static double adam_direction(optimizer *o, int64_t k, double lr, double loss, double *W) {
    const int64_t size = o->n * o->n;
    const double *sums = o->sums + 2 * k;
    double *M = o->M + k * size;
    double factor = optimizer_adam_factor(lr, optimizer_steps_done(o) + 1, o->angles[k], &o->v[k]);
    const double inner = optimizer_adam_inner(size, sums[0], sums[1], W, M);
    factor = optimizer_bound_promise(factor, inner, loss, &o->promise[k]);
    optimizer_adam_direct(size, factor, M, W);
    return factor;
}

/* W becomes A = alpha W; scratch [n, n]. */
static err sgd_direction(const optimizer *o, double lr, double *W, const double *R, double *scratch,
                         double *alpha) {
    err e = cayley_skew_right(o->n, W, R, scratch);
    if (e.code) return e;
    *alpha = optimizer_sgd_factor(lr, cayley_norm_1(o->n, scratch));
    for (int64_t i = 0; i < o->n * o->n; i++) W[i] *= *alpha;
    return e;
}

static err sgd_directions(const optimizer *o, double lr, double *W, const double *R,
                          double *alpha) {
    const int64_t size = o->n * o->n;
    double *scratch;
    err e = MEM_NEW(&scratch, size, "turned direction");
    for (int64_t k = 0; k < o->count && !e.code; k++)
        e = sgd_direction(o, lr, W + k * size, R + k * size, scratch, alpha);
    mem_free(scratch);
    return e;
}

static void adam_takes(optimizer *o, double *W) {
#pragma omp parallel for if (o->count > 1)
    for (int64_t k = 0; k < o->count; k++) adam_take(o, k, W + k * o->n * o->n);
}

static void adam_directions(optimizer *o, double lr, const double *loss, double *W,
                            double *factor) {
    const int64_t size = o->n * o->n, last = o->count - 1;
#pragma omp parallel for if (o->count > 1)
    for (int64_t k = 0; k < o->count; k++) {
        double f = adam_direction(o, k, lr, loss ? loss[k] : 0, W + k * size);
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
                            k, o->n, optimizer_steps_done(o));
    }
    return err_none();
}

static double largest(int64_t count, const double *x) {
    double most = 0;
    for (int64_t k = 0; k < count; k++) most = fmax(most, x[k]);
    return most;
}

/* |W|_2 of each into o->angles. One large matrix takes all threads, many small ones one each. */
static err take_angles(optimizer *o, const double *W) {
    err_first failed = {.e = err_none()};
#pragma omp parallel for if (o->count > 1)
    for (int64_t k = 0; k < o->count; k++)
        err_note(&failed, k, cayley_angle(o->n, W + k * o->n * o->n, &o->angles[k]));
    return failed.e;
}

/* W is A by now. */
static err report_step(optimizer *o, const double *W, optimizer_report *said) {
    for (int64_t k = 0; k < o->count; k++)
        said->rms_angle = fmax(said->rms_angle, cayley_sum_squares(o->n, W + k * o->n * o->n));
    said->rms_angle = sqrt(said->rms_angle / (double)o->n);
    err e = take_angles(o, W);
    said->angle = largest(o->count, o->angles);
    said->promise = largest(o->count, o->promise);
    return e;
}

static err polish_all(const optimizer *o, double *R) {
    err e = err_none();
    for (int64_t k = 0; k < o->count && !e.code; k++) e = cayley_polish(o->n, R + k * o->n * o->n);
    return e;
}

err optimizer_direct(optimizer *o, double lr, const double *loss, double *W, const double *R,
                     optimizer_report *report) {
    optimizer_report said = {0};
    err e = take_squares(o, W);
    if (e.code) return e;
    memset(o->promise, 0, (size_t)o->count * sizeof *o->promise);
    said.gradient = sqrt(largest(o->count, o->squares));
    if (optimizer_is_adam(o->kind)) {
        adam_takes(o, W);
        e = take_angles(o, W);
        if (!e.code) adam_directions(o, lr, loss, W, &said.alpha);
    } else {
        e = sgd_directions(o, lr, W, R, &said.alpha);
    }
    if (!e.code && report) e = report_step(o, W, &said);
    if (!e.code && report) *report = said;
    return e;
}

err optimizer_moved(optimizer *o, double *R) {
    return (int64_t)++o->numbers[0] % OPTIMIZER_POLISH_EVERY == 0 ? polish_all(o, R) : err_none();
}

err optimizer_step(optimizer *o, double lr, const double *loss, double *W, double *R,
                   optimizer_report *report) {
    err e = optimizer_direct(o, lr, loss, W, R, report);
    /* One large matrix takes all threads, many small ones take one each. */
    if (!e.code)
        e = o->count > 1 ? cayley_step_batch(o->n, o->count, W, R) : cayley_step(o->n, W, R);
    return e.code ? e : optimizer_moved(o, R);
}

void optimizer_forget(optimizer *o) {
    memset(o->numbers, 0, (size_t)count_numbers(o) * sizeof *o->numbers);
    if (o->M) memset(o->M, 0, (size_t)(o->count * o->n * o->n) * sizeof *o->M);
}

int64_t optimizer_steps_done(const optimizer *o) {
    return (int64_t)o->numbers[0];
}

int optimizer_state_pieces(optimizer *o, byte_piece out[OPTIMIZER_PIECES]) {
    out[0] = byte_piece_of_doubles(o->numbers, count_numbers(o));
    out[1] = byte_piece_of_doubles(o->M, o->count * o->n * o->n);
    return o->M ? 2 : 1;
}

int64_t optimizer_matrix_count(optimizer_kind kind, int64_t n) {
    if (!optimizer_is_adam(kind)) return 0;
    return 1 + (kind == OPTIMIZER_ADAM_CHANNELS ? n : 0) + n * n;
}

void optimizer_matrix_save(const optimizer *o, int64_t k, double *out) {
    const int64_t n = o->n, channels = o->kind == OPTIMIZER_ADAM_CHANNELS ? n : 0;
    if (!o->M) return;
    *out++ = o->v[k];
    memcpy(out, o->c + k * channels, (size_t)channels * sizeof *out);
    memcpy(out + channels, o->M + k * n * n, (size_t)(n * n) * sizeof *out);
}

void optimizer_matrix_load(optimizer *o, int64_t k, const double *in) {
    const int64_t n = o->n, channels = o->kind == OPTIMIZER_ADAM_CHANNELS ? n : 0;
    if (!o->M) return;
    o->v[k] = *in++;
    memcpy(o->c + k * channels, in, (size_t)channels * sizeof *in);
    memcpy(o->M + k * n * n, in + channels, (size_t)(n * n) * sizeof *in);
}

void optimizer_put_steps(optimizer *o, int64_t steps) {
    o->numbers[0] = (double)steps;
}
