/* Products W^T W (or W W^T) in bands and fixed chunks, rounded to fixed point and added as
 * integers over layers and ranks. */
#include "pipeline/learn/weight_start.h"

#include "base/gemm.h"
#include "base/mem.h"
#include "base/size.h"

#include <math.h>
#include <string.h>

enum {
    BAND = 1024,  /* rows of the moment that are made and summed at a time */
    CHUNK = 1024, /* rows or columns of a matrix that are widened at a time */
    LINEARS = 7,
};

/* One linear: what it has of the residual stream stands in its columns, or (writes) in its rows. */
typedef struct linear {
    const wmat *w;
    const float *gain; /* of its columns; NULL: ones */
    bool writes;
} linear;

static void linears_of(const llama_layer *l, linear *out) {
    const linear all[LINEARS] = {{&l->q, l->attn_norm, false},   {&l->k, l->attn_norm, false},
                                 {&l->v, l->attn_norm, false},   {&l->o, NULL, true},
                                 {&l->gate, l->mlp_norm, false}, {&l->up, l->mlp_norm, false},
                                 {&l->down, NULL, true}};
    memcpy(out, all, sizeof all);
}

/* Rows [at, at + count) of a reader with its gains as [count, n], or columns of a writer as
 * [n, count]. */
static void widen(const linear *l, int64_t at, int64_t count, float *to) {
    const int64_t n = l->writes ? l->w->rows : l->w->cols;
    if (l->writes) {
        wmat_expand_f32(l->w, 0, n, at, count, to, count);
        return;
    }
    wmat_expand_f32(l->w, at, count, 0, n, to, n);
    for (int64_t i = 0; l->gain && i < count; i++)
        for (int64_t j = 0; j < n; j++) to[i * n + j] *= l->gain[j];
}

/* Rows [row, row + b) of the moment of one linear, in fp32 by fixed chunks: the unit that is summed
 * exactly over the model. */
static void moment_of(const linear *l, int64_t row, int64_t b, float *wide, float *one) {
    const int64_t n = l->writes ? l->w->rows : l->w->cols,
                  all = l->writes ? l->w->cols : l->w->rows;
    for (int64_t at = 0; at < all; at += CHUNK) {
        const int64_t m = size_min(CHUNK, all - at);
        widen(l, at, m, wide);
        if (l->writes)
            gemm_f32(GEMM_N, GEMM_T, b, n, m, wide + row * m, m, wide, m, gemm_into_of(at > 0), one,
                     n);
        else
            gemm_f32(GEMM_T, GEMM_N, b, n, m, wide + row, n, wide, n, gemm_into_of(at > 0), one, n);
    }
}

/* |W G|_F^2: no entry of its moment is larger. */
static double square_of(const linear *l, float *wide) {
    const int64_t n = l->writes ? l->w->rows : l->w->cols,
                  all = l->writes ? l->w->cols : l->w->rows;
    double sum = 0;
    for (int64_t at = 0; at < all; at += CHUNK) {
        const int64_t m = size_min(CHUNK, all - at);
        widen(l, at, m, wide);
        for (int64_t k = 0; k < m * n; k++) sum += (double)wide[k] * wide[k];
    }
    return sum;
}

typedef struct buffers {
    float *wide, *one;
    int64_t *sum;
} buffers;

static err buffers_init(int64_t n, buffers *b) {
    const int64_t band = size_min(BAND, n);
    float *wide = NULL, *one = NULL;
    int64_t *sum = NULL;
    err e = MEM_NEW(&wide, CHUNK * n, "weights in fp32");
    if (!e.code) e = MEM_NEW(&one, band * n, "second moment");
    if (!e.code) e = MEM_NEW(&sum, band * n, "second moment");
    *b = (buffers){wide, one, sum};
    return e;
}

static void buffers_clear(buffers *b) {
    mem_free(b->wide);
    mem_free(b->one);
    mem_free(b->sum);
}

