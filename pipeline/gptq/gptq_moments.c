/* Inputs of a group of windows are transposed once; tiles of X^T X are made with bf16 factors,
 * scaled to integers and added to a panel while it is in cache; panels are then summed over ranks.
 */
#include "pipeline/gptq/gptq_moments.h"

#include "base/gemm.h"
#include "base/mem.h"
#include "base/size.h"
#include "mpi/dmat.h"
#include "pipeline/fixed_sum.h"
#include "quant/gptq.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Rows of a panel; columns of the diagonal at a time; tokens that are transposed at a time; windows
 * of which a panel's products are added while its integers are in cache. */
enum { PANEL = 1024, STRIPE = 128, TRANSPOSE_TILE = 64, GROUP = 8 };

/* Products are cut into tiles of these rows and columns. */
enum { TILE_ROWS = 256, TILE_COLS = 256 };
_Static_assert(PANEL % DMAT_BLOCK == 0 && TILE_ROWS % DMAT_BLOCK == 0 &&
                   TILE_COLS % DMAT_BLOCK == 0,
               "panels and tiles are whole blocks of a grid");
_Static_assert(GPTQ_CROSS_COLS % TILE_COLS == 0, "columns that are dealt are whole tiles");

void gptq_moments_drop(gptq_moments *m) {
    mem_free(m->sum);
    mem_free(m->left);
    mem_free(m->tiles);
    m->sum = m->left = NULL;
    m->tiles = NULL;
    m->sum_room = m->left_room = m->tiles_room = 0;
}

void gptq_moments_clear(gptq_moments *m) {
    gptq_moments_drop(m);
    *m = (gptq_moments){.c = NULL};
}

bool gptq_moments_takes(const gptq_moments *m, int64_t number) {
    return !m->hold_out || number % GPTQ_HOLD_OUT != GPTQ_HOLD_OUT - 1;
}

int64_t gptq_moments_panel_rows(int64_t n) {
    return size_min(n, PANEL);
}

/* A factor of so many tokens as the kernel takes it, then the product; of one thread. */
static uint64_t packed_bytes(int64_t length) {
    return (gemm_packed_bytes(TILE_ROWS, TILE_COLS, length) + 63) / 64 * 64;
}

static uint64_t tile_bytes(int64_t length) {
    return packed_bytes(length) + TILE_ROWS * TILE_COLS * sizeof(float);
}

/* Windows whose transposed rows are held at a time: as many as the integers in cache are worth, one
 * where each comes from a file. */
static int64_t group_of(bool in_memory) {
    return in_memory ? GROUP : 1;
}

uint64_t gptq_moments_bytes(int64_t n, int64_t length, bool in_memory) {
    const uint64_t rows = (uint64_t)gptq_moments_panel_rows(n), panel = rows * (uint64_t)n;
    return panel * sizeof(int64_t) +
           rows * (uint64_t)(group_of(in_memory) * length) * sizeof(bf16) +
           (uint64_t)gemm_threads() * tile_bytes(length);
}

/* ---- the diagonal ---- */

/* sums [n] of squares over the tokens of a window, columns in stripes, tokens in order. */
static void add_squares(const bf16 *x, int64_t length, int64_t n, double *sums) {
    const int64_t stripes = size_ceil_div(n, STRIPE);
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < stripes; k++) {
        const int64_t j0 = k * STRIPE, j1 = size_min(n, j0 + STRIPE);
        for (int64_t j = j0; j < j1; j++) sums[j] = 0;
        for (int64_t t = 0; t < length; t++) {
#pragma omp simd
            for (int64_t j = j0; j < j1; j++) {
                const double v = (double)half_float((uint32_t)x[t * n + j] << 16);
                sums[j] += v * v;
            }
        }
    }
}

static err window_squares(gptq_moments *m, int64_t i, double *sums, double *max) {
    const int64_t length = gptq_windows_get_options(m->windows)->length;
    bf16 *x;
    err e = gptq_windows_get_input(m->windows, GPTQ_QUANTIZED, i, &x);
    if (e.code) return e;
    add_squares(x, length, m->n, sums);
    for (int64_t j = 0; j < m->n; j++) {
        if (!isfinite(sums[j]))
            return err_make(ERR_NUMERICS, m->what, "look at the calibration text and the weights",
                            "the Hessian is not finite: input %" PRId64
                            " of calibration window %" PRId64 " holds NaN or infinity",
                            j, gptq_windows_number(m->windows, i));
        *max = sums[j] > *max ? sums[j] : *max;
    }
    return e;
}

