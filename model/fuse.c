/* A matrix is widened to fp64 in blocks of columns or rows that fit in cache; gains and scales
 * multiply its columns, the right rotation its rows, the left one its columns, and one rounding
 * gives fp32. A random probe vector goes through source and result, and norms are compared. */
#include "model/fuse.h"

#include "base/gemm.h"
#include "base/half.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/size.h"

#include <inttypes.h>
#include <math.h>
#include <omp.h>
#include <string.h>

enum {
    TILE = 1 << 19,         /* numbers in a tile of rows */
    DENSE_TILE_ROWS = 2048, /* a dense product wants at least so many */
    BLOCK = 1 << 13,        /* numbers in a block of rows that one thread takes */
    LEAST_COLUMNS = 16,     /* columns rotated together where rows are mixed: a Hadamard matrix, */
    MOST_COLUMNS = 64,
    DENSE_COLUMNS = 2048, /* or a dense one */
    TURNED = 1 << 17,     /* numbers in such columns that fit the second cache */
    AHEAD = 16,           /* rows between prefetch and use */
    SQUARE = 8,           /* rows transposed together: a cache line of fp64 */
    CHUNK = 1024,         /* elements converted at a time */
};

static size_t element_bytes(fuse_dtype dtype) {
    return dtype == FUSE_F32 ? 4 : 2;
}

/* The source need not be aligned: elements go through an aligned chunk. */
void fuse_to_f32(const void *source, fuse_dtype dtype, int64_t n, float *out) {
    if (dtype == FUSE_F32) {
        memcpy(out, source, (size_t)n * 4);
        return;
    }
    uint16_t chunk[CHUNK];
    for (int64_t i = 0; i < n; i += CHUNK) {
        int64_t m = size_min(CHUNK, n - i);
        memcpy(chunk, (const char *)source + i * 2, (size_t)m * 2);
        if (dtype == FUSE_BF16)
            half_array_from_bf16(chunk, m, out + i);
        else
            half_array_from_fp16(chunk, m, out + i);
    }
}

static int64_t count_16(const uint16_t *v, int64_t n, uint16_t exponent) {
    int32_t count = 0;
#pragma omp simd reduction(+ : count)
    for (int64_t i = 0; i < n; i++) count += (v[i] & exponent) == exponent;
    return count;
}

static int64_t count_32(const uint32_t *v, int64_t n) {
    int32_t count = 0;
#pragma omp simd reduction(+ : count)
    for (int64_t i = 0; i < n; i++) count += (v[i] & 0x7f800000u) == 0x7f800000u;
    return count;
}

/* A number is NaN or Inf where all bits of its exponent are ones. */
static int64_t count_chunk(const char *source, fuse_dtype dtype, int64_t n) {
    if (dtype == FUSE_F32) {
        uint32_t chunk[CHUNK];
        memcpy(chunk, source, (size_t)n * 4);
        return count_32(chunk, n);
    }
    uint16_t chunk[CHUNK];
    memcpy(chunk, source, (size_t)n * 2);
    return count_16(chunk, n, dtype == FUSE_BF16 ? 0x7f80 : 0x7c00);
}

int64_t fuse_count_non_finite(const void *source, fuse_dtype dtype, int64_t n) {
    const int64_t chunks = size_ceil_div(n, CHUNK);
    int64_t count = 0;
#pragma omp parallel for schedule(static) reduction(+ : count) if (chunks > 64)
    for (int64_t k = 0; k < chunks; k++)
        count += count_chunk((const char *)source + (size_t)(k * CHUNK) * element_bytes(dtype),
                             dtype, size_min(CHUNK, n - k * CHUNK));
    return count;
}

static bool is_large_dense(const fuse_job *job, const rotation *r) {
    return r && (rotation_get_kind(r) == ROTATION_DENSE || r == job->dense) &&
           rotation_size(r) > 256;
}

static bool mixes_rows(const fuse_job *job) {
    return job->out || job->out_heads.rotations;
}