/* Collective. Bits of the fixed point: the sum over the model stays below 2^62. */
static int exponent_of(const comm *c, const llama_stage *stage, float *wide) {
    double most = 0;
    linear l[LINEARS];
    for (int64_t i = 0; i < stage->n_layers; i++) {
        linears_of(&stage->layers[i], l);
        for (int k = 0; k < LINEARS; k++) most = fmax(most, square_of(&l[k], wide));
    }
    comm_max_f64(c, &most, 1);
    if (!(most > 0)) return 0;
    return 62 - (int)ceil(log2(1.1 * most * (double)(LINEARS * stage->cfg->layers)));
}

static void sum_band(const llama_stage *stage, int64_t row, int64_t b, int exponent, buffers *k) {
    const int64_t n = stage->cfg->hidden;
    linear l[LINEARS];
    memset(k->sum, 0, (size_t)(b * n) * sizeof *k->sum);
    for (int64_t i = 0; i < stage->n_layers; i++) {
        linears_of(&stage->layers[i], l);
        for (int j = 0; j < LINEARS; j++) {
            moment_of(&l[j], row, b, k->wide, k->one);
#pragma omp parallel for
            for (int64_t e = 0; e < b * n; e++) k->sum[e] += llrint(ldexp(k->one[e], exponent));
        }
    }
}

err weight_start_moment_r1(const comm *c, const llama_stage *stage, double *out) {
    const int64_t n = stage->cfg->hidden;
    buffers k;
    err e = comm_agree(c, buffers_init(n, &k), "moments of weights", NULL);
    const int exponent = e.code ? 0 : exponent_of(c, stage, k.wide);
    for (int64_t row = 0; row < n && !e.code; row += BAND) {
        const int64_t b = size_min(BAND, n - row);
        sum_band(stage, row, b, exponent, &k);
        comm_sum_i64(c, k.sum, b * n);
        for (int64_t i = 0; i < b * n; i++) out[row * n + i] = ldexp((double)k.sum[i], -exponent);
    }
    for (int64_t i = 0; i < n && !e.code; i++) /* products of two halves may round apart */
        for (int64_t j = 0; j < i; j++) {
            const double m = 0.5 * (out[i * n + j] + out[j * n + i]);
            out[i * n + j] = out[j * n + i] = m;
        }
    buffers_clear(&k);
    return e;
}

err weight_start_moment_r1_dist(const llama_stage *stage, dmat *out) {
    const comm *c = dgrid_comm(dmat_grid(out));
    const int64_t n = stage->cfg->hidden;
    buffers k;
    err e = comm_agree(c, buffers_init(n, &k), "moments of weights", NULL);
    const int exponent = e.code ? 0 : exponent_of(c, stage, k.wide);
    for (int64_t row = 0; row < n && !e.code; row += BAND) {
        const int64_t b = size_min(BAND, n - row);
        sum_band(stage, row, b, exponent, &k);
        dmat_sum_rows_i64(out, row, b, k.sum, -exponent, sizeof *k.sum);
    }
    buffers_clear(&k);
    return e;
}

err weight_start_moment_r2(const llama_stage *stage, int64_t i, int64_t kv_head, double *out) {
    const llama_config *cfg = stage->cfg;
    const llama_layer *l = &stage->layers[i];
    const int64_t d = cfg->head_dim, n = cfg->hidden, per = cfg->heads / cfg->kv_heads,
                  first = kv_head < 0 ? 0 : kv_head, last = kv_head < 0 ? cfg->kv_heads : first + 1;
    double *wide;
    err e = MEM_NEW(&wide, d * n, "weights of a head");
    if (e.code) return e;
    memset(out, 0, (size_t)(d * d) * sizeof *out);
    for (int64_t h = first; h < last; h++) {
        wmat_expand_f64(&l->v, h * d, d, 0, n, wide, n);
        for (int64_t r = 0; r < d; r++)
            for (int64_t j = 0; j < n; j++) wide[r * n + j] *= (double)l->attn_norm[j];
        gemm_f64(GEMM_N, GEMM_T, d, d, n, wide, n, wide, n, GEMM_ADD, out, d);
    }
    for (int64_t h = first * per; h < last * per; h++) {
        wmat_expand_f64(&l->o, 0, n, h * d, d, wide, d);
        gemm_f64(GEMM_T, GEMM_N, d, d, n, wide, d, wide, d, GEMM_ADD, out, d);
    }
    mem_free(wide);
    return e;
}
