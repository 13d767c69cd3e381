/* attention_body - the body of attention.c for one type of reals. */
#include "model/real.h"

/* One block of queries: its rows are (token, head of the group), token slow. */
typedef struct REAL_FN(query_block) {
    const attention_shape *s;
    int64_t group, t0, rows;
    REAL scale;
    REAL *scores;      /* [rows, KEY_BLOCK] */
    void *weights;     /* [rows, KEY_BLOCK] factors: scores itself, or a bf16 copy */
    REAL *sums;        /* [rows, head_dim] */
    REAL *max, *total; /* [rows] */
} REAL_FN(query_block);

/* Softmax weights of row r for keys c0 .. c0+n, relative to the row's greatest score so far; what
 * was summed before is scaled to it. */
static void REAL_FN(weigh_row)(REAL_FN(query_block) * b, int64_t r, int64_t c0, int64_t n) {
    const attention_shape *s = b->s;
    const int64_t t = b->t0 + r / b->group;
    const int64_t oldest = s->sliding_window > 0 ? t - s->sliding_window + 1 : 0;
    const int64_t lo = size_min(n, size_max(0, oldest - c0)),
                  hi = size_max(lo, size_min(n, t + 1 - c0));
    REAL *row = b->scores + r * KEY_BLOCK, most = b->max[r], total = 0;
    const REAL scale = b->scale;
#pragma omp simd reduction(max : most)
    for (int64_t c = lo; c < hi; c++) {
        REAL v = row[c] * scale;
        most = v > most ? v : most;
    }
#pragma omp simd reduction(+ : total)
    for (int64_t c = lo; c < hi; c++) {
        REAL p = REAL_EXP(row[c] * scale - most);
        row[c] = p;
        total += p;
    }
    for (int64_t c = 0; c < lo; c++) row[c] = 0;
    for (int64_t c = hi; c < n; c++) row[c] = 0;
    if (b->weights != b->scores) {
        norm_factors_f32((const float *)row, n, NULL, COMPUTE_BF16,
                         (bf16 *)b->weights + r * KEY_BLOCK);
    }
    if (most > b->max[r]) {
        REAL shrink = b->max[r] > -INFINITY ? REAL_EXP(b->max[r] - most) : 0,
             *sum = b->sums + r * s->head_dim;
#pragma omp simd
        for (int64_t d = 0; d < s->head_dim; d++) sum[d] *= shrink;
        b->total[r] *= shrink;
        b->max[r] = most;
    }
    b->total[r] += total;
}

static void REAL_FN(scores_product)(const REAL_FN(query_block) * b, const char *q, const char *k,
                                    int64_t n) {
    const int64_t d = b->s->head_dim;
#if REAL_BITS == 32
    if (b->s->compute == COMPUTE_BF16) {
        gemm_tile_bf16(true, b->rows, n, d, (const bf16 *)q, d, (const bf16 *)k, d, false,
                       b->scores, KEY_BLOCK);
        return;
    }
#endif
    REAL_FN(gemm_tile)
    (false, true, b->rows, n, d, (const REAL *)q, d, (const REAL *)k, d, false, b->scores,
     KEY_BLOCK);
}

static void REAL_FN(values_product)(const REAL_FN(query_block) * b, const char *v, int64_t n) {
    const int64_t d = b->s->head_dim;
#if REAL_BITS == 32
    if (b->s->compute == COMPUTE_BF16) {
        gemm_tile_bf16(false, b->rows, d, n, b->weights, KEY_BLOCK, (const bf16 *)v, d, true,
                       b->sums, d);
        return;
    }
#endif
    REAL_FN(gemm_tile)
    (false, false, b->rows, d, n, b->weights, KEY_BLOCK, (const REAL *)v, d, true, b->sums, d);
}

static void REAL_FN(query_block_init)(REAL_FN(query_block) * b, void *scratch) {
    const int64_t d = b->s->head_dim;
    b->scores = scratch;
    b->sums = b->scores + b->rows * KEY_BLOCK;
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
static void REAL_FN(attend)(const attention_shape *s, int64_t kv, int64_t t0, const void *q,
                            const void *k, const void *v, REAL *out, REAL *lse, void *scratch) {
    const int64_t group = s->heads / s->kv_heads, d = s->head_dim, room = room_of(s);
    const int64_t t_end = size_min(s->tokens, t0 + query_block_tokens(s));
    const int64_t oldest = s->sliding_window > 0 ? size_max(0, t0 - s->sliding_window + 1) : 0;
    const size_t row_bytes = (size_t)d * compute_factor_bytes(s->compute);
    REAL_FN(query_block)
    b = {.s = s,
         .group = group,
         .t0 = t0,
         .rows = (t_end - t0) * group,
         .scale = (REAL)(1 / sqrt((double)d))};
    REAL_FN(query_block_init)(&b, scratch);
    for (int64_t c0 = oldest / KEY_BLOCK * KEY_BLOCK; c0 < t_end; c0 += KEY_BLOCK) {
        const int64_t n = size_min(KEY_BLOCK, t_end - c0);
        const size_t at = (size_t)(kv * room + c0) * row_bytes;
        REAL_FN(scores_product)
        (&b, (const char *)q + (size_t)((kv * room + t0) * group) * row_bytes, (const char *)k + at,
         n);
        for (int64_t r = 0; r < b.rows; r++) REAL_FN(weigh_row)(&b, r, c0, n);
        REAL_FN(values_product)(&b, (const char *)v + at, n);
    }
    for (int64_t r = 0; r < b.rows; r++) {
        REAL *to = out + ((t0 - s->first + r / group) * s->heads + kv * group + r % group) * d;
        const REAL *sum = b.sums + r * d, total = b.total[r];
#pragma omp simd
        for (int64_t j = 0; j < d; j++) to[j] = sum[j] / total;
        if (lse) lse[(kv * room + t0) * group + r] = b.max[r] + REAL_LOG(total);
    }
}

void REAL_FN(attention)(const attention_shape *s, const void *q, const void *k, const void *v,
                        REAL *out, REAL *lse, void *threads, uint64_t thread_bytes) {
    const int64_t step = query_block_tokens(s), blocks = size_ceil_div(s->tokens - s->first, step);
    /* the last queries see most keys: begin with them */
#pragma omp parallel for schedule(dynamic)
    for (int64_t u = 0; u < blocks * s->kv_heads; u++) {
        REAL_FN(attend)
        (s, u % s->kv_heads, s->first + (blocks - 1 - u / s->kv_heads) * step, q, k, v, out, lse,
         (char *)threads + thread_bytes * (uint64_t)gemm_thread());
    }
}