static int64_t tile_rows(const fuse_job *job) {
    int64_t rows = size_max(1, TILE / job->cols);
    if (is_large_dense(job, job->in)) rows = size_max(rows, DENSE_TILE_ROWS);
    return size_min(rows, job->rows);
}

/* Columns that are rotated together, and in how many buffers of that many columns: one a thread, or
 * the factor and the result of a dense product. */
static int64_t column_block(const fuse_job *job, int64_t *buffers) {
    bool dense = is_large_dense(job, job->out);
    *buffers = dense ? 2 : gemm_threads();
    int64_t columns = size_max(LEAST_COLUMNS, size_min(MOST_COLUMNS, TURNED / job->rows / 16 * 16));
    return size_min(job->cols, dense ? DENSE_COLUMNS : columns);
}

/* Rows that one thread takes at a time. */
static int64_t block_rows(const fuse_job *job) {
    return size_min(job->rows, size_max(1, BLOCK / job->cols));
}

uint64_t fuse_scratch_bytes(const fuse_job *job) {
    int64_t buffers, blocks = gemm_threads() * block_rows(job) * job->cols,
                     tile = size_max(blocks, tile_rows(job) * job->cols);
    uint64_t bytes = (uint64_t)tile * sizeof(float);
    if (is_large_dense(job, job->in)) bytes += (uint64_t)tile * sizeof(double);
    if (!mixes_rows(job)) return bytes + (uint64_t)tile * sizeof(double);
    int64_t columns = column_block(job, &buffers);
    return bytes + (uint64_t)(job->rows * (job->cols + columns * buffers)) * sizeof(double);
}

static err check_side(const rotation *whole, const fuse_heads *heads, int64_t n, const char *side) {
    if (whole && (heads->rotations || rotation_size(whole) != n))
        return err_make(ERR_BUG, side, NULL,
                        "a rotation of order %" PRId64 " does not fit %" PRId64,
                        rotation_size(whole), n);
    if (!heads->rotations) return err_none();
    if (heads->n_heads < 1 || heads->per_rotation < 1 || n % heads->n_heads)
        return err_make(ERR_BUG, side, NULL, "%" PRId64 " heads do not divide %" PRId64,
                        heads->n_heads, n);
    for (int64_t h = 0; h < heads->n_heads; h++) {
        const rotation *r = heads->rotations[h / heads->per_rotation];
        if (r && rotation_size(r) != n / heads->n_heads)
            return err_make(ERR_BUG, side, NULL, "order %" PRId64 " of head %" PRId64 " is wrong",
                            rotation_size(r), h);
    }
    return err_none();
}

static err check_job(const fuse_job *job) {
    if (job->rows < 1 || job->cols < 1)
        return err_make(ERR_BUG, "fusion", NULL, "impossible shape %" PRId64 " x %" PRId64,
                        job->rows, job->cols);
    err e = check_side(job->in, &job->in_heads, job->cols, "inputs of a fused matrix");
    if (!e.code) e = check_side(job->out, &job->out_heads, job->rows, "outputs of a fused matrix");
    return e;
}

/* Rows of length n times the rotation of one side. */
static void rotate(const rotation *whole, const fuse_heads *heads, int64_t n, double *x,
                   int64_t rows, int64_t ld) {
    rotation_apply_f64(whole, x, rows, ld, false);
    if (!heads->rotations) return;
    int64_t size = n / heads->n_heads;
    for (int64_t h = 0; h < heads->n_heads; h++)
        rotation_apply_f64(heads->rotations[h / heads->per_rotation], x + h * size, rows, ld,
                           false);
}

