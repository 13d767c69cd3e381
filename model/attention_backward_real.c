/* The backward of attention. Scores are made again, transposed: keys are rows, so that every
 * product takes its factors as they lie. P = exp(scale K Q^T - lse)    dP = V dO^T      dS = scale
 * P (dP - dot) dV += P dO                    dK += dS Q       dQ^T += K^T dS (Dao:
 * FlashAttention-2, 2023, algorithm 2.) A unit is one head and one part of the keys. */
#include "model/attention_internal.h"

#include "base/gemm.h"
#include "base/size.h"
#include "base/vecmath.h"
#include "model/norm.h"

#include <math.h>
#include <string.h>

#include "base/real.h"

typedef struct backward_unit {
    const attention_shape *s;
    int64_t group, room, kv, c0, n; /* keys c0 .. c0 + n of head kv */
    real scale;
    const char *q, *k, *v, *d_out;
    const real *lse, *dot;
    real *dq, *dk, *dv;
    real *p, *ds;      /* [n, rows] */
    void *pf, *dsf;    /* the same as factors; p and ds themselves where reals are factors */
    void *k_t;         /* factors [head_dim, n]: keys transposed */
    real *dk_n, *dv_n; /* [n, head_dim] */
} backward_unit;

/* Scores and their gradient for the queries t0 .. of `rows` rows, as factors. */
static void backward_weigh(const backward_unit *u, int64_t t0, int64_t rows) {
    const attention_shape *s = u->s;
    const real *lse = u->lse + (u->kv * u->room + t0) * u->group;
    const real *dot = u->dot + (u->kv * u->room + t0) * u->group;
    const real scale = u->scale;
    for (int64_t c = 0; c < u->n; c++) {
        const int64_t key = u->c0 + c;
        int64_t lo = size_min(rows, size_max(0, (key - t0) * u->group)), hi = rows;
        if (s->sliding_window > 0) {
            hi = size_max(lo, size_min(rows, (key + s->sliding_window - t0) * u->group));
        }
        real *p = u->p + c * rows, *ds = u->ds + c * rows;
        for (int64_t r = 0; r < lo; r++) p[r] = ds[r] = 0;
        for (int64_t r = hi; r < rows; r++) p[r] = ds[r] = 0;
#pragma omp simd
        for (int64_t r = lo; r < hi; r++) {
            real w = vec_exp(p[r] * scale - lse[r]);
            ds[r] = scale * w * (ds[r] - dot[r]);
            p[r] = w;
        }
        if (u->pf != u->p) {
            norm_factors_f32(p, rows, NULL, COMPUTE_BF16, (bf16 *)u->pf + c * rows);
            norm_factors_f32(ds, rows, NULL, COMPUTE_BF16, (bf16 *)u->dsf + c * rows);
        }
    }
}

/* One block of queries against the unit's keys; `first`: dq holds nothing yet. */
static void backward_block(const backward_unit *u, int64_t t0, int64_t rows, bool first) {
    const attention_shape *s = u->s;
    const int64_t d = s->head_dim;
    const size_t row_bytes = (size_t)d * compute_factor_bytes(s->compute);
    const char *q = u->q + (size_t)((u->kv * u->room + t0) * u->group) * row_bytes;
    const char *d_out = u->d_out + (size_t)((u->kv * u->room + t0) * u->group) * row_bytes;
    const char *k = u->k + (size_t)(u->kv * u->room + u->c0) * row_bytes;
    const char *v = u->v + (size_t)(u->kv * u->room + u->c0) * row_bytes;
    real *dq = u->dq + ((u->kv * (s->tokens - s->first) + t0 - s->first) * u->group) * d;
    attention_product_f32(s, GEMM_T, u->n, rows, d, k, d, q, d, GEMM_SET, u->p, rows);
    attention_product_f32(s, GEMM_T, u->n, rows, d, v, d, d_out, d, GEMM_SET, u->ds, rows);
    backward_weigh(u, t0, rows);
    attention_product_f32(s, GEMM_N, u->n, d, rows, u->pf, rows, d_out, d, GEMM_ADD, u->dv_n, d);
    attention_product_f32(s, GEMM_N, u->n, d, rows, u->dsf, rows, q, d, GEMM_ADD, u->dk_n, d);
    attention_product_f32(s, GEMM_N, d, rows, u->n, u->k_t, u->n, u->dsf, rows,
                          gemm_into_of(!first), dq, rows);
}

static void backward_unit_buffers(backward_unit *u, void *scratch) {
    const int64_t most = attention_block_tokens(u->s) * u->group, d = u->s->head_dim;
    const bool half = u->s->compute == COMPUTE_BF16;
    u->p = scratch;
    u->ds = u->p + ATTENTION_KEYS * most;
    u->dk_n = u->ds + ATTENTION_KEYS * most;
    u->dv_n = u->dk_n + ATTENTION_KEYS * d;
    real *end = u->dv_n + ATTENTION_KEYS * d;
    u->k_t = end;
    u->pf = half ? (void *)((bf16 *)u->k_t + ATTENTION_KEYS * d) : u->p;
    u->dsf = half ? (void *)((bf16 *)u->pf + ATTENTION_KEYS * most) : u->ds;
}

