/* An online softmax: a running maximum and sum for each query, over blocks of keys in order. */
#include "model/attention_internal.h"

#include "base/gemm.h"
#include "base/size.h"
#include "base/vecmath.h"
#include "model/norm.h"

#include <math.h>
#include <string.h>

#include "base/real.h"

enum { LANES = 16 }; /* columns that are filled up to a vector; divides ATTENTION_KEYS */

/* One block of queries: its rows are (token, head of the group), token slow. */
typedef struct query_block {
    const attention_shape *s;
    int64_t group, t0, rows;
    real scale;
    real *scores;      /* [rows, ATTENTION_KEYS] */
    void *weights;     /* [rows, ATTENTION_KEYS] factors: scores itself, or a bf16 copy */
    real *sums;        /* [rows, head_dim] */
    real *max, *total; /* [rows] */
} query_block;

/* Weights e^(score - most) of columns [lo, hi) as factors, and their sum. Scores may be weights. */
static real exponentials(const query_block *b, int64_t r, int64_t lo, int64_t hi, real most) {
    const real *row = b->scores + r * ATTENTION_KEYS, scale = b->scale;
    real total = 0;
    if (b->s->compute == COMPUTE_BF16) {
        bf16 *to = (bf16 *)b->weights + r * ATTENTION_KEYS;
#pragma omp simd reduction(+ : total)
        for (int64_t c = lo; c < hi; c++) {
            real p = vec_exp(row[c] * scale - most);
            /* half_to_bf16 without its care for NaN payloads, which arithmetic does not make */
            uint32_t u = half_bits((float)p);
            to[c] = (bf16)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
            total += p;
        }
        return total;
    }
    real *to = (real *)b->weights + r * ATTENTION_KEYS;
#pragma omp simd reduction(+ : total)
    for (int64_t c = lo; c < hi; c++) {
        real p = vec_exp(row[c] * scale - most);
        to[c] = p;
        total += p;
    }
    return total;
}

/* What was summed so far is brought to the scale of a greater score. */
static void rescale_row(query_block *b, int64_t r, real most) {
    const int64_t d = b->s->head_dim;
    real shrink = b->max[r] > -INFINITY ? vec_exp(b->max[r] - most) : 0, *sum = b->sums + r * d;
#pragma omp simd
    for (int64_t j = 0; j < d; j++) sum[j] *= shrink;
    b->total[r] *= shrink;
    b->max[r] = most;
}

/* Softmax weights of row r for keys c0 .. c0+n, relative to the row's greatest score so far. Keys
 * that the row does not see get weight 0; the first and last vector are filled up with them. */
static void weigh_row(query_block *b, int64_t r, int64_t c0, int64_t n) {
    const attention_shape *s = b->s;
    const int64_t t = b->t0 + r / b->group;
    const int64_t oldest = s->sliding_window > 0 ? t - s->sliding_window + 1 : 0;
    const int64_t lo = size_min(n, size_max(0, oldest - c0));
    const int64_t hi = size_max(lo, size_min(n, t + 1 - c0));
    const int64_t first = lo / LANES * LANES, last = size_ceil_div(hi, LANES) * LANES;
    real *row = b->scores + r * ATTENTION_KEYS, greatest = -INFINITY;
    const size_t factor = compute_factor_bytes(s->compute);
    char *weights = (char *)b->weights + (size_t)(r * ATTENTION_KEYS) * factor;
    if (lo < hi) {
        for (int64_t c = first; c < lo; c++) row[c] = -INFINITY;
        for (int64_t c = hi; c < last; c++) row[c] = -INFINITY;
#pragma omp simd reduction(max : greatest)
        for (int64_t c = first; c < last; c++) greatest = row[c] > greatest ? row[c] : greatest;
        greatest *= b->scale;
        if (greatest > b->max[r]) rescale_row(b, r, greatest);
        b->total[r] += exponentials(b, r, first, last, b->max[r]);
    }
    const int64_t from = lo < hi ? first : n, to = lo < hi ? last : n;
    memset(weights, 0, (size_t)from * factor);
    if (to < n) memset(weights + (size_t)to * factor, 0, (size_t)(n - to) * factor);
}

