/* Sums over a column or a row have one thread and one order each. */
#include "model/weight_scale.h"

#include "base/size.h"

#include <math.h>
#include <string.h>

/* One group of a row: c over what the step is made of, at its ends. */
static void range_of_group(const wquant *how, const float *U, int64_t n, double c, float *P) {
    int64_t hi = 0, lo = 0;
    for (int64_t j = 1; j < n; j++) {
        if (U[j] > U[hi]) hi = j;
        if (U[j] < U[lo]) lo = j;
    }
    const double high = fmax((double)U[hi], 0), low = fmin((double)U[lo], 0);
    if (how->symmetric) {
        if (high == 0 && low == 0) return;
        const int64_t at = high >= -low ? hi : lo;
        P[at] = (float)(c / (double)U[at]);
        return;
    }
    if (high > low && high > 0) P[hi] = (float)(c / (high - low));
    if (high > low && low < 0) P[lo] = (float)(-c / (high - low));
}

void weight_terms_range(const wquant *how, const weight_terms *t) {
    const int64_t group = how->group ? how->group : t->cols;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < t->rows; r++) {
        memset(t->P + r * t->cols, 0, (size_t)t->cols * sizeof *t->P);
        for (int64_t at = r * t->cols; at < (r + 1) * t->cols; at += group) {
            double c = 0;
            for (int64_t j = at; j < at + group; j++) c += (double)t->H[j] * (double)t->E[j];
            range_of_group(how, t->U + at, group, c, t->P + at);
        }
    }
}

static double term(const weight_terms *t, int64_t at) {
    return (double)t->P[at] * (double)t->U[at] - (double)t->H[at] * (double)t->E[at];
}

void weight_terms_columns(const weight_terms *t, double *to) {
    enum { SIDE = 16 };
#pragma omp parallel for schedule(static)
    for (int64_t j0 = 0; j0 < t->cols; j0 += SIDE) {
        const int64_t end = size_min(j0 + SIDE, t->cols);
        for (int64_t r = 0; r < t->rows; r++)
            for (int64_t j = j0; j < end; j++) to[j] += term(t, r * t->cols + j);
    }
}

/* Row i of A X is sum_a A_ia X_a, so its product with that of Y is A_i (X Y^T) A_i^T. */
void weight_terms_rotated_rows(const weight_terms *t, int64_t first, int64_t d, const float *A,
                               double sign, double *to) {
    for (int64_t a = 0; a < d; a++) {
        for (int64_t b = 0; b < d; b++) {
            const int64_t x = (first + a) * t->cols, y = (first + b) * t->cols;
            double sum = 0;
            for (int64_t j = 0; j < t->cols; j++)
                sum += (double)t->P[x + j] * (double)t->U[y + j] -
                       (double)t->H[x + j] * (double)t->E[y + j];
            for (int64_t i = 0; i < d; i++)
                to[i] += sign * (double)A[i * d + a] * sum * (double)A[i * d + b];
        }
    }
}

/* ---- what stands on a linear ---- */

enum { Q, K, V, O, GATE, UP, DOWN };

void weight_scale_rows(const scale_vector *v, int64_t d, int64_t share, scale_way way, float *m,
                       int64_t rows, int64_t cols) {
    if (!v) return;
    const float *s = way == SCALE_OVER ? v->inverse32 : v->s32;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        float *row = m + r * cols;
        const float own = s[r / d / share * d + r % d];
        for (int64_t j = 0; j < cols; j++) row[j] *= own;
    }
}

void weight_scale_columns(const scale_vector *v, int64_t d, int64_t share, scale_way way, float *m,
                          int64_t rows, int64_t cols) {
    if (!v) return;
    const float *s = way == SCALE_OVER ? v->inverse32 : v->s32;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t h = 0; h < cols / d; h++)
            scale_times_f32(s + h / share * d, d, m + r * cols + h * d);
}

weight_scales weight_scales_of(const llama_config *c, int k) {
    weight_scales l = {SCALE_KINDS, SCALE_KINDS, SCALE_KINDS, k == Q ? SCALE_TIMES : SCALE_OVER, 1};
    if (k == V) l.out = SCALE_VO;
    if ((k == Q || k == K) && !c->qk_norm) l.out = SCALE_QK;
    if (k == UP) l.out = SCALE_UD;
    if (k == O) l.in = SCALE_VO;
    if (k == DOWN) l.in = SCALE_UD;
    if (k == Q || k == K || k == V) l.after = SCALE_ATTN;
    if (k == GATE || k == UP) l.after = SCALE_MLP;
    if (k == Q || k == O) l.share = c->heads / c->kv_heads;
    return l;
}

const scale_vector *weight_scale_at(const llama_sites *s, scale_kind kind, int64_t layer) {
    return kind == SCALE_KINDS ? NULL : scale_set_get(s->scales, kind, layer);
}

int64_t weight_scale_part(const llama_config *c, scale_kind kind) {
    return kind == SCALE_UD ? c->intermediate : c->head_dim;
}