static void transpose_keys(const backward_unit *u) {
    const int64_t d = u->s->head_dim;
    const size_t size = compute_factor_bytes(u->s->compute);
    const char *k = u->k + (size_t)((u->kv * u->room + u->c0) * d) * size;
    for (int64_t c = 0; c < u->n; c++) {
        for (int64_t i = 0; i < d; i++) {
            if (size == sizeof(real)) {
                ((real *)u->k_t)[i * u->n + c] = ((const real *)k)[c * d + i];
            } else {
                ((bf16 *)u->k_t)[i * u->n + c] = ((const bf16 *)k)[c * d + i];
            }
        }
    }
}

/* Keys c0 .. c0 + n against all queries that see them. */
static void backward_keys(backward_unit *u, bool *touched) {
    const attention_shape *s = u->s;
    const int64_t d = s->head_dim, step = attention_block_tokens(s);
    const size_t bytes = (size_t)(u->n * d) * sizeof(real);
    memset(u->dk_n, 0, bytes);
    memset(u->dv_n, 0, bytes);
    transpose_keys(u);
    for (int64_t t0 = s->first, b = 0; t0 < s->tokens; t0 += step, b++) {
        const int64_t t_end = size_min(s->tokens, t0 + step);
        if (t_end <= u->c0) continue;
        if (s->sliding_window > 0 && t0 >= u->c0 + u->n - 1 + s->sliding_window) continue;
        backward_block(u, t0, (t_end - t0) * u->group, !touched[b]);
        touched[b] = true;
    }
    real *dk = u->dk + (u->kv * u->room + u->c0) * d, *dv = u->dv + (u->kv * u->room + u->c0) * d;
#pragma omp simd
    for (int64_t i = 0; i < u->n * d; i++) {
        dk[i] += u->dk_n[i];
        dv[i] += u->dv_n[i];
    }
}

/* Part `part` of the keys of head kv. */
static void backward_part(backward_unit u, int64_t part, void *scratch) {
    const attention_shape *s = u.s;
    const int64_t step = attention_block_tokens(s), keys = attention_part_keys(s);
    const int64_t blocks = size_ceil_div(s->tokens - s->first, step);
    const int64_t end = size_min(s->tokens, (part + 1) * keys);
    bool *touched = scratch;
    memset(touched, 0, (size_t)blocks * sizeof *touched);
    backward_unit_buffers(&u, (char *)scratch + attention_touched_bytes(s));
    u.dq += part * s->heads * s->head_dim * (s->tokens - s->first);
    for (u.c0 = part * keys; u.c0 < end; u.c0 += ATTENTION_KEYS) {
        u.n = size_min(ATTENTION_KEYS, end - u.c0);
        backward_keys(&u, touched);
    }
    for (int64_t b = 0; b < blocks; b++) {
        if (touched[b]) continue;
        const int64_t t0 = b * step, n = size_min(step, s->tokens - s->first - t0);
        real *dq = u.dq + ((u.kv * (s->tokens - s->first) + t0) * u.group) * s->head_dim;
        memset(dq, 0, (size_t)(n * u.group * s->head_dim) * sizeof *dq);
    }
}

void attention_backward_f32(const attention_shape *s, const void *q, const void *k, const void *v,
                            const real *lse, const void *d_out, const real *dot, real *dq, real *dk,
                            real *dv, void *threads, uint64_t thread_bytes) {
    const int64_t parts = attention_backward_parts(s);
    const backward_unit all = {.s = s,
                               .group = s->heads / s->kv_heads,
                               .room = attention_room(s),
                               .scale = (real)attention_scale(s),
                               .q = q,
                               .k = k,
                               .v = v,
                               .d_out = d_out,
                               .lse = lse,
                               .dot = dot,
                               .dq = dq,
                               .dk = dk,
                               .dv = dv};
    /* the first keys are seen by most queries: begin with them */
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < parts * s->kv_heads; i++) {
        backward_unit u = all;
        u.kv = i % s->kv_heads;
        backward_part(u, i / s->kv_heads, (char *)threads + thread_bytes * (uint64_t)gemm_thread());
    }
}

void attention_backward_query_f32(const attention_shape *s, const real *dq, int64_t t, real *to) {
    const int64_t group = s->heads / s->kv_heads, d = s->head_dim, step = attention_block_tokens(s);
    const int64_t queries = s->tokens - s->first, parts = attention_backward_parts(s);
    const int64_t b0 = (t - s->first) / step * step, rows = size_min(step, queries - b0) * group;
    memset(to, 0, (size_t)(s->heads * d) * sizeof *to);
    for (int64_t p = 0; p < parts; p++) {
        if (p * attention_part_keys(s) > t) break; /* zero: these keys come later */
        for (int64_t h = 0; h < s->heads; h++) {
            const real *block = dq + p * s->heads * d * queries +
                                ((h / group) * queries + b0) * group * d +
                                (t - s->first - b0) * group + h % group;
            for (int64_t i = 0; i < d; i++) to[h * d + i] += block[i * rows];
        }
    }
}