void attention_product_f32(const attention_shape *s, gemm_op op_b, int64_t m, int64_t n, int64_t k,
                           const void *a, int64_t lda, const void *b, int64_t ldb, gemm_into into,
                           real *c, int64_t ldc) {
    if (s->compute == COMPUTE_BF16) { /* never in fp64: sums are fp32 */
        gemm_tile_bf16(op_b, m, n, k, a, lda, b, ldb, into, (void *)c, ldc);
        return;
    }
    gemm_tile_f32(GEMM_N, op_b, m, n, k, a, lda, b, ldb, into, c, ldc);
}

static void query_block_init(query_block *b, void *scratch) {
    const int64_t d = b->s->head_dim;
    b->scores = scratch;
    b->sums = b->scores + b->rows * ATTENTION_KEYS;
    b->max = b->sums + b->rows * d;
    b->total = b->max + b->rows;
    b->weights = b->s->compute == COMPUTE_BF16 ? (void *)(b->total + b->rows) : b->scores;
    memset(b->sums, 0, (size_t)(b->rows * d) * sizeof *b->sums);
    for (int64_t r = 0; r < b->rows; r++) {
        b->max[r] = -INFINITY;
        b->total[r] = 0;
    }
}

/* Head kv, queries from t0: all key blocks that any of them sees, in order. */
static void attend(const attention_shape *s, int64_t kv, int64_t t0, const void *q, const void *k,
                   const void *v, real *out, real *lse, void *scratch) {
    const int64_t group = s->heads / s->kv_heads, d = s->head_dim, room = attention_room(s);
    const int64_t t_end = size_min(s->tokens, t0 + attention_block_tokens(s));
    const int64_t oldest = s->sliding_window > 0 ? size_max(0, t0 - s->sliding_window + 1) : 0;
    const size_t row_bytes = (size_t)d * compute_factor_bytes(s->compute);
    query_block b = {.s = s,
                     .group = group,
                     .t0 = t0,
                     .rows = (t_end - t0) * group,
                     .scale = (real)attention_scale(s)};
    query_block_init(&b, scratch);
    for (int64_t c0 = oldest / ATTENTION_KEYS * ATTENTION_KEYS; c0 < t_end; c0 += ATTENTION_KEYS) {
        const int64_t n = size_min(ATTENTION_KEYS, t_end - c0);
        const size_t at = (size_t)(kv * room + c0) * row_bytes;
        const char *queries = (const char *)q + (size_t)((kv * room + t0) * group) * row_bytes;
        attention_product_f32(s, GEMM_T, b.rows, n, d, queries, d, (const char *)k + at, d,
                              GEMM_SET, b.scores, ATTENTION_KEYS);
        for (int64_t r = 0; r < b.rows; r++) weigh_row(&b, r, c0, n);
        attention_product_f32(s, GEMM_N, b.rows, d, n, b.weights, ATTENTION_KEYS,
                              (const char *)v + at, d, GEMM_ADD, b.sums, d);
    }
    for (int64_t r = 0; r < b.rows; r++) {
        real *to = out + ((t0 - s->first + r / group) * s->heads + kv * group + r % group) * d;
        const real *sum = b.sums + r * d, total = b.total[r];
#pragma omp simd
        for (int64_t j = 0; j < d; j++) to[j] = sum[j] / total;
        if (lse) lse[(kv * room + t0) * group + r] = b.max[r] + logf(total);
    }
}

void attention_f32(const attention_shape *s, const void *q, const void *k, const void *v, real *out,
                   real *lse, void *threads, uint64_t thread_bytes) {
    const int64_t step = attention_block_tokens(s),
                  blocks = size_ceil_div(s->tokens - s->first, step);
    /* the last queries see most keys: begin with them */
#pragma omp parallel for schedule(dynamic)
    for (int64_t u = 0; u < blocks * s->kv_heads; u++) {
        attend(s, u % s->kv_heads, s->first + (blocks - 1 - u / s->kv_heads) * step, q, k, v, out,
               lse, (char *)threads + thread_bytes * (uint64_t)gemm_thread());
    }
}