/* Columns [col0, col0 + n) of a row as on disk, to fp64 with their gains and factors. */
static void widen(const fuse_job *job, int64_t row, int64_t col0, int64_t n, double *to) {
    const size_t element = element_bytes(job->dtype);
    const char *from = (const char *)job->source + (size_t)(row * job->cols + col0) * element;
    float chunk[CHUNK];
    for (int64_t i = 0; i < n; i += CHUNK) {
        int64_t m = size_min(CHUNK, n - i);
        fuse_to_f32(from + (size_t)i * element, job->dtype, m, chunk);
        if (job->in_gain)
            for (int64_t j = 0; j < m; j++)
                to[i + j] = (double)chunk[j] * (double)job->in_gain[col0 + i + j];
        else
            for (int64_t j = 0; j < m; j++) to[i + j] = (double)chunk[j];
    }
    if (job->in_scale) scale_times_f64(job->in_scale + col0, n, to);
    for (int64_t j = 0; job->out_scale && j < n; j++) to[j] *= job->out_scale[row];
}

static void round_to_f32(const double *w, int64_t n, float *out) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) out[i] = (float)w[i];
}

/* Rows [row0, row0 + rows) times the right factor, to fp32. `w` holds them in fp64, or is room for
 * them where they still come from the source. Each thread takes its rows through all steps while
 * they are in cache; only a large dense factor is a threaded product of its own, into `product`. */
typedef struct row_tile {
    bool from_source;
    double *w;       /* [rows, cols] */
    double *product; /* [rows, cols]; NULL unless the right factor is large and dense */
    float *out;      /* [rows, cols]; NULL: they stay in fp64 */
} row_tile;

/* Rows times the right factor get what stands after it, and are rounded. */
static void round_rows(const fuse_job *job, double *w, int64_t rows, float *out) {
    for (int64_t r = 0; job->after_scale && r < rows; r++)
        scale_times_f64(job->after_scale, job->cols, w + r * job->cols);
    if (out) round_to_f32(w, rows * job->cols, out);
}

static void finish_rows(const fuse_job *job, int64_t row0, int64_t rows, const row_tile *t) {
    const int64_t cols = job->cols, per = block_rows(job), blocks = size_ceil_div(rows, per);
#pragma omp parallel for schedule(dynamic) if (blocks > 1)
    for (int64_t k = 0; k < blocks; k++) {
        const int64_t first = k * per, n = size_min(per, rows - first);
        double *w = t->w + first * cols;
        for (int64_t r = 0; r < n && t->from_source; r++)
            widen(job, row0 + first + r, 0, cols, w + r * cols);
        if (t->product) continue;
        rotate(job->in, &job->in_heads, cols, w, n, cols);
        round_rows(job, w, n, t->out ? t->out + first * cols : NULL);
    }
    if (!t->product) return;
    rotation_product_f64(job->in, t->w, rows, t->product);
#pragma omp parallel for schedule(dynamic, 16) if (rows > 1)
    for (int64_t r = 0; r < rows; r++)
        round_rows(job, t->product + r * cols, 1, t->out ? t->out + r * cols : NULL);
}

/* Ask for `bytes` at the same place of SQUARE rows, AHEAD rows further on: a column block is a
 * short piece of every row, which the hardware does not foresee. */
static void prefetch_rows(const char *at, size_t row_bytes, int64_t rows_left, size_t bytes) {
    for (int64_t r = AHEAD; r < size_min(AHEAD + SQUARE, rows_left); r++)
        for (size_t b = 0; b < bytes; b += 64) __builtin_prefetch(at + (size_t)r * row_bytes + b);
}

/* n (at most MOST_COLUMNS) columns of the source from c0, as rows of t [n, rows]; and such rows to
 * the columns of w [rows, cols]; a few rows of the matrix at a time. */
static void columns_out(const fuse_job *job, int64_t c0, int64_t n, double *t) {
    const size_t element = element_bytes(job->dtype), row_bytes = (size_t)job->cols * element;
    const char *from = (const char *)job->source + (size_t)c0 * element;
    double square[SQUARE][MOST_COLUMNS];
    for (int64_t r0 = 0; r0 < job->rows; r0 += SQUARE) {
        const int64_t m = size_min(SQUARE, job->rows - r0);
        prefetch_rows(from + (size_t)r0 * row_bytes, row_bytes, job->rows - r0,
                      (size_t)n * element);
        for (int64_t r = 0; r < m; r++) widen(job, r0 + r, c0, n, square[r]);
        for (int64_t c = 0; c < n; c++)
            for (int64_t r = 0; r < m; r++) t[c * job->rows + r0 + r] = square[r][c];
    }
}