static int64_t windows_taken(const gptq_moments *m) {
    const int64_t count = gptq_windows_get_options(m->windows)->count;
    int64_t taken = 0;
    for (int64_t i = 0; i < count; i++) taken += gptq_moments_takes(m, i);
    return taken;
}

/* Window after window: each finds its squares again, which is cheap, so none are kept. */
static err sum_squares(gptq_moments *m, double *mine, double *diagonal) {
    const int64_t own = gptq_windows_own(m->windows), taken = windows_taken(m);
    fixed_sum s = {.n = 0};
    double max = 0;
    err e = fixed_sum_init(&s, m->n, "diagonal of the Hessian");
    for (int64_t i = 0; i < own && !e.code; i++) e = window_squares(m, i, mine, &max);
    e = comm_agree(m->c, e, m->what, NULL);
    if (!e.code) {
        comm_max_f64(m->c, &max, 1);
        m->exponent = fixed_sum_exponent(max, taken);
        fixed_sum_begin(&s, m->exponent, taken);
        for (int64_t i = 0; i < own && !e.code; i++) {
            if (!gptq_moments_takes(m, gptq_windows_number(m->windows, i))) continue;
            e = window_squares(m, i, mine, &max);
            if (!e.code) fixed_sum_add(&s, 0, m->n, COMPUTE_F64, mine);
        }
        e = comm_agree(m->c, e, m->what, NULL);
    }
    if (!e.code) comm_sum_i64(m->c, s.v, m->n);
    const double to_real = ldexp(m->factor, m->exponent);
    for (int64_t j = 0; j < m->n && !e.code; j++) diagonal[j] = (double)s.v[j] * to_real;
    fixed_sum_clear(&s);
    return e;
}

/* Room for so many entries, if there is less. */
static err widen(int64_t count, size_t size, const char *what, void **p, int64_t *have) {
    if (count <= *have) return err_none();
    mem_free(*p);
    *p = NULL;
    *have = 0;
    err e = mem_alloc(count, size, what, p);
    if (!e.code) *have = count;
    return e;
}

static err reserve(gptq_moments *m) {
    const int64_t length = gptq_windows_get_options(m->windows)->length,
                  rows = gptq_moments_panel_rows(m->n),
                  group = group_of(gptq_windows_in_memory(m->windows));
    void *left = m->left, *tiles = m->tiles;
    err e = widen(rows * m->n, sizeof(int64_t), "rows of a Hessian", &m->sum, &m->sum_room);
    if (!e.code)
        e = widen(group * rows * length, sizeof(bf16), "transposed inputs", &left, &m->left_room);
    if (!e.code)
        e = widen(gemm_threads(), tile_bytes(length), "tiles of a Hessian", &tiles, &m->tiles_room);
    m->left = left;
    m->tiles = tiles;
    return comm_agree(m->c, e, "the Hessian", NULL);
}

err gptq_moments_diagonal(gptq_moments *m, int64_t n, const char *what, double *diagonal) {
    const int64_t length = gptq_windows_get_options(m->windows)->length;
    double *mine = NULL;
    m->what = what;
    m->n = n;
    m->factor = 2.0 / (double)(windows_taken(m) * length);
    err e = reserve(m);
    if (e.code) return e;
    e = comm_agree(m->c, MEM_NEW(&mine, n, "squares of a window"), what, NULL);
    if (!e.code) e = sum_squares(m, mine, diagonal);
    mem_free(mine);
    return e;
}

/* ---- the order of the columns ---- */

static void arrange_rows(bf16 *x, int64_t length, int64_t n, const int64_t *order, bool inverse,
                         bf16 *rooms) {
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < length; t++) {
        bf16 *row = x + t * n, *was = rooms + gemm_thread() * n;
        memcpy(was, row, (size_t)n * sizeof *row);
        for (int64_t j = 0; j < n && !inverse; j++) row[j] = was[order[j]];
        for (int64_t j = 0; j < n && inverse; j++) row[order[j]] = was[j];
    }
}

err gptq_moments_arrange(gptq_moments *m, const int64_t *order, bool inverse) {
    const int64_t length = gptq_windows_get_options(m->windows)->length;
    bf16 *rooms;
    err e = MEM_NEW(&rooms, gemm_threads() * m->n, "inputs in another order");
    for (int64_t i = 0; i < gptq_windows_own(m->windows) && !e.code; i++) {
        bf16 *x;
        e = gptq_windows_get_input(m->windows, GPTQ_QUANTIZED, i, &x);
        if (e.code) break;
        arrange_rows(x, length, m->n, order, inverse, rooms);
        e = gptq_windows_put_input(m->windows, GPTQ_QUANTIZED, i);
    }
    mem_free(rooms);
    return e;
}

