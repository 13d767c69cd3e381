/* The loop over the columns, for units of rows: gptq.h's third step.
 *
 * The loop. With H^-1 = U^T U a row w is written q + e U: e_p = (w_p - q_p) / U_pp, where w_p is
 * what the columns before have left at place p, and then w -= e_p U_p. The columns behind p thereby
 * take the values that are best while q up to p stands: U_p / U_pp is the row of the inverse of H
 * restricted to the places from p on, over its first entry. And since H = U^-1 U^-T,
 * (w - q) H (w - q)^T = e e^T: the loss needs no H. That of any other q is |y|^2 with y U = w - q,
 * a triangular system, which the same loop solves in passing (y_p = rest_p / U_pp). So each row
 * brings up to three lines along: w, what rounding to nearest leaves of it, and w itself for its
 * energy.
 *
 * Lazy updates. A block of columns is done for itself, from the panel U [block, rest]; what is
 * behind the block gets one product, rest -= E U.
 *
 * Asymmetric calibration. The layer sees X~ where the model in full precision has X = X~ + dX. Its
 * output should stay X w^T, and with alpha between the two the row q sought makes
 *     J(q) = c |X~ (w - q)^T + alpha dX w^T|^2 + lambda |w - q|^2,    Hd = c X~^T X~ + lambda
 * least. Let r = w - q and C = c dX^T X~. Then J = r Hd r^T + 2 alpha (w C) r^T + alpha^2 c |dX
 * w^T|^2, and with t = (w C) U^T, completed to a square, J = |r U^-1 + alpha t|^2 + alpha^2 (c |dX
 * w^T|^2 - |t|^2) = (w' - q) Hd (w' - q)^T + constant,      w' = w + alpha t U, so the same loop on
 * w' is exact: the free columns always stand at the minimum of J given the columns fixed. The
 * published method keeps of this only the terms of columns not yet fixed. t_p needs w C from p on,
 * and t_p U only reaches places from p on, so both go with the panel: before a block, T = (w
 * C)_rest U_panel^T and the block gets + alpha T U; behind it the product takes alpha T - E where
 * it took -E. Rounding to nearest has x = alpha t + y. */
#include "quant/gptq.h"

#include "base/gemm.h"
#include "base/mem.h"
#include "base/size.h"
#include "quant/grid.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

enum {
    ROWS = GPTQ_UNIT_ROWS,
    PAIR = 2 * ROWS, /* lines of a unit: w of its rows, then what rounding to nearest leaves */
    WIDTH = 512,     /* columns of a tile of the lazy update */
    VECTOR = 8,
    VECTORS = ROWS / VECTOR,
};
typedef double vec __attribute__((vector_size(VECTOR * sizeof(double))));

/* Sums of squares of the lines of a unit. */
typedef struct unit_sums {
    double pair[PAIR], energy[ROWS], shift[ROWS];
} unit_sums;

/* The rows by one strength. */
typedef struct job {
    const gptq_options *options;
    const gptq_order *order;
    const float *w;
    qmatrix *q;
    gptq_loss *loss;
    double alpha, lambda;
    int64_t n, rows, row0, units, block;
    const double *cross; /* [units][ROWS, n], by place; borrowed; NULL: no correction */
    double *pair;        /* owned, with the numbers below; [units][PAIR, n], by place */
    double *energy;      /* [units][ROWS, n], or NULL */
    double *errors;      /* [units][block, PAIR]: alpha T - E and -Y of a block */
    double *lines;       /* [units][block, ROWS]: of the energy, or NULL */
    double *scratch;     /* a thread: T [block, ROWS], T U [block, ROWS], triangle [block, block] */
    uint8_t *codes;      /* owned, as those below; [units][n, ROWS], by place */
    float *row;          /* a thread: [n] */
    unit_sums *sums;     /* [units] */
} job;

static int64_t thread_scratch(const job *j) {
    return 2 * j->block * ROWS + j->block * j->block;
}

static int64_t live_rows(const job *j, int64_t unit) {
    return size_min(ROWS, j->rows - unit * ROWS);
}

/* Memory. */