static void columns_in(const fuse_job *job, const double *t, int64_t c0, int64_t n, double *w) {
    for (int64_t r0 = 0; r0 < job->rows; r0 += SQUARE) {
        const int64_t end = size_min(job->rows, r0 + SQUARE);
        prefetch_rows((const char *)(w + r0 * job->cols + c0), (size_t)job->cols * sizeof(double),
                      job->rows - r0, (size_t)n * sizeof(double));
        for (int64_t r = r0; r < end; r++)
            for (int64_t c = 0; c < n; c++) w[r * job->cols + c0 + c] = t[c * job->rows + r];
    }
}

/* w = R^T W, as rows of the transpose times R: blocks of columns, each by one thread. */
static void left_side_blocks(const fuse_job *job, double *w, int64_t columns, double *scratch) {
    const int64_t blocks = size_ceil_div(job->cols, columns);
#pragma omp parallel for schedule(dynamic)
    for (int64_t k = 0; k < blocks; k++) {
        double *t = scratch + omp_get_thread_num() * columns * job->rows;
        const int64_t c0 = k * columns, n = size_min(columns, job->cols - c0);
        columns_out(job, c0, n, t);
        rotate(job->out, &job->out_heads, job->rows, t, n, job->rows);
        columns_in(job, t, c0, n, w);
    }
}

/* The left factor where it is a large dense R: one block of columns after the other, each by a
 * product that uses all threads. */
static void left_side_dense(const fuse_job *job, double *w, int64_t columns, double *scratch) {
    double *t = scratch, *rotated = scratch + columns * job->rows;
    for (int64_t c0 = 0; c0 < job->cols; c0 += columns) {
        const int64_t n = size_min(columns, job->cols - c0),
                      parts = size_ceil_div(n, LEAST_COLUMNS);
#pragma omp parallel for schedule(dynamic)
        for (int64_t p = 0; p < parts; p++) {
            int64_t c = p * LEAST_COLUMNS;
            columns_out(job, c0 + c, size_min(LEAST_COLUMNS, n - c), t + c * job->rows);
        }
        rotation_product_f64(job->out, t, n, rotated);
#pragma omp parallel for schedule(dynamic)
        for (int64_t p = 0; p < parts; p++) {
            int64_t c = p * LEAST_COLUMNS;
            columns_in(job, rotated + c * job->rows, c0 + c, size_min(LEAST_COLUMNS, n - c), w);
        }
    }
}

/* One of the three sinks. */
typedef struct either_sink {
    fuse_sink narrow;
    fuse_each_sink each;
    fuse_wide_sink wide;
    void *arg;
} either_sink;

static err hand_over(const fuse_job *job, row_tile t, const either_sink *sink) {
    const int64_t per = tile_rows(job);
    err e = err_none();
    for (int64_t row0 = 0; row0 < job->rows && !e.code; row0 += per) {
        int64_t rows = size_min(per, job->rows - row0);
        finish_rows(job, row0, rows, &t);
        e = sink->narrow ? sink->narrow(sink->arg, row0, rows, t.out)
                         : sink->wide(sink->arg, row0, rows, t.product ? t.product : t.w);
        if (!t.from_source) t.w += rows * job->cols;
    }
    return e;
}

/* Blocks of rows [row0, row0 + rows), each by one thread from source (or from `done`, where the
 * right factor has been at them) to its sink. w: [rows, cols] from row0 on, or [threads, block,
 * cols] where rows come from the source; out: [threads, block, cols]. */
