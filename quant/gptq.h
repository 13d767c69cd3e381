/* gptq - weights to codes with the error of each column made good by the columns that follow: the
 * rounding that is least in tr((W - Q) H (W - Q)^T), one column after the other (GPTQ,
 * arXiv 2210.17323). Scales and zero points are those of rtn.h, taken from W before the loop.
 * One matrix on one process: no ranks, no files, no activations (pipeline/gptq/ has these); the
 * rows of W do not know each other, so callers may cut them over ranks. On the way: "fused weight
 * -> INT4 codes + scales".
 *
 * Three steps, each for itself: gptq_order_create (from the diagonal of H), gptq_factor (H becomes
 * U, with H^-1 = U^T U; over ranks it may be done elsewhere), gptq_rows (rows of W against panels
 * of U). All in fp64, but for the quotient that takes a code, which is the fp32 one of grid.h.
 *
 * Places. Columns are taken in an order; the column at place p is order->column[p]. H in the order,
 * damped:   Hd[p][p'] = H[column[p]][column[p']] + (p == p') * lambda,   1 + lambda on the diagonal
 * of a dead column (H_jj = 0: nothing ever arrives there). Hd = V V^T with V upper, U = V^-1 upper.
 *
 * Same bits for any number of threads, and for any cut of the rows at multiples of GPTQ_UNIT_ROWS.
 */
#ifndef SPINSHARD_QUANT_GPTQ_H
#define SPINSHARD_QUANT_GPTQ_H

#include "base/err.h"
#include "quant/rtn.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    GPTQ_UNIT_ROWS = 64,   /* rows that are worked on together: cut matrices at multiples of it */
    GPTQ_MAX_RAISES = 6,   /* times that damping is raised tenfold before giving up */
    GPTQ_MAX_TRIES = 3,    /* strengths that go through the panels together */
    GPTQ_CROSS_COLS = 512, /* columns that gptq_cross_add works on together: cut at multiples */
};

/* How to round one matrix; a value one fills in. */
typedef struct gptq_options {
    wquant how;    /* bits, group, symmetric, search, scale_type */
    int64_t block; /* columns of a lazy update; 128 */
    bool energy;   /* also fill gptq_loss.energy; half as much work again */
} gptq_options;

/* The order of the columns of one H. */
typedef struct gptq_order {
    int64_t n;
    int64_t *column;  /* [n] column at place p: an order of 0..n-1 */
    bool *dead;       /* [n] by column: H_jj = 0 */
    int64_t n_dead;   /* dead columns */
    double mean_live; /* mean of H_jj over the others; 1 where all are dead */
} gptq_order;

/* Local. The order of `diagonal` [n] (by column): with act_order largest first, ties by index; else
 * as they are. Groups stay where they are (static groups). Same result for same numbers. Caller
 * owns *out. Fails with ERR_NUMERICS where an entry is negative or not finite (`where` has the
 * column), ERR_NOFIT. */
err gptq_order_create(int64_t n, const double *diagonal, bool act_order, gptq_order **out);
void gptq_order_destroy(gptq_order **o); /* local; NULL is fine; sets NULL */

/* What was added to the diagonal. */
typedef struct gptq_damping {
    double lambda; /* damp * mean_live * 10^raises */
    int raises;    /* failures of the factorization */
} gptq_damping;

/* Local. lambda for try number `raises` (0 first): damp * mean_live * 10^raises; a damp of 0 is
 * taken as 1e-6 from the first raise on. The rule that gptq_factor follows, for factorizations
 * made elsewhere. */
double gptq_lambda(const gptq_order *o, double damp, int raises);

/* Local. H [n, n] (both triangles, by column) becomes U in the order of `o`, with zeros below the
 * diagonal. In place; scratch: n * 128 numbers a thread at most. Threads share the work. 2/3 n^3
 * flops. Where Hd is not positive definite lambda is raised and all is done again.
 * Fails with ERR_NUMERICS (NaN or infinity in H, naming the column; not positive definite after
 * GPTQ_MAX_RAISES) and ERR_NOFIT. */
err gptq_factor(const gptq_order *o, double damp, double *h, gptq_damping *done);
uint64_t gptq_factor_bytes(int64_t n); /* local; what it takes beside H, for plans */