/* ---- panels ----
 * A tile of the integers is TILE_ROWS x TILE_COLS. The right factor is what the forward pass left,
 * [length, n]; only the left one, a panel's rows, is transposed. A thread takes the columns of a
 * tile, packs their factor once for all rows of a window, and adds window after window, so that its
 * integers stay in cache as long as there are windows at hand: all of a group where they are in
 * memory, one where they come from files. */

/* Which rows, of what, of which windows. */
typedef struct panel {
    gptq_moments *m;
    int64_t first, rows, from, cols; /* columns [from, from + cols) */
    int64_t length;
    bool cross;
    grid_shape grid; /* whose cells get their blocks */
    int64_t *start;  /* [ranks + 1] where each rank's begin; NULL: rows of `cols` entries */
    fixed_sum s;
    bool empty;           /* nothing has been added yet */
    int64_t windows;      /* of the group at hand */
    const bf16 *x[GROUP]; /* borrowed; their inputs */
} panel;

/* Tokens [t, t + tokens) and columns [j, j + cols) of x, less another, to rows of `to`. By way of a
 * block: neighbours in a column are whole pages apart, and would drive each other out of cache. */
static void transpose_block(const panel *p, const bf16 *x, const bf16 *less, int64_t t,
                            int64_t tokens, int64_t j, int64_t cols, bf16 *to) {
    bf16 block[TRANSPOSE_TILE][TRANSPOSE_TILE];
    for (int64_t i = 0; i < tokens; i++) {
        const bf16 *row = x + (t + i) * p->m->n + j;
        const bf16 *other = less ? less + (t + i) * p->m->n + j : NULL;
        for (int64_t k = 0; k < cols && !less; k++) block[i][k] = row[k];
        for (int64_t k = 0; k < cols && less; k++)
            block[i][k] = half_to_bf16(half_from_bf16(row[k]) - half_from_bf16(other[k]));
    }
    for (int64_t k = 0; k < cols; k++)
        for (int64_t i = 0; i < tokens; i++) to[k * p->length + i] = block[i][k];
}

/* Inputs [length, n] of the panel's rows to [rows, length]; less: other is taken away first. */
static void transpose(const panel *p, const bf16 *x, const bf16 *less, bf16 *to) {
    const int64_t blocks = size_ceil_div(p->length, TRANSPOSE_TILE);
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t t = b * TRANSPOSE_TILE, tokens = size_min(TRANSPOSE_TILE, p->length - t);
        for (int64_t r = 0; r < p->rows; r += TRANSPOSE_TILE)
            transpose_block(p, x, less, t, tokens, p->first + r,
                            size_min(TRANSPOSE_TILE, p->rows - r), to + r * p->length + t);
    }
}

/* ---- blocks of a panel, dealt over a grid ---- */

/* Of `n` rows or columns from `first` on, a multiple of a block, those that go to `which` of `of`.
 */
static int64_t dealt(int64_t first, int64_t n, int which, int of) {
    return grid_part(first + n, DMAT_BLOCK, which, of) - grid_part(first, DMAT_BLOCK, which, of);
}

static void cells_start(panel *p, int ranks) {
    const grid_shape g = p->grid;
    p->start[0] = 0;
    for (int r = 0; r < ranks; r++) {
        p->start[r + 1] = p->start[r];
        if (r < g.rows * g.cols)
            p->start[r + 1] += dealt(p->first, p->cols, r / g.cols, g.rows) *
                               dealt(p->first, p->rows, r % g.cols, g.cols);
    }
}

/* Where block (b, c) of the panel stands; rows of it are *width apart. */
static int64_t cells_at(const panel *p, int64_t b, int64_t c, int64_t *width) {
    const grid_shape g = p->grid;
    const int64_t number = p->first / DMAT_BLOCK;
    const int row = (int)((number + c) % g.rows), col = (int)((number + b) % g.cols);
    *width = size_min(DMAT_BLOCK, p->cols - c * DMAT_BLOCK);
    return p->start[row * g.cols + col] +
           c / g.rows * DMAT_BLOCK * dealt(p->first, p->rows, col, g.cols) +
           b / g.cols * DMAT_BLOCK * *width;
}

/* ---- columns of cross terms, dealt to ranks ---- */

