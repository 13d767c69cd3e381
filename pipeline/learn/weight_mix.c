/* Rows of weights whose outputs a rotation mixes: forward through both rotations, ranges, and back.
 */
#include "pipeline/learn/weight_mix.h"

#include "base/gemm.h"
#include "base/size.h"
#include "pipeline/learn/weight_rows_internal.h"

#include <math.h>
#include <string.h>

/* What the functions below share of one call. */
typedef struct mixing {
    weight_rows *w;
    const weight_matrix *m;
    const bf16 *R1;
    int64_t n, d, cols;
    int64_t rows; /* at hand */
    float weight; /* of each */
    range_batch *b;
    bool loss_alone;
    double *G2; /* of the layer */
} mixing;

static int64_t r2_of_kv_head(const mixing *x, int64_t kv_head) {
    return x->w->o.r2_heads > 1 ? kv_head : 0;
}

/* R2 that rotates query head h of the inputs of o. */
static int64_t r2_of_head(const mixing *x, int64_t h) {
    const llama_config *cfg = x->w->stage->cfg;
    return r2_of_kv_head(x, h / (cfg->heads / cfg->kv_heads));
}

/* R2 on the outputs of this part of v. */
static int64_t r2_of_part(const mixing *x) {
    return r2_of_kv_head(x, x->m->row0 / x->d);
}

/* ---- forward: z = A^T W, u = z B ---- */

/* Columns of A as rows. */
static void take_columns(const mixing *x) {
    const weight_mix *k = &x->w->mix;
    const int64_t n = x->m->rows, dd = x->d * x->d;
    const float *R2 = x->w->R2 + (x->m->out == SIDE_R2 ? r2_of_part(x) * dd : 0);
#pragma omp parallel for schedule(static)
    for (int64_t s = 0; s < x->rows; s++)
        for (int64_t j = 0; j < n; j++)
            k->a[s * n + j] =
                x->m->out == SIDE_R1 ? x->R1[j * n + k->at[s]] : half_to_bf16(R2[j * n + k->at[s]]);
}

static void mix_outputs(const mixing *x) {
    const weight_matrix *m = x->m;
    const weight_mix *k = &x->w->mix;
    if (m->out == SIDE_NONE) {
        for (int64_t s = 0; s < x->rows; s++)
            weight_rows_take(m, k->at[s], m->scale, k->z + s * x->cols);
        return;
    }
    take_columns(x);
    const bf16 *W = (const bf16 *)m->w->data + m->row0 * x->cols;
    gemm_bf16(GEMM_N, x->rows, x->cols, m->rows, k->a, m->rows, W, x->cols, GEMM_SET, k->z,
              x->cols);
}

/* v times gain and scale; in mix_outputs' rows and again on the way back. */
static void scale_inputs(const mixing *x, float *v) {
    const float scale = (float)x->m->scale, *gain = x->m->gain;
#pragma omp parallel for schedule(static)
    for (int64_t s = 0; s < x->rows; s++)
        for (int64_t j = 0; j < x->cols; j++) v[s * x->cols + j] *= gain ? gain[j] * scale : scale;
}

/* to = from B, or from B^T. */
static void rotate_inputs(const mixing *x, const float *from, float *to, bool inverse) {
    const weight_mix *k = &x->w->mix;
    const int64_t n = x->rows * x->cols, d = x->d;
    if (x->m->in == SIDE_R1) {
        half_array_to_bf16(from, n, k->a);
        gemm_bf16(gemm_op_of(inverse), x->rows, x->n, x->n, k->a, x->n, x->R1, x->n, GEMM_SET, to,
                  x->n);
    } else if (x->m->in == SIDE_R2) {
        for (int64_t h = 0; h < x->cols / d; h++)
            gemm_f32(GEMM_N, gemm_op_of(inverse), x->rows, d, d, from + h * d, x->cols,
                     x->w->R2 + r2_of_head(x, h) * d * d, d, GEMM_SET, to + h * d, x->cols);
    } else {
        memcpy(to, from, (size_t)n * sizeof *to);
        if (x->m->in == SIDE_R4) rotation_apply_f32(x->w->o.R4, to, x->rows, x->cols, inverse);
    }
}

/* ---- the ranges: u becomes du ---- */

static int64_t take_ranges(const mixing *x) {
    const wquant *how = &x->w->o.how;
    const range_rule rule = {.symmetric = how->symmetric, .include_zero = true};
    const int64_t group = wquant_group(how, x->cols);
    const weight_mix *k = &x->w->mix;
    int64_t loss = 0;
#pragma omp parallel for schedule(static)
    for (int64_t s = 0; s < x->rows; s++) {
        k->loss[s] = 0;
        for (int64_t j = 0; j < x->cols; j += group) {
            float *u = k->u + s * x->cols + j;
            const range_ends e = range_ends_of(u, group, rule);
            k->loss[s] +=
                llrint((double)x->weight * (double)e.range * (double)e.range / RANGE_LOSS_UNIT);
            memset(u, 0, (size_t)group * sizeof *u);
            for (int i = 0; i < 2; i++)
                if (e.channel[i] >= 0)
                    u[e.channel[i]] += (float)(2 * e.sign[i]) * x->weight * e.range;
        }
    }
    for (int64_t s = 0; s < x->rows; s++) loss += k->loss[s];
    return loss;
}