/* Where gptq_rows finds U. get: rows [first, first + rows) of U and its columns [first, n), in
 * places, row i at *panel + i * *stride; entries below the diagonal are 0. Called for each block of
 * the order, front to back, the same calls on every rank that has the same n and block (so it may
 * be collective, also for callers without rows). The panel is borrowed until the next call.
 * An error ends gptq_rows at once with that error; where gptq_rows itself lacks memory, the panels
 * are asked for all the same. */
typedef struct gptq_panels {
    err (*get)(void *context, int64_t first, int64_t rows, const double **panel, int64_t *stride);
    void *context;
} gptq_panels;

/* A U [n, n] in memory, as gptq_factor leaves it: the simplest context of panels. */
typedef struct gptq_whole {
    const double *u;
    int64_t n;
} gptq_whole;
gptq_panels gptq_panels_of(gptq_whole *u); /* local; borrows u; for tests and benches */

/* What became of one row. Losses are those of H without damping. */
typedef struct gptq_loss {
    double rtn;     /* (w - q) H (w - q)^T of rounding to nearest with the same scales */
    double gptq;    /* of what the loop found */
    double chosen;  /* of what is in q: the smaller */
    double energy;  /* w H w^T, 0 unless asked: chosen / energy is the relative output error */
    bool fell_back; /* the loop ended above rounding to nearest, which was kept */
} gptq_loss;

/* A strength of the correction by `cross`, and what comes of it. */
typedef struct gptq_try {
    double alpha;    /* 0..1; 0: none */
    qmatrix *q;      /* created with options->how; its rows [row0, row0 + rows) are filled */
    gptq_loss *loss; /* [rows]; filled */
} gptq_try;

/* Local. Round w [rows, n] (fp32, finite, row-major), by each of up to GPTQ_MAX_TRIES strengths:
 * they all go through the panels together, and each result is as if it were alone. Columns where H
 * is dead are rounded to nearest: what never arrives in calibration may arrive later, and the
 * scales are those of the whole row. rows may be 0 (the panels are asked for all the same). Rows
 * should be cut at multiples of GPTQ_UNIT_ROWS.
 *
 * Asymmetric calibration (GPTAQ, arXiv 2504.02692, in the exact form; derivation in gptq.c): X~ are
 * the inputs that the quantized model sees, with H = c X~^T X~, and X = X~ + dX those of full
 * precision. With cross = W C, C = c dX^T X~ (same c; by column) [rows, n], the loop minimises
 * c |X~ (w - q) + alpha dX w|^2 of each row. NULL: no correction by any strength. The losses are
 * then without their constant alpha^2 c |dX w|^2: they compare with each other, and may be
 * negative. Fails with ERR_NOFIT, ERR_USAGE (as wquant_check), ERR_BUG (sizes), and with what
 * panels say. */
err gptq_rows(const gptq_options *options, const gptq_order *o, double lambda, gptq_panels panels,
              const float *w, const double *cross, int64_t rows, int64_t row0,
              const gptq_try *tries, int n_tries);

/* Local. Bytes that gptq_rows takes for its own use; 0 where they overflow. */
uint64_t gptq_rows_bytes(const gptq_options *options, int64_t rows, int64_t n, int tries,
                         bool with_cross);

/* Local. cross += W[:, first .. first + k) C_panel, C_panel [k, cols] being rows [first, first + k)
 * of C, and of its columns those from a multiple of GPTQ_CROSS_COLS on, by column. w [rows, n],
 * cross [rows, cols]. To be called for all panels of C in the same cut on all ranks; the bits do
 * not depend on how rows and columns are cut over ranks. Threads share the work. Fails with
 * ERR_NOFIT.
 */
err gptq_cross_add(const float *w, int64_t rows, int64_t n, int64_t first, int64_t k,
                   const double *c_panel, int64_t cols, double *cross);
uint64_t gptq_cross_bytes(int64_t k); /* local; what it takes, for plans */

/* Sums of the losses of a tensor, rows in order. */
typedef struct gptq_report {
    double rtn, chosen, energy;
    int64_t rows, fell_back;
} gptq_report;

/* Local. Add rows of losses to *sum, in order. */
void gptq_report_add(const gptq_loss *loss, int64_t rows, gptq_report *sum);

#endif
