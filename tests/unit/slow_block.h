/* slow_block - a block of LLaMA in double and plain loops whose quantizers hold what they rounded
 * (the residual in steps, or the error itself) while x, rotations and scales move, so that
 * differences of it are what a straight-through gradient means; and the program's gradients of the
 * same block. For tests alone; includes cmocka. */
#ifndef SPINSHARD_TESTS_UNIT_SLOW_BLOCK_H
#define SPINSHARD_TESTS_UNIT_SLOW_BLOCK_H

#include "model/backward.h"
#include "tests/unit/small_sites.h"

/* A slow block in double whose quantizers are held. */

typedef struct held {
    bool record, through;
    int64_t at;
    double v[60000]; /* residual in steps (through), or the error */
} held;

typedef struct block_case {
    small_model m;
    llama_sites sites;
    bool through;
    uint32_t scales;              /* as in the pass's shape */
    double *R1, *R2[2], *R3, *R4; /* R2: one, or one per KV head */
    bool plain_r1;                /* R1 is the identity, and the program has none */
    double *T; /* what the runtime rotates keys, in place of R3, and values by; NULL: it does not */
    held *h;
    double x[TOKENS * HIDDEN], c[TOKENS * HIDDEN];
} block_case;

/* A model with all rotations, and with weights c of the outputs but for those of the first tokens:
 * their o_proj inputs are sums of few values on a grid, so that two channels may both be the
 * greatest, and there is no derivative. */
static inline block_case *block_case_create(void) {
    block_case *b = room(1, sizeof *b);
    b->h = room(1, sizeof *b->h);
    b->m.cfg = some_config();
    small_model_fill(&b->m, true);
    fill_normal(b->x, TOKENS * HIDDEN, 1);
    fill_normal(b->c + 6 * HIDDEN, (TOKENS - 6) * HIDDEN, 1);
    b->R1 = random_orthogonal(HIDDEN);
    b->R2[0] = random_orthogonal(8);
    b->R2[1] = random_orthogonal(8);
    b->R3 = random_orthogonal(8);
    b->R4 = random_orthogonal(80);
    return b;
}

static inline void block_case_destroy(block_case *b) {
    double *all[] = {b->R1, b->R2[0], b->R2[1], b->R3, b->R4, b->T};
    for (int i = 0; i < 6; i++) mem_free(all[i]);
    llama_stage_clear(&b->m.stage);
    mem_free(b->h);
    mem_free(b);
}

/* From here on queries and keys go through norms of heads. */
static inline void block_case_norm_heads(block_case *b) {
    b->m.cfg.qk_norm = true;
    b->m.stage.layers[0].q_norm = random_f32(8, 0.3, 1);
    b->m.stage.layers[0].k_norm = random_f32(8, 0.3, 1);
}

static inline void rotate(const double *R, int64_t n, double *x, bool inverse) {
    double y[128];
    for (int64_t j = 0; j < n; j++) {
        y[j] = 0;
        for (int64_t k = 0; k < n; k++) y[j] += x[k] * (inverse ? R[j * n + k] : R[k * n + j]);
    }
    memcpy(x, y, (size_t)n * sizeof *x);
}

/* x + e R^T for a row of equal heads (heads 1: the whole row), a range each or one for all; with
 * scales, before the rotation (of heads / parts heads together) or after it. */
typedef struct slow_scales {
    const scale_vector *before, *after;
    int64_t parts;
} slow_scales;

static inline void slow_site(block_case *b, const aquant *q, bool zero, bool per_head,
                             int64_t heads, int64_t d, double *const *R, int64_t share,
                             slow_scales sc, double *x) {
    double u[128], before[128], after[128];
    const int64_t n = heads * d, range = q->group ? q->group : per_head ? d : n;
    held *h = b->h;
    if (q->bits >= 16) return;
    for (int64_t j = 0; j < n; j++) {
        const int64_t part = sc.before ? j / d / (heads / sc.parts) * d + j % d : 0;
        before[j] = sc.before ? sc.before->s[part] : 1;
        after[j] = sc.after ? sc.after->s[j] : 1;
        u[j] = x[j] / before[j];
    }
    for (int64_t i = 0; i < heads; i++) rotate(R[i / share], d, u + i * d, false);
    for (int64_t j = 0; j < n; j++) u[j] /= after[j];
    for (int64_t r = 0; r < n; r += range) {
        const double step = step_of(q, zero, u + r, range);
        if (h->record) {
            double e[128];
            fake_quant_rows_f64(q, zero, u + r, 1, range, range, e);
            for (int64_t j = 0; j < range; j++)
                h->v[h->at + j] = (e[j] - u[r + j]) / (h->through ? step : 1);
        }
        for (int64_t j = 0; j < range; j++) u[r + j] = h->v[h->at++] * (h->through ? step : 1);
        assert_true(h->at < (int64_t)(sizeof h->v / sizeof *h->v));
    }
    for (int64_t j = 0; j < n; j++) u[j] *= after[j];
    for (int64_t i = 0; i < heads; i++) rotate(R[i / share], d, u + i * d, true);
    for (int64_t j = 0; j < n; j++) x[j] += u[j] * before[j];
}