typedef struct job_sizes {
    int64_t pair, energy, errors, lines, scratch, codes, row;
} job_sizes;

static job_sizes sizes_of(const job *j) {
    const int64_t lines = j->units * ROWS;
    const bool energy = j->options->energy;
    return (job_sizes){.pair = 2 * lines * j->n,
                       .energy = energy ? lines * j->n : 0,
                       .errors = 2 * lines * j->block,
                       .lines = energy ? lines * j->block : 0,
                       .scratch = gemm_threads() * thread_scratch(j),
                       .codes = lines * j->n,
                       .row = gemm_threads() * j->n};
}

static err take_job(job *j) {
    const job_sizes s = sizes_of(j);
    err e = MEM_NEW(&j->pair, s.pair + s.energy + s.errors + s.lines + s.scratch, "rows of GPTQ");
    if (!e.code) e = MEM_NEW(&j->codes, s.codes, "codes of GPTQ");
    if (!e.code) e = MEM_NEW(&j->row, s.row, "row of GPTQ");
    if (!e.code) e = MEM_NEW(&j->sums, j->units, "losses of GPTQ");
    if (e.code) return e;
    double *next = j->pair + s.pair;
    j->energy = s.energy ? next : NULL, next += s.energy;
    j->errors = next, next += s.errors;
    j->lines = s.lines ? next : NULL, next += s.lines;
    j->scratch = next;
    return e;
}

static void drop_job(job *j) {
    mem_free(j->pair);
    mem_free(j->codes);
    mem_free(j->row);
    mem_free(j->sums);
}

static job job_of(const gptq_options *options, int64_t rows, int64_t n) {
    return (job){.options = options,
                 .n = n,
                 .rows = rows,
                 .units = size_ceil_div(rows, ROWS),
                 .block = size_min(options->block, n)};
}

uint64_t gptq_rows_bytes(const gptq_options *options, int64_t rows, int64_t n, int tries,
                         bool with_cross) {
    const job j = job_of(options, rows, n);
    const uint64_t each = (uint64_t)tries;
    uint64_t lines, all;
    if (!size_mul((uint64_t)j.units * ROWS, (uint64_t)n, &lines) ||
        !size_mul(lines, 64 * each, &all) || all > INT64_MAX)
        return 0;
    const job_sizes s = sizes_of(&j);
    const int64_t doubles = s.pair + s.energy + s.errors + s.lines + s.scratch;
    return each * ((uint64_t)doubles * sizeof(double) + (uint64_t)s.codes +
                   (uint64_t)s.row * sizeof(float) + (uint64_t)j.units * sizeof(unit_sums)) +
           (with_cross ? lines * sizeof(double) : 0);
}

/* Start: scales, zero points and codes of rounding to nearest go to q; the lines are filled. */

static int zero_of(const qmatrix *q, int64_t row, int64_t g) {
    return q->zeros ? q->zeros[row * q->n_groups + g] : grid_middle(q->bits);
}

static double value_of(const qmatrix *q, int64_t row, int64_t column, int code) {
    const int64_t g = column / q->group;
    return (double)(code - zero_of(q, row, g)) * (double)q->scales[row * q->n_groups + g];
}

static void start_row(const job *j, int64_t unit, int64_t r, float *row) {
    const int64_t n = j->n, at = unit * ROWS + r;
    double *w = j->pair + (unit * PAIR + r) * n, *rest = w + ROWS * n;
    memcpy(row, j->w + at * n, (size_t)n * sizeof *row);
    rtn_quantize_rows(&j->options->how, row, 1, n, j->row0 + at, j->q);
    const uint8_t *codes = j->q->codes + (j->row0 + at) * n;
    for (int64_t p = 0; p < n; p++) {
        const int64_t c = j->order->column[p];
        const bool dead = j->order->dead[c];
        w[p] = (double)row[c];
        rest[p] = dead ? 0 : (double)row[c] - value_of(j->q, j->row0 + at, c, codes[c]);
        if (j->energy) j->energy[at * n + p] = dead ? 0 : (double)row[c];
    }
}

