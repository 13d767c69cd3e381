#include "model/fuse.h"

#include "base/gemm.h"
#include "base/half.h"
#include "base/mem.h"
#include "base/size.h"

#include <inttypes.h>
#include <omp.h>
#include <string.h>

enum {
    TILE = 1 << 19,        /* numbers in a tile of rows */
    DENSE_TILE_ROWS = 512, /* a dense product wants at least so many */
    BLOCK = 1 << 13,       /* numbers in a block of rows that one thread takes */
    COLUMNS = 16,          /* columns turned together where rows are mixed by a Hadamard matrix */
    DENSE_COLUMNS = 512,   /* by a dense one */
    CHUNK = 1024,          /* elements converted at a time */
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

static bool is_large_dense(const rotation *r) {
    return r && rotation_get_kind(r) == ROTATION_DENSE && rotation_size(r) > 256;
}

static bool mixes_rows(const fuse_job *job) {
    return job->out || job->out_heads.rotations;
}

static int64_t tile_rows(const fuse_job *job) {
    int64_t rows = size_max(1, TILE / job->cols);
    if (is_large_dense(job->in)) rows = size_max(rows, DENSE_TILE_ROWS);
    return size_min(rows, job->rows);
}

/* Columns that are turned together, and in how many buffers of that many columns. */
static int64_t column_block(const fuse_job *job, int64_t *buffers) {
    bool dense = is_large_dense(job->out);
    *buffers = dense ? 1 : gemm_threads();
    return size_min(job->cols, dense ? DENSE_COLUMNS : COLUMNS);
}

uint64_t fuse_scratch_bytes(const fuse_job *job) {
    int64_t buffers, tile = tile_rows(job) * job->cols;
    uint64_t bytes = (uint64_t)tile * sizeof(float);
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
static void turn(const rotation *whole, const fuse_heads *heads, int64_t n, double *x, int64_t rows,
                 int64_t ld) {
    rotation_apply_f64(whole, x, rows, ld, false);
    if (!heads->rotations) return;
    int64_t size = n / heads->n_heads;
    for (int64_t h = 0; h < heads->n_heads; h++)
        rotation_apply_f64(heads->rotations[h / heads->per_rotation], x + h * size, rows, ld,
                           false);
}

/* One row as on disk to fp64 with its gains. */
static void widen_row(const fuse_job *job, int64_t row, double *to) {
    const char *from =
        (const char *)job->source + (size_t)(row * job->cols) * element_bytes(job->dtype);
    float chunk[CHUNK];
    for (int64_t i = 0; i < job->cols; i += CHUNK) {
        int64_t n = size_min(CHUNK, job->cols - i);
        fuse_to_f32(from + (size_t)i * element_bytes(job->dtype), job->dtype, n, chunk);
        if (job->in_gain)
            for (int64_t j = 0; j < n; j++)
                to[i + j] = (double)chunk[j] * (double)job->in_gain[i + j];
        else
            for (int64_t j = 0; j < n; j++) to[i + j] = (double)chunk[j];
    }
}

/* Rows [row0, row0 + rows) times gains and the right factor into to [rows, cols]. A large dense
 * factor is one threaded product; others are taken by each thread on its rows while they are in
 * cache. */
static void right_side(const fuse_job *job, int64_t row0, int64_t rows, double *to) {
    const int64_t per = size_max(1, BLOCK / job->cols), blocks = size_ceil_div(rows, per);
    const bool dense = is_large_dense(job->in);
#pragma omp parallel for schedule(static) if (blocks > 1)
    for (int64_t k = 0; k < blocks; k++) {
        int64_t first = k * per, n = size_min(per, rows - first);
        for (int64_t r = first; r < first + n; r++) widen_row(job, row0 + r, to + r * job->cols);
        if (!dense) turn(job->in, &job->in_heads, job->cols, to + first * job->cols, n, job->cols);
    }
    if (dense) rotation_apply_f64(job->in, to, rows, job->cols, false);
}

/* n columns of w [rows, cols] from c0 to rows of t [n, rows], and back, in squares of a cache line.
 */
static void columns_out(const double *w, int64_t rows, int64_t cols, int64_t c0, int64_t n,
                        double *t) {
    for (int64_t r0 = 0; r0 < rows; r0 += 8) {
        int64_t end = size_min(rows, r0 + 8);
        for (int64_t c = 0; c < n; c++)
            for (int64_t r = r0; r < end; r++) t[c * rows + r] = w[r * cols + c0 + c];
    }
}

static void columns_in(const double *t, int64_t rows, int64_t cols, int64_t c0, int64_t n,
                       double *w) {
    for (int64_t r0 = 0; r0 < rows; r0 += 8) {
        int64_t end = size_min(rows, r0 + 8);
        for (int64_t r = r0; r < end; r++)
            for (int64_t c = 0; c < n; c++) w[r * cols + c0 + c] = t[c * rows + r];
    }
}

/* w = R^T w, as rows of the transpose times R: blocks of columns, each by one thread. */
static void left_side_blocks(const fuse_job *job, double *w, int64_t columns, double *scratch) {
    const int64_t rows = job->rows, blocks = size_ceil_div(job->cols, columns);
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < blocks; k++) {
        double *t = scratch + omp_get_thread_num() * columns * rows;
        int64_t c0 = k * columns, n = size_min(columns, job->cols - c0);
        columns_out(w, rows, job->cols, c0, n, t);
        turn(job->out, &job->out_heads, rows, t, n, rows);
        columns_in(t, rows, job->cols, c0, n, w);
    }
}

/* The same with a large dense R: one block of columns after the other, each a threaded product. */
static void left_side_dense(const fuse_job *job, double *w, int64_t columns, double *t) {
    const int64_t rows = job->rows;
    for (int64_t c0 = 0; c0 < job->cols; c0 += columns) {
        const int64_t n = size_min(columns, job->cols - c0), parts = size_ceil_div(n, COLUMNS);
#pragma omp parallel for schedule(static)
        for (int64_t p = 0; p < parts; p++)
            columns_out(w, rows, job->cols, c0 + p * COLUMNS, size_min(COLUMNS, n - p * COLUMNS),
                        t + p * COLUMNS * rows);
        rotation_apply_f64(job->out, t, n, rows, false);
#pragma omp parallel for schedule(static)
        for (int64_t p = 0; p < parts; p++)
            columns_in(t + p * COLUMNS * rows, rows, job->cols, c0 + p * COLUMNS,
                       size_min(COLUMNS, n - p * COLUMNS), w);
    }
}

static void round_to_f32(const double *w, int64_t n, float *out) {
    const int64_t blocks = size_ceil_div(n, BLOCK);
#pragma omp parallel for schedule(static) if (blocks > 1)
    for (int64_t k = 0; k < blocks; k++)
        for (int64_t i = k * BLOCK; i < size_min(n, (k + 1) * BLOCK); i++) out[i] = (float)w[i];
}

/* Rows that do not mix: nothing larger than a tile is held. */
static err fuse_rows(const fuse_job *job, fuse_sink sink, void *arg, float *tile) {
    const int64_t per = tile_rows(job);
    void *wide;
    err e = mem_alloc(per * job->cols, sizeof(double), "tile of a fused matrix", &wide);
    for (int64_t row0 = 0; row0 < job->rows && !e.code; row0 += per) {
        int64_t rows = size_min(per, job->rows - row0);
        right_side(job, row0, rows, wide);
        round_to_f32(wide, rows * job->cols, tile);
        e = sink(arg, row0, rows, tile);
    }
    mem_free(wide);
    return e;
}

/* Rows that mix: the whole matrix in fp64, right factor first. */
static err fuse_mixed(const fuse_job *job, fuse_sink sink, void *arg, float *tile) {
    const int64_t per = tile_rows(job);
    int64_t buffers, columns = column_block(job, &buffers);
    void *memory, *turned = NULL;
    err e = mem_alloc(job->rows * job->cols, sizeof(double), "fused matrix", &memory);
    if (!e.code)
        e = mem_alloc(job->rows * columns * buffers, sizeof(double), "columns of a fused matrix",
                      &turned);
    double *w = memory;
    for (int64_t row0 = 0; row0 < job->rows && !e.code; row0 += per)
        right_side(job, row0, size_min(per, job->rows - row0), w + row0 * job->cols);
    if (!e.code) {
        if (is_large_dense(job->out))
            left_side_dense(job, w, columns, turned);
        else
            left_side_blocks(job, w, columns, turned);
    }
    mem_free(turned);
    for (int64_t row0 = 0; row0 < job->rows && !e.code; row0 += per) {
        int64_t rows = size_min(per, job->rows - row0);
        round_to_f32(w + row0 * job->cols, rows * job->cols, tile);
        e = sink(arg, row0, rows, tile);
    }
    mem_free(w);
    return e;
}

err fuse_matrix(fuse_job *job, fuse_sink sink, void *arg) {
    err e = check_job(job);
    if (e.code) return e;
    job->non_finite = fuse_count_non_finite(job->source, job->dtype, job->rows * job->cols);
    if (job->non_finite) return e;
    void *tile;
    e = mem_alloc(tile_rows(job) * job->cols, sizeof(float), "tile of a fused matrix", &tile);
    if (e.code) return e;
    e = mixes_rows(job) ? fuse_mixed(job, sink, arg, tile) : fuse_rows(job, sink, arg, tile);
    mem_free(tile);
    return e;
}

err fuse_bias(const fuse_job *job, float *b, int64_t n) {
    if (!mixes_rows(job)) return err_none();
    err e = check_side(job->out, &job->out_heads, n, "bias");
    if (e.code) return e;
    void *memory;
    e = mem_alloc(n, sizeof(double), "bias", &memory);
    if (e.code) return e;
    double *wide = memory;
    for (int64_t i = 0; i < n; i++) wide[i] = b[i];
    turn(job->out, &job->out_heads, n, wide, 1, n);
    for (int64_t i = 0; i < n; i++) b[i] = (float)wide[i];
    mem_free(memory);
    return e;
}

/* R2 of the layer as the heads of one side. */
static err take_r2(fuse_plan *p, rotation_set *set, int64_t layer, int64_t n_heads,
                   fuse_heads *side) {
    const int64_t count = rotation_set_r2_count(set);
    if (!count) return err_none();
    err e = rotation_set_prepare_r2(set, layer);
    if (e.code) return e;
    void *memory;
    e = mem_alloc(count, sizeof(rotation *), "R2 of a layer", &memory);
    if (e.code) return e;
    p->r2 = memory;
    for (int64_t h = 0; h < count; h++) p->r2[h] = rotation_set_r2(set, layer, h);
    *side = (fuse_heads){.rotations = p->r2, .n_heads = n_heads, .per_rotation = n_heads / count};
    return e;
}

err fuse_plan_init(llama_role role, int64_t layer, rotation_set *set, fuse_plan *out) {
    *out = (fuse_plan){0};
    const rotation *r1 = rotation_set_r1(set);
    const rotation_sizes *sizes = rotation_set_sizes(set);
    switch (role) {
    case ROLE_Q_BIAS:
    case ROLE_K_BIAS:
    case ROLE_GATE_BIAS:
    case ROLE_UP_BIAS:
        return err_none();
    case ROLE_EMBED:
    case ROLE_HEAD:
    case ROLE_Q:
    case ROLE_K:
    case ROLE_GATE:
    case ROLE_UP:
        out->job.in = r1;
        return err_none();
    case ROLE_V:
        out->job.in = r1;
        return take_r2(out, set, layer, sizes->kv_heads, &out->job.out_heads);
    case ROLE_V_BIAS:
        return take_r2(out, set, layer, sizes->kv_heads, &out->job.out_heads);
    case ROLE_O:
        out->job.out = r1;
        return take_r2(out, set, layer, sizes->heads, &out->job.in_heads);
    case ROLE_DOWN:
        out->job.in = rotation_set_r4(set);
        out->job.out = r1;
        return err_none();
    case ROLE_O_BIAS:
    case ROLE_DOWN_BIAS:
        out->job.out = r1;
        return err_none();
    default:
        return err_make(ERR_BUG, "fusion", NULL, "%s takes no rotation", llama_role_name(role));
    }
}

void fuse_plan_clear(fuse_plan *p) {
    mem_free(p->r2);
    *p = (fuse_plan){0};
}