static inline void slow_linear(const wmat *w, const float *bias, const double *x, double *y) {
    const float *v = w->data;
    for (int64_t i = 0; i < w->rows; i++) {
        y[i] = bias ? (double)bias[i] : 0;
        for (int64_t j = 0; j < w->cols; j++) y[i] += x[j] * (double)v[i * w->cols + j];
    }
}

static inline const scale_vector *scales_at(const block_case *b, scale_kind kind) {
    return scale_set_get(b->sites.scales, kind, 0);
}

static inline void slow_norm_site(block_case *b, const double *x, const float *gain,
                                  scale_kind kind, double *y) {
    double sum = 0;
    for (int64_t j = 0; j < HIDDEN; j++) sum += x[j] * x[j];
    for (int64_t j = 0; j < HIDDEN; j++) y[j] = x[j] / sqrt(sum / HIDDEN + b->m.cfg.rms_eps);
    const slow_scales sc = {.after = scales_at(b, kind)};
    const bool behind = b->plain_r1 && !sc.after; /* nothing folds the gain */
    for (int64_t j = 0; behind && j < HIDDEN; j++) y[j] *= (double)gain[j];
    slow_site(b, &b->sites.act, true, false, 1, HIDDEN, &b->R1, 1, sc, y);
    for (int64_t j = 0; !behind && j < HIDDEN; j++) y[j] *= (double)gain[j];
}

static inline void slow_rope(double *x, int64_t d, int64_t t) {
    for (int64_t i = 0; i < d / 2; i++) {
        const double a = (double)t * pow(10000, -2.0 * (double)i / (double)d);
        const double u = x[i], v = x[i + d / 2];
        x[i] = u * cos(a) - v * sin(a);
        x[i + d / 2] = v * cos(a) + u * sin(a);
    }
}

/* A head of queries or keys, through its norm and by its position. */
static inline void slow_place(const llama_config *c, const float *gain, int64_t t, double *x) {
    const int64_t d = c->head_dim;
    const double rms = sqrt(dot_f64(x, x, d) / (double)d + c->rms_eps);
    for (int64_t j = 0; gain && j < d; j++) x[j] *= (double)gain[j] / rms;
    slow_rope(x, d, t);
}

