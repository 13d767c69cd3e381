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

/* Weights e^(score - most) of columns [lo, hi) as factors, and their sum. Scores may be weights. */
static REAL REAL_FN(exponentials)(const REAL_FN(query_block) * b, int64_t r, int64_t lo, int64_t hi,
                                  REAL most) {
    const REAL *row = b->scores + r * KEY_BLOCK, scale = b->scale;
    REAL total = 0;
#if REAL_BITS == 32
    if (b->s->compute == COMPUTE_BF16) {
        bf16 *to = (bf16 *)b->weights + r * KEY_BLOCK;
#pragma omp simd reduction(+ : total)
        for (int64_t c = lo; c < hi; c++) {
            REAL p = REAL_EXP(row[c] * scale - most);
            /* half_to_bf16 without its care for NaN payloads, which arithmetic does not make */
            uint32_t u = half_bits(p);
            to[c] = (bf16)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
            total += p;
        }
        return total;
    }
#endif
    REAL *to = (REAL *)b->weights + r * KEY_BLOCK;
#pragma omp simd reduction(+ : total)
    for (int64_t c = lo; c < hi; c++) {
        REAL p = REAL_EXP(row[c] * scale - most);
        to[c] = p;
        total += p;
    }
    return total;
}

/* What was summed so far is brought to the scale of a greater score. */
static void REAL_FN(rescale_row)(REAL_FN(query_block) * b, int64_t r, REAL most) {
    const int64_t d = b->s->head_dim;
    REAL shrink = b->max[r] > -INFINITY ? REAL_EXP(b->max[r] - most) : 0, *sum = b->sums + r * d;
#pragma omp simd
    for (int64_t j = 0; j < d; j++) sum[j] *= shrink;
    b->total[r] *= shrink;
    b->max[r] = most;
}

/* Softmax weights of row r for keys c0 .. c0+n, relative to the row's greatest score so far. Keys
 * that the row does not see get weight 0; the first and last vector are filled up with them. */
static void REAL_FN(weigh_row)(REAL_FN(query_block) * b, int64_t r, int64_t c0, int64_t n) {
    const attention_shape *s = b->s;
    const int64_t t = b->t0 + r / b->group;
    const int64_t oldest = s->sliding_window > 0 ? t - s->sliding_window + 1 : 0;
    const int64_t lo = size_min(n, size_max(0, oldest - c0));
    const int64_t hi = size_max(lo, size_min(n, t + 1 - c0));
    const int64_t first = lo / LANES * LANES, last = size_ceil_div(hi, LANES) * LANES;
    REAL *row = b->scores + r * KEY_BLOCK, greatest = -INFINITY;
    const size_t factor = compute_factor_bytes(s->compute);
    char *weights = (char *)b->weights + (size_t)(r * KEY_BLOCK) * factor;
    if (lo < hi) {
        for (int64_t c = first; c < lo; c++) row[c] = -INFINITY;
        for (int64_t c = hi; c < last; c++) row[c] = -INFINITY;
#pragma omp simd reduction(max : greatest)
        for (int64_t c = first; c < last; c++) greatest = row[c] > greatest ? row[c] : greatest;
        greatest *= b->scale;
        if (greatest > b->max[r]) REAL_FN(rescale_row)(b, r, greatest);
        b->total[r] += REAL_FN(exponentials)(b, r, first, last, b->max[r]);
    }
    const int64_t from = lo < hi ? first : n, to = lo < hi ? last : n;
    memset(weights, 0, (size_t)from * factor);
    if (to < n) memset(weights + (size_t)to * factor, 0, (size_t)(n - to) * factor);
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
    b = {
        .s = s, .group = group, .t0 = t0, .rows = (t_end - t0) * group, .scale = (REAL)scale_of(s)};
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