static void start(const job *j) {
#pragma omp parallel for schedule(dynamic)
    for (int64_t at = 0; at < j->rows; at++)
        start_row(j, at / ROWS, at % ROWS, j->row + gemm_thread() * j->n);
}

/* Every strength begins alike. */
static void start_as(const job *from, const job *j) {
    const size_t lines = (size_t)(j->units * ROWS * j->n) * sizeof(double);
    qmatrix_copy_rows(from->q, from->row0, j->rows, j->row0, j->q);
    memcpy(j->pair, from->pair, 2 * lines);
    if (j->energy) memcpy(j->energy, from->energy, lines);
}

/* Cross terms of the rows into the order. */
static void place_cross(const gptq_order *o, const double *cross, int64_t rows, double *placed) {
#pragma omp parallel for schedule(static)
    for (int64_t at = 0; at < rows; at++)
        for (int64_t p = 0; p < o->n; p++) placed[at * o->n + p] = cross[at * o->n + o->column[p]];
}

/* One block of one unit. */

/* A panel of U: rows [first, first + rows), columns from first on. */
typedef struct panel {
    const double *u;
    int64_t stride, first, rows;
} panel;

/* tile [p, lanes] of the block's columns of lines [lanes, n], and the triangle's columns as rows.
 */
static void load_tile(const job *j, const panel *u, const double *lines, int64_t lanes,
                      double *tile) {
    for (int64_t p = 0; p < u->rows; p++)
        for (int64_t i = 0; i < lanes; i++) tile[p * lanes + i] = lines[i * j->n + u->first + p];
}

static void load_triangle(const panel *u, double *triangle) {
    for (int64_t p = 0; p < u->rows; p++)
        for (int64_t k = 0; k <= p; k++) triangle[p * u->rows + k] = u->u[k * u->stride + p];
}

/* line = tile[p] - sum over k < p of triangle[p, k] x[k] for ROWS lanes at once; both with rows
 * `lanes` apart. One order of the sum for every lane, whatever the width of the CPU's vectors. */
static void reduce(const double *triangle, int64_t p, const double *x, int64_t lanes,
                   double *line) {
    vec sum[VECTORS];
    memcpy(sum, line, sizeof sum);
    for (int64_t k = 0; k < p; k++) {
        vec at[VECTORS];
        memcpy(at, x + k * lanes, sizeof at);
        for (int v = 0; v < VECTORS; v++) sum[v] += at[v] * triangle[k];
    }
    memcpy(line, sum, sizeof sum);
}

/* y_p = rest_p / U_pp, kept with its sign turned. */
static void solve_line(double pivot, double *line) {
    for (int64_t i = 0; i < ROWS; i++) line[i] = -line[i] / pivot;
}

static void add_squares(const double *line, const double *shift, double *sums) {
    for (int64_t i = 0; i < ROWS; i++) {
        const double v = shift ? line[i] - shift[i] : line[i];
        sums[i] += v * v;
    }
}

/* Codes of column p of the block, by the rule of grid.h, and -e in place of w. */
static void round_line(const job *j, int64_t unit, int64_t place, double pivot, double *line) {
    const qmatrix *q = j->q;
    const int64_t column = j->order->column[place], g = column / q->group;
    const int64_t live = live_rows(j, unit), row0 = j->row0 + unit * ROWS;
    const float top = (float)grid_top(q->bits);
    const bool dead = j->order->dead[column]; /* nothing reached it, nothing is owed for it */
    uint8_t *codes = j->codes + (unit * j->n + place) * ROWS;
    for (int64_t i = 0; i < live; i++) {
        const float scale = q->scales[(row0 + i) * q->n_groups + g];
        const float zero = (float)zero_of(q, row0 + i, g);
        const float code = quant_offset_code((float)line[i], scale, zero, top);
        codes[i] = (uint8_t)(int)code;
        line[i] = dead ? 0 : ((double)(code - zero) * (double)scale - line[i]) / pivot;
    }
}