static err each_block(const fuse_job *job, int64_t row0, int64_t rows, const row_tile *t,
                      const either_sink *sink) {
    const int64_t cols = job->cols, per = block_rows(job), blocks = size_ceil_div(rows, per);
    err_first failed = {.e = err_none()};
#pragma omp parallel for schedule(dynamic) if (blocks > 1)
    for (int64_t k = 0; k < blocks; k++) {
        const int64_t room = omp_get_thread_num() * per * cols, first = k * per,
                      n = size_min(per, rows - first);
        double *w = t->product       ? t->product + first * cols
                    : t->from_source ? t->w + room
                                     : t->w + first * cols;
        for (int64_t r = 0; r < n && t->from_source && !t->product; r++)
            widen(job, row0 + first + r, 0, cols, w + r * cols);
        if (!t->product) rotate(job->in, &job->in_heads, cols, w, n, cols);
        round_rows(job, w, n, t->out + room);
        err_note(&failed, first, sink->each(sink->arg, row0 + first, n, t->out + room));
    }
    return failed.e;
}

/* As hand_over, for a sink that threads call. Tiles are for large dense factors alone. */
static err hand_over_each(const fuse_job *job, row_tile t, const either_sink *sink) {
    const int64_t per = tile_rows(job), cols = job->cols;
    err e = err_none();
    if (!t.product) return each_block(job, 0, job->rows, &t, sink);
    for (int64_t row0 = 0; row0 < job->rows && !e.code; row0 += per) {
        const int64_t rows = size_min(per, job->rows - row0);
#pragma omp parallel for schedule(dynamic, 16) if (rows > 1)
        for (int64_t r = 0; r < rows; r++)
            if (t.from_source) widen(job, row0 + r, 0, cols, t.w + r * cols);
        rotation_product_f64(job->in, t.w, rows, t.product);
        e = each_block(job, row0, rows, &t, sink);
        if (!t.from_source) t.w += rows * cols;
    }
    return e;
}

/* Rows that mix: the whole matrix in fp64, left factor first. */
static err mix_rows(const fuse_job *job, double *w) {
    int64_t buffers, columns = column_block(job, &buffers);
    double *rotated;
    err e = MEM_NEW_UNSET(&rotated, job->rows * columns * buffers, "columns of a fused matrix");
    if (e.code) return e;
    if (is_large_dense(job, job->out))
        left_side_dense(job, w, columns, rotated);
    else
        left_side_blocks(job, w, columns, rotated);
    mem_free(rotated);
    return e;
}

static err fuse_to(fuse_job *job, const either_sink *sink) {
    err e = check_job(job);
    if (e.code) return e;
    job->non_finite = fuse_count_non_finite(job->source, job->dtype, job->rows * job->cols);
    if (job->non_finite) return e;
    const int64_t blocks = gemm_threads() * block_rows(job) * job->cols,
                  tile = size_max(sink->each ? blocks : 0, tile_rows(job) * job->cols);
    float *out = NULL;
    double *w = NULL, *product = NULL;
    if (!sink->wide) e = MEM_NEW_UNSET(&out, tile, "tile of a fused matrix");
    if (!e.code && is_large_dense(job, job->in))
        e = MEM_NEW_UNSET(&product, tile, "tile of a fused matrix");
    if (!e.code)
        e = MEM_NEW_UNSET(&w, mixes_rows(job) ? job->rows * job->cols : tile, "fused matrix");
    if (!e.code && mixes_rows(job)) e = mix_rows(job, w);
    if (!e.code) {
        row_tile t = {.from_source = !mixes_rows(job), .w = w, .product = product, .out = out};
        e = sink->each ? hand_over_each(job, t, sink) : hand_over(job, t, sink);
    }
    mem_free(out);
    mem_free(product);
    mem_free(w);
    return e;
}

void fuse_probe_signs(int64_t cols, float *t) {
    for (int64_t j = 0; j < cols; j++) t[j] = (float)rng_sign(0, RNG_PROBE, (uint64_t)j);
}