int64_t gptq_moments_column(int64_t n, int ranks, int rank) {
    const int64_t units = size_ceil_div(n, GPTQ_CROSS_COLS);
    return size_min(n, units * rank / ranks * GPTQ_CROSS_COLS);
}

/* Where entry (i, j) stands: the columns of a rank behind those of the ranks before it, rows of
 * them *width apart. */
static int64_t column_at(const panel *p, int64_t i, int64_t j, int64_t *width) {
    const int ranks = comm_size(p->m->c);
    int rank = 0;
    while (gptq_moments_column(p->cols, ranks, rank + 1) <= j) rank++;
    const int64_t first = gptq_moments_column(p->cols, ranks, rank);
    *width = gptq_moments_column(p->cols, ranks, rank + 1) - first;
    return first * p->rows + i * *width + j - first;
}

/* A product [rows, cols] to entries (i, j) of the panel and on, tiles being whole blocks. */
static bool add_tile(const panel *p, int64_t i, int64_t j, int64_t rows, int64_t cols, bool put,
                     const float *product) {
    const int64_t block = DMAT_BLOCK;
    bool fits = true;
    if (p->cross) {
        int64_t width;
        const int64_t at = column_at(p, i, j, &width);
        return fixed_sum_add_tile(&p->s, at, width, rows, cols, put, product, cols);
    }
    if (!p->start)
        return fixed_sum_add_tile(&p->s, i * p->cols + j, p->cols, rows, cols, put, product, cols);
    for (int64_t bi = 0; bi < rows; bi += block)
        for (int64_t bj = 0; bj < cols; bj += block) {
            int64_t width;
            const int64_t at = cells_at(p, (i + bi) / block, (j + bj) / block, &width);
            fits = fixed_sum_add_tile(&p->s, at, width, size_min(block, rows - bi),
                                      size_min(block, cols - bj), put, product + bi * cols + bj,
                                      cols) &&
                   fits;
        }
    return fits;
}

/* The panel's rows of a window times columns [j, j + cols) of it. False: above the bound. */
static bool add_stripe(const panel *p, int64_t w, int64_t j, int64_t cols, char *tiles) {
    const gptq_moments *m = p->m;
    const bf16 *left = m->left + w * p->rows * p->length, *right = p->x[w] + p->from + j;
    float *product = (float *)(void *)(tiles + packed_bytes(p->length));
    bool fits = true;
    if (p->rows >= TILE_ROWS)
        gemm_pack_bf16(GEMM_N, TILE_ROWS, cols, p->length, right, m->n, tiles);
    for (int64_t i = 0; i < p->rows && fits; i += TILE_ROWS) {
        const int64_t rows = size_min(TILE_ROWS, p->rows - i);
        if (!p->cross && j + cols <= i) break; /* left of the diagonal */
        const bf16 *a = left + i * p->length;
        if (rows == TILE_ROWS)
            gemm_tile_packed_bf16(rows, cols, p->length, a, tiles, product);
        else
            gemm_tile_bf16(GEMM_N, rows, cols, p->length, a, p->length, right, m->n, GEMM_SET,
                           product, cols);
        fits = add_tile(p, i, j, rows, cols, p->empty && w == 0, product);
    }
    return fits;
}

static void add_group(panel *p) {
    const int64_t stripes = size_ceil_div(p->cols, TILE_COLS), own = (int64_t)tile_bytes(p->length);
    bool fits = true;
#pragma omp parallel for schedule(dynamic) reduction(&& : fits)
    for (int64_t k = 0; k < stripes; k++) {
        const int64_t j = k * TILE_COLS, cols = size_min(TILE_COLS, p->cols - j);
        for (int64_t w = 0; w < p->windows; w++)
            fits = add_stripe(p, w, j, cols, p->m->tiles + gemm_thread() * own) && fits;
    }
    p->s.spoilt = p->s.spoilt || !fits;
    p->empty = p->empty && !p->windows;
    p->windows = 0;
}

/* An entry was above the bound: of H none is, unless sums in fp32 overflow where those of the
 * diagonal did not. */