/* T [block, ROWS] and its sums of squares; the block's w gets + alpha T U. */
static void shift_block(const job *j, int64_t unit, const panel *u, double *T, double *tile) {
    const double alpha = j->alpha;
    double *TU = T + j->block * ROWS;
    gemm_tile_f64(GEMM_N, GEMM_T, u->rows, ROWS, j->n - u->first, u->u, u->stride,
                  j->cross + unit * ROWS * j->n + u->first, j->n, GEMM_SET, T, ROWS);
    for (int64_t p = 0; p < u->rows; p++) add_squares(T + p * ROWS, NULL, j->sums[unit].shift);
    for (int64_t i = 0; i < u->rows * ROWS; i++) T[i] *= alpha;
    gemm_tile_f64(GEMM_T, GEMM_N, u->rows, ROWS, u->rows, u->u, u->stride, T, ROWS, GEMM_SET, TU,
                  ROWS);
    for (int64_t p = 0; p < u->rows; p++)
        for (int64_t i = 0; i < ROWS; i++) tile[p * PAIR + i] += TU[p * ROWS + i];
}

/* The triangle holds U's columns; errors are kept with their sign turned, so lines are summed. */
static void do_pair(const job *j, int64_t unit, const panel *u, const double *triangle,
                    const double *T, double *tile) {
    double *sums = j->sums[unit].pair;
    for (int64_t p = 0; p < u->rows; p++) {
        double *w = tile + p * PAIR, *rest = w + ROWS;
        const double *column = triangle + p * u->rows, pivot = column[p];
        reduce(column, p, tile, PAIR, w);
        reduce(column, p, tile + ROWS, PAIR, rest);
        round_line(j, unit, u->first + p, pivot, w);
        solve_line(pivot, rest);
        add_squares(w, NULL, sums);
        add_squares(rest, T ? T + p * ROWS : NULL, sums + ROWS);
    }
    for (int64_t p = 0; p < u->rows && T; p++)
        for (int64_t i = 0; i < ROWS; i++) tile[p * PAIR + i] += T[p * ROWS + i];
}

static void do_energy(const job *j, int64_t unit, const panel *u, const double *triangle,
                      double *tile) {
    load_tile(j, u, j->energy + unit * ROWS * j->n, ROWS, tile);
    for (int64_t p = 0; p < u->rows; p++) {
        const double *column = triangle + p * u->rows;
        reduce(column, p, tile, ROWS, tile + p * ROWS);
        solve_line(column[p], tile + p * ROWS);
        add_squares(tile + p * ROWS, NULL, j->sums[unit].energy);
    }
}

static void do_block(const job *j, int64_t unit, const panel *u) {
    double *T = j->scratch + gemm_thread() * thread_scratch(j);
    double *triangle = T + 2 * j->block * ROWS, *tile = j->errors + unit * PAIR * j->block;
    load_triangle(u, triangle);
    load_tile(j, u, j->pair + unit * PAIR * j->n, PAIR, tile);
    if (j->cross) shift_block(j, unit, u, T, tile);
    do_pair(j, unit, u, triangle, j->cross ? T : NULL, tile);
    if (j->energy) do_energy(j, unit, u, triangle, j->lines + unit * ROWS * j->block);
}

/* rest += errors U for one unit and WIDTH columns behind the block. Lines of the energy have a
 * product of their own, so that asking for them changes no code. */
static void update_tile(const job *j, int64_t unit, const panel *u, int64_t at) {
    const int64_t width = size_min(WIDTH, j->n - at);
    const double *U = u->u + (at - u->first);
    gemm_tile_f64(GEMM_T, GEMM_N, PAIR, width, u->rows, j->errors + unit * PAIR * j->block, PAIR, U,
                  u->stride, GEMM_ADD, j->pair + unit * PAIR * j->n + at, j->n);
    if (j->energy)
        gemm_tile_f64(GEMM_T, GEMM_N, ROWS, width, u->rows, j->lines + unit * ROWS * j->block, ROWS,
                      U, u->stride, GEMM_ADD, j->energy + unit * ROWS * j->n + at, j->n);
}

