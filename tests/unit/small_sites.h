/* small_sites - what tests of sites share: shapes, products in plain loops, scales. For tests
 * alone; includes cmocka. */
#ifndef SPINSHARD_TESTS_UNIT_SMALL_SITES_H
#define SPINSHARD_TESTS_UNIT_SMALL_SITES_H

#include "model/sites.h"
#include "tests/unit/small_model.h"

enum { HIDDEN = 48, TOKENS = 21 };

static inline rotation *dense(const double *R, int64_t n) {
    rotation *r;
    assert_ok(rotation_create_dense(n, R, &r));
    return r;
}

/* c [m, n] = a [m, k] b [k, n], either transposed, plain. */
static inline double *times(bool ta, bool tb, int64_t m, int64_t n, int64_t k, const double *a,
                            const double *b) {
    double *c = room(m * n, sizeof *c);
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < n; j++) {
            for (int64_t l = 0; l < k; l++)
                c[i * n + j] +=
                    (ta ? a[l * m + i] : a[i * k + l]) * (tb ? b[j * k + l] : b[l * n + j]);
        }
    }
    return c;
}

/* The matrix of the rotations of all segments of a site, [n, n]. */
static inline double *block_diagonal(const site *s, double *const *R) {
    double *B = room(s->n * s->n, sizeof *B);
    for (int64_t i = 0; i < s->n / s->segment; i++)
        for (int64_t a = 0; a < s->segment; a++)
            memcpy(B + (i * s->segment + a) * s->n + i * s->segment,
                   R[i / s->share] + a * s->segment, (size_t)s->segment * sizeof *B);
    return B;
}

/* Scales of a whole row, ones where there are none: before or after the rotation. */
static inline double *scales_of_row(const site *s, bool before) {
    double *v = room(s->n, sizeof *v);
    for (int64_t i = 0; i < s->n; i++) {
        const int64_t part = i / s->segment / s->before_share * s->segment;
        v[i] = 1;
        if (before && s->before) v[i] = s->before->s[part + i % s->segment];
        if (!before && s->after) v[i] = s->after->s[i];
    }
    return v;
}

static inline llama_config some_config(void) {
    return (llama_config){.hidden = HIDDEN,
                          .intermediate = 80,
                          .layers = 2,
                          .heads = 6,
                          .kv_heads = 2,
                          .head_dim = 8,
                          .vocab = 100,
                          .rms_eps = 1e-5,
                          .rope_theta = 10000};
}

/* Log-normal scales of all kinds and layers. */
static inline scale_set *random_scales(const llama_config *c, double spread) {
    const scale_sizes sizes = {c->hidden,   c->layers,       c->kv_heads,
                               c->head_dim, c->intermediate, c->qk_norm};
    scale_set *set;
    assert_ok(scale_set_create(&sizes, &set));
    for (int k = 0; k < SCALE_KINDS; k++) {
        assert_ok(scale_set_add(set, (scale_kind)k));
        const int64_t n = scale_set_length(set, (scale_kind)k), half = c->head_dim / 2;
        for (int64_t l = 0; l < c->layers; l++) {
            double *v = random_f64(n, spread);
            for (int64_t j = 0; j < n; j++) v[j] = exp(v[j]);
            for (int64_t j = 0; k == SCALE_QK && j < n; j++)
                if (j % c->head_dim >= half) v[j] = v[j - half];
            assert_ok(scale_set_put(set, (scale_kind)k, l, v));
            mem_free(v);
        }
    }
    return set;
}

/* Two ends apart, or none. 7/8 and 3/4 are exact in any type. */
static inline void set_clips(llama_sites *s, bool on) {
    for (int i = 0; i < 2; i++) s->act.clip[i] = s->kv.clip[i] = on ? (i ? 0.75f : 0.875f) : 1;
}

/* The ends of a range as the page of the quantizer has them. */
static inline void clip_range(const aquant *q, bool zero, double *lo, double *hi) {
    const double a = (double)q->clip[0], b = (double)q->clip[1], half = (*hi - *lo) / 2,
                 middle = (*hi + *lo) / 2;
    const bool about_zero = zero || q->symmetric;
    *lo = about_zero ? a * *lo : middle - a * half;
    *hi = about_zero ? b * *hi : middle + b * half;
}

/* Keys and values in FP8, divided by `scale` before they are rounded. */
static inline aquant fp8_cache(float scale) {
    return (aquant){.rule = AQUANT_FP8, .bits = 8, .clip = {1, 1}, .cache_scale = scale};
}

/* What residuals are counted in: the step of the grid, which moves with the range. The steps of FP8
 * are fixed: there the error itself is held, and 1 stands for them. */
static inline double step_of(const aquant *q, bool zero, const double *u, int64_t n) {
    double lo = u[0], hi = u[0];
    if (q->rule == AQUANT_FP8) return 1;
    for (int64_t j = 1; j < n; j++) {
        lo = fmin(lo, u[j]);
        hi = fmax(hi, u[j]);
    }
    if (zero) {
        lo = fmin(lo, 0);
        hi = fmax(hi, 0);
    }
    clip_range(q, zero, &lo, &hi);
    if (!q->symmetric) return (hi - lo) / (pow(2, q->bits) - 1);
    return fmax(hi, -lo) / (pow(2, q->bits - 1) - 1);
}

#endif