/* <c, block(x)>. */
static inline double slow_block(block_case *b, const double *x) {
    const llama_layer *l = &b->m.stage.layers[0];
    const llama_config *c = &b->m.cfg;
    const int64_t d = c->head_dim, kv = c->kv_heads * d;
    const int64_t group = c->heads / c->kv_heads;
    const int64_t share = b->sites.r2_per_head ? 1 : c->kv_heads;
    static double k[TOKENS][16], v[TOKENS][16];
    double h[HIDDEN], q[48], o[48], y[HIDDEN], gate[80], up[80], sum = 0;
    b->h->at = 0;
    for (int64_t t = 0; t < TOKENS; t++) {
        double *R3[1] = {b->T ? b->T : b->R3}, *R4[1] = {b->R4}, xt[HIDDEN], RT[2][64];
        double *values[2] = {b->R2[0], b->R2[1]};
        for (int64_t i = 0; b->T && i < 2; i++) {
            memcpy(RT[i], b->R2[i], sizeof RT[i]);
            for (int64_t j = 0; j < d; j++) rotate(b->T, d, RT[i] + j * d, false);
            values[i] = RT[i];
        }
        memcpy(xt, x + t * HIDDEN, sizeof xt);
        const slow_scales qk = {.before = scales_at(b, SCALE_QK), .parts = c->kv_heads};
        const slow_scales vo = {.before = scales_at(b, SCALE_VO), .parts = c->kv_heads};
        const slow_scales ud = {.before = scales_at(b, SCALE_UD), .parts = 1};
        slow_norm_site(b, xt, l->attn_norm, SCALE_ATTN, h);
        slow_linear(&l->q, l->bq, h, q);
        slow_linear(&l->k, l->bk, h, k[t]);
        slow_linear(&l->v, l->bv, h, v[t]);
        for (int64_t i = 0; i < c->heads; i++) slow_place(c, l->q_norm, t, q + i * d);
        for (int64_t i = 0; i < c->kv_heads; i++) slow_place(c, l->k_norm, t, k[t] + i * d);
        slow_site(b, &b->sites.kv, !b->T, true, c->kv_heads, d, R3, kv, qk, k[t]);
        slow_site(b, &b->sites.kv, false, true, c->kv_heads, d, values, share, vo, v[t]);
        for (int64_t i = 0; i < c->heads; i++) {
            double p[TOKENS], total = 0;
            for (int64_t s = 0; s <= t; s++) {
                p[s] = exp(dot_f64(q + i * d, k[s] + i / group * d, d) / sqrt((double)d));
                total += p[s];
            }
            for (int64_t j = 0; j < d; j++) {
                o[i * d + j] = 0;
                for (int64_t s = 0; s <= t; s++)
                    o[i * d + j] += p[s] / total * v[s][i / group * d + j];
            }
        }
        const bool o_heads = b->sites.o_per_head && !b->sites.act.group;
        slow_site(b, &b->sites.act, !o_heads, o_heads, c->heads, d, b->R2, share * group, vo, o);
        slow_linear(&l->o, l->bo, o, y);
        for (int64_t j = 0; j < HIDDEN; j++) xt[j] += y[j];
        slow_norm_site(b, xt, l->mlp_norm, SCALE_MLP, h);
        slow_linear(&l->gate, l->bgate, h, gate);
        slow_linear(&l->up, l->bup, h, up);
        for (int64_t j = 0; j < c->intermediate; j++) up[j] *= gate[j] / (1 + exp(-gate[j]));
        slow_site(b, &b->sites.act, true, false, 1, c->intermediate, R4, 1, ud, up);
        slow_linear(&l->down, l->bdown, up, y);
        for (int64_t j = 0; j < HIDDEN; j++) xt[j] += y[j];
        sum += dot_f64(xt, b->c + t * HIDDEN, HIDDEN);
    }
    return sum;
}

/* The program's gradients, added to grads; g [TOKENS, HIDDEN] of x. */
static inline void fast_gradients(block_case *b, int64_t slice, double *g,
                                  const rotation_grads *grads) {
    const llama_config *c = &b->m.cfg;
    const llama_pass_shape shape = {.compute = COMPUTE_F64,
                                    .window = TOKENS,
                                    .slice = slice,
                                    .through = b->through,
                                    .r1 = !b->plain_r1,
                                    .r2 = true,
                                    .scales = b->scales};
    rotation *r1 = dense(b->R1, HIDDEN), *r3 = dense(b->R3, 8), *r4 = dense(b->R4, c->intermediate);
    rotation *r2[2] = {dense(b->R2[0], 8), dense(b->R2[1], 8)};
    rotation *rotated = b->T ? dense(b->T, 8) : NULL;
    const rotation *layers[2] = {r2[0], r2[1]};
    llama_sites s = b->sites;
    s.cache_rotation = rotated;
    s.R1 = b->plain_r1 ? NULL : r1;
    s.R2 = layers;
    s.R3 = b->T ? NULL : r3;
    s.R4 = r4;
    llama_work *work;
    llama_saved *saved;
    assert_ok(llama_work_create(c, &s, &shape, &work));
    if (!b->plain_r1) assert_ok(llama_work_put_r1(work, r1));
    assert_ok(llama_saved_create(c, &s, &shape, &saved));
    double *x = room(TOKENS * HIDDEN, sizeof *x);
    memcpy(x, b->x, sizeof b->x);
    memcpy(g, b->c, sizeof b->c);
    for (int64_t t = 0; t < TOKENS; t += slice)
        assert_ok(
            llama_block_forward_save(&b->m.stage, 0, &s, t, slice, x + t * HIDDEN, saved, work));
    for (int64_t t = TOKENS - slice; t >= 0; t -= slice)
        assert_ok(llama_block_backward(&b->m.stage, 0, &s, t, slice, g + t * HIDDEN, saved, grads,
                                       NULL, work));
    /* the same function as the slow block's */
    b->h->record = true;
    b->h->through = b->through;
    const double slow = slow_block(b, b->x), fast = dot_f64(x, b->c, TOKENS * HIDDEN);
    b->h->record = false;
    assert_true(fabs(slow - fast) <= 1e-11 * (1 + fabs(slow)));
    mem_free(x);
    llama_saved_destroy(&saved);
    llama_work_destroy(&work);
    rotation *all[] = {r1, r2[0], r2[1], r3, r4, rotated};
    for (int i = 0; i < 6; i++) rotation_destroy(&all[i]);
}

#endif