static void do_panel(const job *j, const panel *u) {
    const int64_t next = u->first + u->rows, tiles = size_ceil_div(j->n - next, WIDTH);
#pragma omp parallel
    {
#pragma omp for schedule(dynamic)
        for (int64_t unit = 0; unit < j->units; unit++) do_block(j, unit, u);
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < j->units * tiles; t++)
            update_tile(j, t % j->units, u, next + t / j->units * WIDTH);
    }
}

/* End: losses without damping, and the codes of the better of the two. */

/* |w - q|^2 over columns that are not dead. */
static double distance(const job *j, int64_t at, const uint8_t *codes, int64_t step) {
    double sum = 0;
    for (int64_t p = 0; p < j->n; p++) {
        const int64_t c = j->order->column[p];
        const double d = (double)j->w[at * j->n + c] -
                         value_of(j->q, j->row0 + at, c, codes[step ? p * step : c]);
        if (!j->order->dead[c]) sum += d * d;
    }
    return sum;
}

static double size_of_row(const job *j, int64_t at) {
    double sum = 0;
    for (int64_t c = 0; c < j->n; c++) {
        const double w = (double)j->w[at * j->n + c];
        if (!j->order->dead[c]) sum += w * w;
    }
    return sum;
}

static void finish_row(const job *j, int64_t at) {
    gptq_loss *loss = j->loss + at;
    const int64_t unit = at / ROWS, r = at % ROWS;
    const unit_sums *s = &j->sums[unit];
    const double shift = j->cross ? j->alpha * j->alpha * s->shift[r] : 0;
    uint8_t *chosen = j->q->codes + (j->row0 + at) * j->n;
    const uint8_t *found = j->codes + unit * j->n * ROWS + r;
    loss->rtn = s->pair[ROWS + r] - shift - j->lambda * distance(j, at, chosen, 0);
    loss->gptq = s->pair[r] - shift - j->lambda * distance(j, at, found, ROWS);
    loss->fell_back = !(loss->gptq <= loss->rtn);
    loss->chosen = loss->fell_back ? loss->rtn : loss->gptq;
    loss->energy = j->energy ? s->energy[r] - j->lambda * size_of_row(j, at) : 0;
    for (int64_t p = 0; p < j->n && !loss->fell_back; p++)
        chosen[j->order->column[p]] = found[p * ROWS];
}

/* Each panel is had once and goes through all strengths. */
static err run(const job *jobs, int n_jobs, gptq_panels panels) {
    const int64_t n = jobs->n;
    start(jobs);
    for (int i = 1; i < n_jobs; i++) start_as(jobs, &jobs[i]);
    for (int64_t first = 0; first < n; first += jobs->block) {
        panel u = {.first = first, .rows = size_min(jobs->block, n - first)};
        err e = panels.get(panels.context, first, u.rows, &u.u, &u.stride);
        if (e.code) return e;
        for (int i = 0; i < n_jobs; i++) do_panel(&jobs[i], &u);
    }
    for (int i = 0; i < n_jobs; i++) {
#pragma omp parallel for schedule(dynamic, 16)
        for (int64_t at = 0; at < jobs->rows; at++) finish_row(&jobs[i], at);
    }
    return err_none();
}

/* What this caller cannot use is asked for all the same: other ranks may wait for it. */
static void pass_panels(gptq_panels panels, int64_t n, int64_t block) {
    err e = err_none();
    for (int64_t first = 0; first < n && !e.code; first += block) {
        panel u;
        e = panels.get(panels.context, first, size_min(block, n - first), &u.u, &u.stride);
    }
}

static err check(const gptq_options *options, const gptq_order *o, int64_t rows, int64_t row0,
                 const qmatrix *q) {
    const wquant *how = &options->how;
    err e = wquant_check(how, q->rows, o->n);
    if (e.code) return e;
    if (q->cols != o->n || rows < 0 || row0 < 0 || row0 + rows > q->rows || options->block < 1 ||
        q->bits != how->bits || q->group != wquant_group(how, o->n) ||
        q->symmetric != how->symmetric)
        return err_make(ERR_BUG, "GPTQ", NULL,
                        "rows %" PRId64 " to %" PRId64 " of a matrix [%" PRId64 ", %" PRId64
                        "] with a Hessian of order %" PRId64,
                        row0, row0 + rows, q->rows, q->cols, o->n);
    return e;
}