/* ---- backward ---- */

/* dL/dB += z^T du, rows in order. */
static void add_input_gradient(const mixing *x) {
    const weight_mix *k = &x->w->mix;
    const int64_t d = x->d;
    for (int64_t s = 0; s < x->rows; s++) {
        const float *z = k->z + s * x->cols, *du = k->u + s * x->cols;
        for (int64_t c = 0; c < x->cols; c++) {
            if (du[c] == 0) continue;
            if (x->m->in == SIDE_R1) {
                const double f = (double)du[c] / x->b->unit;
                for (int64_t i = 0; i < x->n; i++)
                    x->b->grad[c * x->n + i] += llrint((double)z[i] * f);
            } else {
                const int64_t h = c / d;
                double *G = x->G2 + r2_of_head(x, h) * d * d;
                for (int64_t i = 0; i < d; i++)
                    G[i * d + c % d] += (double)z[h * d + i] * (double)du[c];
            }
        }
    }
}

/* dL/dA: column at[s] += W (B du^T). */
static void add_output_gradient(const mixing *x) {
    const weight_matrix *m = x->m;
    const weight_mix *k = &x->w->mix;
    const bf16 *W = (const bf16 *)m->w->data + m->row0 * x->cols;
    rotate_inputs(x, k->u, k->z, true);
    scale_inputs(x, k->z);
    half_array_to_bf16(k->z, x->rows * x->cols, k->a);
    gemm_bf16(GEMM_T, x->rows, m->rows, x->cols, k->a, x->cols, W, x->cols, GEMM_SET, k->da,
              m->rows);
    if (m->out == SIDE_R1) {
#pragma omp parallel for schedule(static)
        for (int64_t s = 0; s < x->rows; s++) /* rows of grad are columns of R1, no two the same */
            for (int64_t j = 0; j < m->rows; j++)
                x->b->grad[k->at[s] * x->n + j] +=
                    llrint((double)k->da[s * m->rows + j] / x->b->unit);
        return;
    }
    double *G = x->G2 + r2_of_part(x) * x->d * x->d;
    for (int64_t s = 0; s < x->rows; s++)
        for (int64_t j = 0; j < x->d; j++) G[j * x->d + k->at[s]] += (double)k->da[s * x->d + j];
}

static void mix_rows(mixing *x) {
    const weight_matrix *m = x->m;
    const weight_mix *k = &x->w->mix;
    mix_outputs(x);
    if (m->out != SIDE_NONE) scale_inputs(x, k->z);
    rotate_inputs(x, k->z, k->u, false);
    x->b->loss += take_ranges(x);
    if (x->loss_alone) return;
    if (m->in == SIDE_R1 || m->in == SIDE_R2) add_input_gradient(x);
    if (m->out != SIDE_NONE) add_output_gradient(x);
}

void weight_rows_mix(weight_rows *w, int64_t step, float factor, const bf16 *R1, const double *R2,
                     range_batch *b, double *G2) {
    const llama_config *cfg = w->stage->cfg;
    const int64_t d = cfg->head_dim, each = w->o.r2_heads * d * d;
    for (int64_t i = 0; i < w->n_matrices; i++) {
        const weight_matrix *m = &w->m[i];
        if (!m->count || m->edges) continue;
        mixing x = {.w = w,
                    .m = m,
                    .R1 = R1,
                    .n = cfg->hidden,
                    .d = d,
                    .cols = m->w->cols,
                    .weight = factor * m->weight,
                    .b = b,
                    .loss_alone = !b->grad && !G2,
                    .G2 = G2 ? G2 + m->layer * each : NULL};
        for (int64_t j = 0; j < each; j++) w->R2[j] = (float)R2[m->layer * each + j];
        /* row i of the step is (i rows + first) / count: all different, all equally likely */
        const int64_t first =
            (int64_t)(rng_u64(w->o.seed, RNG_WEIGHT_ROWS, weight_rows_index(w, m, step, 0)) %
                      (uint64_t)m->rows);
        for (int64_t from = 0; from < m->count; from += MIX_ROWS) {
            x.rows = size_min(MIX_ROWS, m->count - from);
            for (int64_t s = 0; s < x.rows; s++)
                w->mix.at[s] = (int32_t)(((from + s) * m->rows + first) / m->count);
            mix_rows(&x);
        }
    }
}