static err spoilt_error(const gptq_moments *m, bool cross) {
    err e = err_none();
    if (!cross)
        return err_make(ERR_NUMERICS, m->what, "look at the calibration text and the weights",
                        "the Hessian is beyond fp32: inputs of linears are too large");
    for (int64_t i = 0; i < gptq_windows_own(m->windows) && !e.code; i++) {
        const int64_t number = gptq_windows_number(m->windows, i),
                      n = gptq_windows_get_options(m->windows)->length * m->n;
        bf16 *x;
        if (!gptq_moments_takes(m, number)) continue;
        e = gptq_windows_get_input(m->windows, GPTQ_FULL, i, &x);
        for (int64_t j = 0; j < n && !e.code; j++)
            if (!isfinite(half_from_bf16(x[j])))
                e = err_make(ERR_NUMERICS, m->what, "look at the calibration text and the weights",
                             "input %" PRId64 " of calibration window %" PRId64
                             " holds NaN or infinity in the stream of full precision",
                             j % m->n, number);
    }
    return e.code
               ? e
               : err_make(ERR_NUMERICS, m->what, "try weights.target=layer, or weights.method=gptq",
                          "the inputs of the quantized model and of the one in full precision "
                          "are too far apart");
}

/* The products of the windows of this rank, as integers. */
static err add_panels(panel *p) {
    gptq_moments *m = p->m;
    const int64_t most = group_of(gptq_windows_in_memory(m->windows));
    err e = err_none();
    for (int64_t i = 0; i < gptq_windows_own(m->windows) && !e.code; i++) {
        bf16 *x, *full;
        if (!gptq_moments_takes(m, gptq_windows_number(m->windows, i))) continue;
        e = gptq_windows_get_input(m->windows, GPTQ_QUANTIZED, i, &x);
        if (!e.code && p->cross) e = gptq_windows_get_input(m->windows, GPTQ_FULL, i, &full);
        if (e.code) break;
        bf16 *left = m->left + p->windows * p->rows * p->length;
        transpose(p, p->cross ? full : x, p->cross ? x : NULL, left);
        p->x[p->windows++] = x;
        if (p->windows == most) add_group(p);
    }
    if (!e.code) add_group(p);
    return !e.code && p->s.spoilt ? spoilt_error(m, p->cross) : e;
}

static panel panel_of(gptq_moments *m, int64_t first, int64_t rows, bool cross) {
    return (panel){.m = m,
                   .first = first,
                   .rows = rows,
                   .from = cross ? 0 : first,
                   .cols = cross ? m->n : m->n - first,
                   .length = gptq_windows_get_options(m->windows)->length,
                   .cross = cross,
                   .s = {.v = m->sum},
                   .empty = true};
}

/* This rank's part of it. */
static err fill_panel(panel *p) {
    fixed_sum_begin(&p->s, p->m->exponent, windows_taken(p->m));
    /* The array is not zeroed: the first contribution to a panel is stored and later ones are
     * added. Only where there is no contribution at all must zeros be written. */
    p->s.n = p->rows * p->cols;
    err e = comm_agree(p->m->c, add_panels(p), p->m->what, NULL);
    if (!e.code && p->empty) memset(p->s.v, 0, (size_t)p->s.n * sizeof *p->s.v);
    return e;
}

err gptq_moments_panel(gptq_moments *m, int64_t first, int64_t rows, int root, int64_t **v) {
    panel p = panel_of(m, first, rows, false);
    err e = fill_panel(&p);
    if (!e.code && root >= 0) comm_sum_i64_to(m->c, p.s.v, p.s.n, root);
    if (!e.code && root < 0) comm_sum_i64(m->c, p.s.v, p.s.n);
    *v = p.s.v;
    return e;
}

err gptq_moments_cells(gptq_moments *m, int64_t first, int64_t rows, grid_shape grid, int64_t **v) {
    const int ranks = comm_size(m->c);
    panel p = panel_of(m, first, rows, false);
    p.grid = grid;
    p.start = malloc(((size_t)ranks + 1) * sizeof *p.start);
    if (!p.start) abort();
    cells_start(&p, ranks);
    err e = fill_panel(&p);
    if (!e.code) comm_sum_i64_parts(m->c, p.s.v, p.start, sizeof *p.s.v);
    *v = p.s.v + p.start[comm_rank(m->c)];
    free(p.start);
    return e;
}

err gptq_moments_cross(gptq_moments *m, int64_t first, int64_t rows, int64_t **v) {
    const int ranks = comm_size(m->c);
    panel p = panel_of(m, first, rows, true);
    int64_t *from = malloc(((size_t)ranks + 1) * sizeof *from);
    if (!from) abort();
    for (int r = 0; r <= ranks; r++) from[r] = gptq_moments_column(m->n, ranks, r) * rows;
    err e = fill_panel(&p);
    if (!e.code) comm_sum_i64_parts(m->c, p.s.v, from, sizeof *p.s.v);
    *v = p.s.v + from[comm_rank(m->c)];
    free(from);
    return e;
}