/* cross: by column, or NULL; *placed: by place, which the caller frees. */
static err take_jobs(job *jobs, int n_jobs, const double *cross, double **placed) {
    const job *j = jobs;
    bool corrects = false;
    err e = err_none();
    for (int i = 0; i < n_jobs; i++) corrects = corrects || jobs[i].alpha > 0;
    if (cross && corrects && j->rows > 0)
        e = MEM_NEW(placed, j->units * ROWS * j->n, "cross terms of GPTQ");
    if (!e.code && *placed) place_cross(j->order, cross, j->rows, *placed);
    for (int i = 0; i < n_jobs && !e.code; i++) {
        if (jobs[i].alpha > 0) jobs[i].cross = *placed;
        e = take_job(&jobs[i]);
    }
    return e;
}

err gptq_rows(const gptq_options *options, const gptq_order *o, double lambda, gptq_panels panels,
              const float *w, const double *cross, int64_t rows, int64_t row0,
              const gptq_try *tries, int n_tries) {
    job jobs[GPTQ_MAX_TRIES];
    double *placed = NULL;
    err e = n_tries > 0 && n_tries <= GPTQ_MAX_TRIES
                ? err_none()
                : err_make(ERR_BUG, "GPTQ", NULL, "%d strengths at a time", n_tries);
    for (int i = 0; i < n_tries && !e.code; i++) {
        e = check(options, o, rows, row0, tries[i].q);
        jobs[i] = job_of(options, rows, o->n);
        jobs[i].order = o, jobs[i].w = w, jobs[i].lambda = lambda, jobs[i].row0 = row0;
        jobs[i].alpha = tries[i].alpha, jobs[i].q = tries[i].q, jobs[i].loss = tries[i].loss;
    }
    if (e.code) return e;
    e = take_jobs(jobs, n_tries, cross, &placed);
    if (e.code)
        pass_panels(panels, o->n, jobs->block);
    else
        e = run(jobs, n_tries, panels);
    for (int i = 0; i < n_tries; i++) drop_job(&jobs[i]);
    mem_free(placed);
    return e;
}

/* Products with the cross moment, and sums. */

uint64_t gptq_cross_bytes(int64_t k) {
    return (uint64_t)(gemm_threads() * ROWS * k) * sizeof(double);
}

err gptq_cross_add(const float *w, int64_t rows, int64_t n, int64_t first, int64_t k,
                   const double *c_panel, int64_t cols, double *cross) {
    const int64_t units = size_ceil_div(rows, ROWS), tiles = size_ceil_div(cols, GPTQ_CROSS_COLS);
    double *wide; /* rows of W of a thread, as the product takes them */
    err e = MEM_NEW(&wide, gemm_threads() * ROWS * k, "weights of GPTQ");
    if (e.code) return e;
#pragma omp parallel for schedule(dynamic)
    for (int64_t t = 0; t < units * tiles; t++) {
        const int64_t row = t % units * ROWS, at = t / units * GPTQ_CROSS_COLS,
                      own = size_min(ROWS, rows - row);
        double *rows_of_w = wide + gemm_thread() * ROWS * k;
        for (int64_t i = 0; i < own; i++)
            for (int64_t d = 0; d < k; d++)
                rows_of_w[i * k + d] = (double)w[(row + i) * n + first + d];
        gemm_tile_f64(GEMM_N, GEMM_N, own, size_min(GPTQ_CROSS_COLS, cols - at), k, rows_of_w, k,
                      c_panel + at, cols, GEMM_ADD, cross + row * cols + at, cols);
    }
    mem_free(wide);
    return e;
}

void gptq_report_add(const gptq_loss *loss, int64_t rows, gptq_report *sum) {
    for (int64_t i = 0; i < rows; i++) {
        sum->rtn += loss[i].rtn;
        sum->chosen += loss[i].chosen;
        sum->energy += loss[i].energy;
        sum->fell_back += loss[i].fell_back;
    }
    sum->rows += rows;
}
