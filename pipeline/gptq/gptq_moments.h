/* gptq_moments - second moments of the inputs of linears over all windows and ranks: the Hessian
 * H = 2/N X^T X (N tokens) of GPTQ, and C = 2/N (X_full - X)^T X of GPTAQ. Products of one window
 * are bf16 factors (exact in fp32) with fp32 sums; windows are added as integers, so the sums are
 * exact and the same for any number of ranks and threads. Row by row of panels: no rank ever holds
 * a whole moment of a large order. Not the factorization (quant/gptq.h,
 * pipeline/gptq/hessian_factor.h).
 *
 * The exponent of the integers: no entry of X^T X of a window is above its largest diagonal entry
 * (Cauchy, Schwarz), and those are found first, with the order of the columns that GPTQ wants. */
#ifndef SPINSHARD_PIPELINE_GPTQ_GPTQ_MOMENTS_H
#define SPINSHARD_PIPELINE_GPTQ_GPTQ_MOMENTS_H

#include "mpi/grid_shape.h"
#include "pipeline/gptq/gptq_windows.h"

#include <stdbool.h>

/* Where strengths of GPTAQ are compared, windows 7, 15, 23 and so on (every eighth, counted from 0)
 * are held out: they do not enter the sums, and the outputs are compared on them. */
enum { GPTQ_HOLD_OUT = 8 };

/* Which windows, and what is known of their inputs after gptq_moments_diagonal. */
typedef struct gptq_moments {
    const comm *c;         /* borrowed */
    gptq_windows *windows; /* borrowed */
    const char *what;      /* borrowed; names the tensor whose inputs are at hand */
    int64_t n;             /* width of the inputs at hand */
    bool hold_out;         /* leave out the windows that are held out */
    int exponent;
    double factor; /* 2/N */
    void *sum;     /* owned; int64, see gptq_moments_panel */
    bf16 *left;    /* owned; transposed inputs of some windows */
    char *tiles;   /* owned; of each thread: a factor as the kernel takes it, and a product */
    int64_t sum_room, left_room, tiles_room;
} gptq_moments;

void gptq_moments_clear(gptq_moments *m); /* local */
/* Local. Give back the buffers, which the next gptq_moments_diagonal takes anew. */
void gptq_moments_drop(gptq_moments *m);

/* Local. True for a window that enters the sums. */
bool gptq_moments_takes(const gptq_moments *m, int64_t number);

/* Collective. The diagonal of H [n] on every rank, for inputs [length, n] of stream GPTQ_QUANTIZED;
 * sets exponent and factor. `what` names the tensor, here and later; borrowed. Fails, agreed, with
 * ERR_NUMERICS naming the window whose inputs hold NaN or infinity, ERR_NOFIT. */
err gptq_moments_diagonal(gptq_moments *m, int64_t n, const char *what, double *diagonal);

/* Number of rows of a panel for inputs of width n. It depends on n alone. */
int64_t gptq_moments_panel_rows(int64_t n); /* local */

/* Local. Permute the columns of the stored inputs (stream GPTQ_QUANTIZED): column order[k] moves to
 * place k; with `inverse`, the inverse permutation. Later sums are in the new order. Fails with
 * ERR_NOFIT, ERR_INPUT, ERR_SPACE. */
err gptq_moments_arrange(gptq_moments *m, const int64_t *order, bool inverse);

/* Collective. Rows [first, first + rows) of H, columns [first, n), as integers of 2^exponent
 * [rows, n - first] in *v, summed over all ranks; at `root` alone, or on every rank
 * (root -1). Entries left of the diagonal are undefined, since H is symmetric. Multiplied by
 * `factor` the numbers are H. Borrowed until the next call. */
err gptq_moments_panel(gptq_moments *m, int64_t first, int64_t rows, int root, int64_t **v);

/* Collective. As gptq_moments_panel, but each rank gets only its blocks of the rows, for a grid of
 * at most as many cells as there are ranks: block (b, c) stands at the cell of row c mod grid.rows
 * and column b mod grid.cols, as that of its transpose in a dmat (mpi/dmat.h). For its block
 * columns, rising, the rows of its block rows, rising, each row of the block's own width. `first`
 * is a multiple of DMAT_BLOCK. Blocks left of the diagonal have their place in the array, and their
 * entries are undefined. */
err gptq_moments_cells(gptq_moments *m, int64_t first, int64_t rows, grid_shape grid, int64_t **v);

/* Local. First column of C that comes to a rank: equal shares of whole units, in rank order. */
int64_t gptq_moments_column(int64_t n, int ranks, int rank);

/* Collective. Rows [first, first + rows) of C, of which each rank gets its own columns, as integers
 * [rows, own columns] as gptq_moments_panel has them. Fails, agreed, with
 * ERR_NUMERICS where an input of stream GPTQ_FULL is not finite (its window is named) or the
 * streams are too far apart for the exponent. */
err gptq_moments_cross(gptq_moments *m, int64_t first, int64_t rows, int64_t **v);

/* Local. Bytes of its buffers for inputs of width n, in memory or in files. */
uint64_t gptq_moments_bytes(int64_t n, int64_t length, bool in_memory);

#endif