/* R (a t): as a row, a t R^T. */
static void rotate_probe(const fuse_job *job, const float *t, double *to) {
    for (int64_t j = 0; j < job->cols; j++) to[j] = (double)t[j];
    if (job->after_scale) scale_times_f64(job->after_scale, job->cols, to);
    rotation_apply_f64(job->in, to, 1, job->cols, true);
    const int64_t n = job->in_heads.rotations ? job->in_heads.n_heads : 0;
    for (int64_t h = 0; h < n; h++)
        rotation_apply_f64(job->in_heads.rotations[h / job->in_heads.per_rotation],
                           to + h * (job->cols / n), 1, job->cols, true);
}

/* R (a t); a dot of each row; a row in fp64 for each thread. */
static int64_t probe_doubles(const fuse_job *job) {
    return job->cols * (1 + gemm_threads()) + job->rows;
}

uint64_t fuse_probe_source_bytes(const fuse_job *job) {
    return (uint64_t)probe_doubles(job) * sizeof(double);
}

err fuse_probe_source(const fuse_job *job, const float *t, double *norm2) {
    const int64_t cols = job->cols, threads = gemm_threads();
    double *rotated;
    *norm2 = 0;
    err e = MEM_NEW(&rotated, probe_doubles(job), "probe");
    if (e.code) return e;
    double *dots = rotated + cols, *rows = dots + job->rows;
    rotate_probe(job, t, rotated);
#pragma omp parallel for schedule(static) if (job->rows > 64) num_threads((int)threads)
    for (int64_t r = 0; r < job->rows; r++) {
        double *w = rows + omp_get_thread_num() * cols, sum = 0;
        widen(job, r, 0, cols, w);
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < cols; j++) sum += w[j] * rotated[j];
        dots[r] = sum;
    }
    for (int64_t r = 0; r < job->rows; r++) *norm2 += dots[r] * dots[r];
    mem_free(rotated);
    return e;
}

err fuse_probe_check(double before2, double after2, double square, int64_t cols) {
    const double before = sqrt(before2), after = sqrt(after2),
                 bound = 0x1p-22 * sqrt((double)cols * square);
    if (fabs(before - after) <= bound) return err_none();
    return err_make(ERR_NUMERICS, "fusion",
                    "the memory or the processor of the node may be faulty: leave it out",
                    "a random probe has the norm %.9g before and %.9g after; at most %.2g apart is "
                    "rounding",
                    before, after, bound);
}

err fuse_matrix(fuse_job *job, fuse_sink sink, void *arg) {
    const either_sink to = {.narrow = sink, .arg = arg};
    return fuse_to(job, &to);
}

err fuse_matrix_each(fuse_job *job, fuse_each_sink sink, void *arg) {
    const either_sink to = {.each = sink, .arg = arg};
    return fuse_to(job, &to);
}

err fuse_matrix_wide(fuse_job *job, fuse_wide_sink sink, void *arg) {
    const either_sink to = {.wide = sink, .arg = arg};
    return fuse_to(job, &to);
}

err fuse_bias_wide(const fuse_job *job, double *b, int64_t n) {
    err e = check_side(job->out, &job->out_heads, n, "bias");
    if (e.code) return e;
    if (job->out_scale) scale_times_f64(job->out_scale, n, b);
    rotate(job->out, &job->out_heads, n, b, 1, n);
    return e;
}

err fuse_bias(const fuse_job *job, float *b, int64_t n) {
    if (!mixes_rows(job) && !job->out_scale) return err_none();
    double *wide;
    err e = MEM_NEW(&wide, n, "bias");
    if (e.code) return e;
    for (int64_t i = 0; i < n; i++) wide[i] = b[i];
    e = fuse_bias_wide(job, wide, n);
    for (int64_t i = 0; i < n && !e.code; i++) b[i] = (float)wide[i];
    mem_free(wide);
    return e;
}
