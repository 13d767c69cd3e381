/* The forward pass against a slow plain one in double written here, with every quantization site,
 * dense rotations, biases and a sliding window; the same bits for any number of threads and any cut
 * into stages. Goldens of trained models: test_forward_goldens.c. */
#include "base/gemm.h"
#include "base/mem.h"
#include "base/rng.h"
#include "model/forward.h"
#include "tests/unit/assert_ok.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <omp.h>
#include <string.h>

static void *room(int64_t count, size_t size) {
    void *p;
    assert_ok(mem_alloc(count, size, "test", &p));
    return p;
}

typedef struct whole_model {
    llama_config cfg;
    llama_stage stage;
} whole_model;

/* One window through the whole model: sum of NLL. */
static double run(const llama_stage *s, const llama_sites *sites, compute_type compute,
                  const int32_t *ids, int64_t n_tokens, double *nll) {
    llama_scratch *scratch;
    assert_ok(llama_scratch_create(s->cfg, sites, compute, n_tokens, &scratch));
    char *x = room(n_tokens * s->cfg->hidden, llama_real_bytes(compute));
    double sum;
    assert_ok(llama_embed(s, compute, ids, n_tokens, x));
    assert_ok(llama_layers_forward(s, sites, n_tokens, x, scratch));
    assert_ok(llama_head_nll(s, n_tokens, x, ids, scratch, &sum, nll));
    mem_free(x);
    llama_scratch_destroy(&scratch);
    return sum;
}

/* A small model of random weights. */

static uint64_t stream;

static float *random_f32(int64_t n, double scale, double mean) {
    float *v = room(n, sizeof *v);
    stream++;
    for (int64_t i = 0; i < n; i++) {
        v[i] = (float)(mean + scale * rng_normal(11, RNG_TEST, (stream << 32) + (uint64_t)i));
    }
    return v;
}

static wmat random_matrix(int64_t rows, int64_t cols) {
    return (wmat){.kind = WMAT_F32,
                  .rows = rows,
                  .cols = cols,
                  .data = random_f32(rows * cols, 1 / sqrt((double)cols), 0)};
}

static void make_model(whole_model *m, bool biases, int64_t window, bool varied) {
    *m = (whole_model){.cfg = {.hidden = 48,
                               .intermediate = 80,
                               .layers = 2,
                               .heads = 6,
                               .kv_heads = 2,
                               .head_dim = 8,
                               .vocab = 2100,
                               .max_positions = 512,
                               .rms_eps = 1e-5,
                               .rope_theta = 10000,
                               .sliding_window = window}};
    /* norms of heads; a last layer without positions and without the window */
    m->cfg.qk_norm = varied;
    m->cfg.no_rope.bits[0] = m->cfg.unwindowed.bits[0] = varied ? 2 : 0;
    const llama_config *c = &m->cfg;
    const int64_t q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    assert_ok(llama_stage_init(&m->stage, c, 0, c->layers));
    for (int64_t i = 0; i < c->layers; i++) {
        llama_layer *l = &m->stage.layers[i];
        l->q = random_matrix(q, c->hidden);
        l->k = random_matrix(kv, c->hidden);
        l->v = random_matrix(kv, c->hidden);
        l->o = random_matrix(c->hidden, q);
        l->gate = random_matrix(c->intermediate, c->hidden);
        l->up = random_matrix(c->intermediate, c->hidden);
        l->down = random_matrix(c->hidden, c->intermediate);
        l->attn_norm = random_f32(c->hidden, 0.2, 1);
        l->mlp_norm = random_f32(c->hidden, 0.2, 1);
        if (varied) {
            l->q_norm = random_f32(c->head_dim, 0.3, 1);
            l->k_norm = random_f32(c->head_dim, 0.3, 1);
        }
        if (!biases) continue;
        l->bq = random_f32(q, 0.3, 0);
        l->bk = random_f32(kv, 0.3, 0);
        l->bv = random_f32(kv, 0.3, 0);
        l->bo = random_f32(c->hidden, 0.3, 0);
        l->bgate = random_f32(c->intermediate, 0.3, 0);
        l->bup = random_f32(c->intermediate, 0.3, 0);
        l->bdown = random_f32(c->hidden, 0.3, 0);
    }
    m->stage.embed = random_matrix(c->vocab, c->hidden);
    m->stage.head = random_matrix(c->vocab, c->hidden);
    m->stage.final_norm = random_f32(c->hidden, 0.2, 1);
}

/* An orthogonal matrix: random columns made orthonormal (Gram-Schmidt, twice). */
static double *random_orthogonal(int64_t n) {
    double *r = room(n * n, sizeof *r);
    stream++;
    for (int64_t i = 0; i < n * n; i++)
        r[i] = rng_normal(5, RNG_TEST, (stream << 32) + (uint64_t)i);
    for (int64_t i = 0; i < n; i++) {
        for (int pass = 0; pass < 2; pass++) {
            for (int64_t j = 0; j < i; j++) {
                double dot = 0;
                for (int64_t k = 0; k < n; k++) dot += r[i * n + k] * r[j * n + k];
                for (int64_t k = 0; k < n; k++) r[i * n + k] -= dot * r[j * n + k];
            }
        }
        double norm = 0;
        for (int64_t k = 0; k < n; k++) norm += r[i * n + k] * r[i * n + k];
        for (int64_t k = 0; k < n; k++) r[i * n + k] /= sqrt(norm);
    }
    return r;
}

/* The slow forward: plain loops in double, one token at a time, whole score rows. */

typedef struct slow_sites {
    int act_bits, kv_bits, down_bits;
    bool o_per_head, r2_per_head;
    const double *R1, *R2[8], *R3, *R4; /* NULL: identity; R2 [layer * kv_heads + head] */
} slow_sites;

static void slow_quant(double *x, int64_t n, int bits, bool zero) {
    double lo = x[0], hi = x[0];
    for (int64_t j = 1; j < n; j++) {
        lo = fmin(lo, x[j]);
        hi = fmax(hi, x[j]);
    }
    if (zero) {
        lo = fmin(lo, 0);
        hi = fmax(hi, 0);
    }
    double top = pow(2, bits) - 1, s = hi > lo ? (hi - lo) / top : 1, z = rint(-lo / s);
    for (int64_t j = 0; j < n; j++) x[j] = (fmin(fmax(rint(x[j] / s) + z, 0), top) - z) * s;
}

static void slow_rotate(const double *R, int64_t n, double *x, bool inverse) {
    if (!R) return;
    double y[128];
    for (int64_t j = 0; j < n; j++) {
        y[j] = 0;
        for (int64_t k = 0; k < n; k++) y[j] += x[k] * (inverse ? R[j * n + k] : R[k * n + j]);
    }
    memcpy(x, y, (size_t)n * sizeof *x);
}

/* Q(xR) R^T, as the definition of a site says. */
static void slow_site(const double *R, int64_t n, int bits, bool zero, double *x) {
    if (bits >= 16) return;
    slow_rotate(R, n, x, false);
    slow_quant(x, n, bits, zero);
    slow_rotate(R, n, x, true);
}

static void slow_linear(const wmat *w, const float *bias, const double *x, double *y) {
    const float *v = w->data;
    for (int64_t i = 0; i < w->rows; i++) {
        y[i] = bias ? bias[i] : 0;
        for (int64_t j = 0; j < w->cols; j++) y[i] += x[j] * v[i * w->cols + j];
    }
}

static void slow_norm(const double *x, int64_t n, double eps, double *y) {
    double sum = 0;
    for (int64_t j = 0; j < n; j++) sum += x[j] * x[j];
    for (int64_t j = 0; j < n; j++) y[j] = x[j] / sqrt(sum / (double)n + eps);
}

static void slow_rope(double *x, int64_t d, double theta, int64_t t) {
    for (int64_t i = 0; i < d / 2; i++) {
        double a = (double)t * pow(theta, -2.0 * (double)i / (double)d), u = x[i], v = x[i + d / 2];
        x[i] = u * cos(a) - v * sin(a);
        x[i + d / 2] = v * cos(a) + u * sin(a);
    }
}

static const double *slow_r2(const slow_sites *s, const llama_config *c, int64_t layer, int64_t h) {
    return s->R2[s->r2_per_head ? layer * c->kv_heads + h : layer];
}

/* Keys and values of all tokens so far: k, v [T, kv_heads * d]. */
static void slow_attend(const llama_config *c, const slow_sites *s, int64_t layer, int64_t t,
                        const double *q, const double *k, const double *v, double *out) {
    const int64_t d = c->head_dim, kv = c->kv_heads * d, group = c->heads / c->kv_heads;
    for (int64_t h = 0; h < c->heads; h++) {
        double p[600], most = -1e300, total = 0;
        const int64_t window = c->qk_norm && layer == 1 ? 0 : c->sliding_window;
        const int64_t first = window && t >= window ? t - window + 1 : 0;
        for (int64_t u = first; u <= t; u++) {
            p[u] = 0;
            for (int64_t i = 0; i < d; i++) p[u] += q[h * d + i] * k[u * kv + h / group * d + i];
            p[u] /= sqrt((double)d);
            most = fmax(most, p[u]);
        }
        for (int64_t u = first; u <= t; u++) total += p[u] = exp(p[u] - most);
        for (int64_t i = 0; i < d; i++) {
            out[h * d + i] = 0;
            for (int64_t u = first; u <= t; u++)
                out[h * d + i] += p[u] / total * v[u * kv + h / group * d + i];
        }
        if (s->o_per_head)
            slow_site(slow_r2(s, c, layer, h / group), d, s->act_bits, false, out + h * d);
    }
    if (s->o_per_head || s->act_bits >= 16) return;
    for (int64_t h = 0; h < c->heads; h++)
        slow_rotate(slow_r2(s, c, layer, h / group), d, out + h * d, false);
    slow_quant(out, c->heads * d, s->act_bits, true);
    for (int64_t h = 0; h < c->heads; h++)
        slow_rotate(slow_r2(s, c, layer, h / group), d, out + h * d, true);
}

static void slow_gain(double *x, const float *gain, int64_t n) {
    for (int64_t j = 0; j < n; j++) x[j] *= gain[j];
}

/* A head of queries or keys, through its norm and by its position. */
static void slow_place(const llama_config *c, const float *gain, int64_t layer, int64_t t,
                       double *x) {
    if (gain) {
        slow_norm(x, c->head_dim, c->rms_eps, x);
        slow_gain(x, gain, c->head_dim);
    }
    if (!c->qk_norm || layer == 0) slow_rope(x, c->head_dim, c->rope_theta, t);
}

static void slow_layer(const whole_model *m, const slow_sites *s, int64_t layer, int64_t n_tokens,
                       double *x) {
    const llama_config *c = &m->cfg;
    const llama_layer *l = &m->stage.layers[layer];
    const int64_t d = c->head_dim, kv = c->kv_heads * d;
    double *k = room(n_tokens * kv, 8), *v = room(n_tokens * kv, 8);
    for (int64_t t = 0; t < n_tokens; t++) {
        double h[128], q[128], a[128], y[128], u[128], *xt = x + t * c->hidden;
        slow_norm(xt, c->hidden, c->rms_eps, h);
        slow_site(s->R1, c->hidden, s->act_bits, true, h);
        slow_gain(h, l->attn_norm, c->hidden);
        slow_linear(&l->q, l->bq, h, q);
        slow_linear(&l->k, l->bk, h, k + t * kv);
        slow_linear(&l->v, l->bv, h, v + t * kv);
        for (int64_t i = 0; i < c->heads; i++) slow_place(c, l->q_norm, layer, t, q + i * d);
        for (int64_t i = 0; i < c->kv_heads; i++) {
            slow_place(c, l->k_norm, layer, t, k + t * kv + i * d);
            slow_site(s->R3, d, s->kv_bits, true, k + t * kv + i * d);
            slow_site(slow_r2(s, c, layer, i), d, s->kv_bits, false, v + t * kv + i * d);
        }
        slow_attend(c, s, layer, t, q, k, v, a);
        slow_linear(&l->o, l->bo, a, y);
        for (int64_t j = 0; j < c->hidden; j++) xt[j] += y[j];
        slow_norm(xt, c->hidden, c->rms_eps, h);
        slow_site(s->R1, c->hidden, s->act_bits, true, h);
        slow_gain(h, l->mlp_norm, c->hidden);
        slow_linear(&l->gate, l->bgate, h, a);
        slow_linear(&l->up, l->bup, h, u);
        for (int64_t j = 0; j < c->intermediate; j++) a[j] = a[j] / (1 + exp(-a[j])) * u[j];
        slow_site(s->R4, c->intermediate, s->down_bits, true, a);
        slow_linear(&l->down, l->bdown, a, y);
        for (int64_t j = 0; j < c->hidden; j++) xt[j] += y[j];
    }
    mem_free(k);
    mem_free(v);
}

static double slow_nll(const whole_model *m, const slow_sites *s, const int32_t *ids,
                       int64_t n_tokens, double *nll) {
    const llama_config *c = &m->cfg;
    double *x = room(n_tokens * c->hidden, 8), *z = room(c->vocab, 8), sum = 0;
    for (int64_t t = 0; t < n_tokens; t++) {
        for (int64_t j = 0; j < c->hidden; j++)
            x[t * c->hidden + j] = ((float *)m->stage.embed.data)[ids[t] * c->hidden + j];
    }
    for (int64_t l = 0; l < c->layers; l++) slow_layer(m, s, l, n_tokens, x);
    for (int64_t t = 0; t + 1 < n_tokens; t++) {
        double h[128], total = 0;
        slow_norm(x + t * c->hidden, c->hidden, c->rms_eps, h);
        slow_gain(h, m->stage.final_norm, c->hidden);
        slow_linear(&m->stage.head, NULL, h, z);
        for (int64_t j = 0; j < c->vocab; j++) total += exp(z[j]);
        nll[t] = log(total) - z[ids[t + 1]];
        sum += nll[t];
    }
    mem_free(x);
    mem_free(z);
    return sum;
}

static int32_t *random_ids(int64_t n, int64_t vocab) {
    int32_t *ids = room(n, sizeof *ids);
    for (int64_t t = 0; t < n; t++)
        ids[t] = (int32_t)(rng_uniform(1, RNG_DATA, (uint64_t)t) * (double)vocab);
    return ids;
}

enum { TOKENS = 300 }; /* more than a block of keys and one of queries */

static void test_plain_against_slow(void **state) {
    (void)state;
    const slow_sites off = {.act_bits = 16, .kv_bits = 16, .down_bits = 16};
    for (int variant = 0; variant < 8; variant++) {
        whole_model m;
        make_model(&m, variant & 1, variant & 2 ? 70 : 0, variant & 4);
        int32_t *ids = random_ids(TOKENS, m.cfg.vocab);
        double want[TOKENS], got[TOKENS];
        double sum = slow_nll(&m, &off, ids, TOKENS, want);
        assert_true(fabs(run(&m.stage, NULL, COMPUTE_F64, ids, TOKENS, got) - sum) <= 1e-10 * sum);
        for (int t = 0; t + 1 < TOKENS; t++) assert_true(fabs(got[t] - want[t]) <= 1e-9 * want[t]);
        assert_true(fabs(run(&m.stage, NULL, COMPUTE_F32, ids, TOKENS, got) - sum) <= 1e-5 * sum);
        for (int t = 0; t + 1 < TOKENS; t++) assert_true(fabs(got[t] - want[t]) <= 1e-4 * want[t]);
        assert_ok(llama_stage_prepare(&m.stage, COMPUTE_BF16));
        assert_true(fabs(run(&m.stage, NULL, COMPUTE_BF16, ids, TOKENS, got) - sum) <= 1e-3 * sum);
        mem_free(ids);
        llama_stage_clear(&m.stage);
    }
}

/* Rotations of a model, dense and as our objects. */
typedef struct turns {
    double *dense[8];
    rotation *R[8];
    const rotation *R2[4];
} turns;

enum { T_R1, T_R3, T_R4, T_R2 }; /* four R2 from T_R2 on */

static void make_turns(turns *t, const llama_config *c) {
    const int64_t n[] = {c->hidden,   c->head_dim, c->intermediate, c->head_dim,
                         c->head_dim, c->head_dim, c->head_dim};
    for (int i = 0; i < 7; i++) {
        t->dense[i] = random_orthogonal(n[i]);
        assert_ok(rotation_create_dense(n[i], t->dense[i], &t->R[i]));
    }
    for (int i = 0; i < 4; i++) t->R2[i] = t->R[T_R2 + i];
}

static void free_turns(turns *t) {
    for (int i = 0; i < 7; i++) {
        mem_free(t->dense[i]);
        rotation_destroy(&t->R[i]);
    }
}

static void test_sites_against_slow(void **state) {
    (void)state;
    enum { N = 20 }; /* few tokens: a flipped rounding changes all that follow */
    for (int variant = 0; variant < 16; variant++) {
        whole_model m;
        turns t;
        make_model(&m, variant & 1, 0, variant & 4);
        make_turns(&t, &m.cfg);
        const bool per_head = variant & 2, act = variant & 8, kv = variant & 4;
        llama_sites ours = llama_sites_none();
        ours.act.bits = act ? 4 : 16;
        ours.kv.bits = kv ? 3 : 16;
        ours.down_bits = act && kv ? 5 : 0;
        ours.o_per_head = variant & 1;
        ours.R1 = t.R[T_R1];
        ours.R3 = t.R[T_R3];
        ours.R4 = t.R[T_R4];
        ours.R2 = t.R2;
        ours.r2_per_head = per_head;
        slow_sites slow = {.act_bits = ours.act.bits,
                           .kv_bits = ours.kv.bits,
                           .down_bits = ours.down_bits ? ours.down_bits : ours.act.bits,
                           .o_per_head = ours.o_per_head,
                           .r2_per_head = per_head,
                           .R1 = t.dense[T_R1],
                           .R3 = t.dense[T_R3],
                           .R4 = t.dense[T_R4]};
        for (int i = 0; i < 4; i++) slow.R2[i] = t.dense[T_R2 + i];
        int32_t *ids = random_ids(N, m.cfg.vocab);
        double want[N], got[N];
        double sum = slow_nll(&m, &slow, ids, N, want);
        double off = fabs(run(&m.stage, &ours, COMPUTE_F64, ids, N, got) - sum);
        assert_true(off <= 1e-9 * sum);
        for (int i = 0; i + 1 < N; i++) assert_true(fabs(got[i] - want[i]) <= 1e-8 * want[i]);
        mem_free(ids);
        free_turns(&t);
        llama_stage_clear(&m.stage);
    }
}

/* down_proj that holds R4, with its input rotated for real, is the same function. */
static void test_fused_r4(void **state) {
    (void)state;
    whole_model m;
    turns t;
    make_model(&m, false, 0, false);
    make_turns(&t, &m.cfg);
    enum { N = 30 };
    int32_t *ids = random_ids(N, m.cfg.vocab);
    llama_sites site = llama_sites_none();
    site.R4 = t.R[T_R4];
    double plain = run(&m.stage, NULL, COMPUTE_F64, ids, N, NULL);
    site.act.bits = 4;
    site.R1 = t.R[T_R1];
    double quantized = run(&m.stage, &site, COMPUTE_F64, ids, N, NULL);
    const int64_t n = m.cfg.intermediate;
    for (int64_t l = 0; l < m.cfg.layers; l++) {
        float *w = m.stage.layers[l].down.data;
        for (int64_t i = 0; i < m.cfg.hidden; i++) {
            double row[128];
            for (int64_t j = 0; j < n; j++) row[j] = w[i * n + j];
            slow_rotate(t.dense[T_R4], n, row, false);
            for (int64_t j = 0; j < n; j++) w[i * n + j] = (float)row[j];
        }
    }
    site.r4_fused = true;
    assert_true(fabs(run(&m.stage, &site, COMPUTE_F64, ids, N, NULL) - quantized) <=
                1e-2 * quantized);
    site.act.bits = 16;
    /* the rotated weights are rounded to fp32 */
    assert_true(fabs(run(&m.stage, &site, COMPUTE_F64, ids, N, NULL) - plain) <= 1e-6 * plain);
    assert_true(fabs(quantized - plain) > 1e-5 * plain);
    mem_free(ids);
    free_turns(&t);
    llama_stage_clear(&m.stage);
}

static void test_same_bits(void **state) {
    (void)state;
    whole_model m;
    turns t;
    make_model(&m, true, 0, true);
    make_turns(&t, &m.cfg);
    llama_sites sites = llama_sites_none();
    sites.act.bits = sites.kv.bits = 4;
    sites.R1 = t.R[T_R1];
    sites.R4 = t.R[T_R4];
    sites.R2 = t.R2;
    int32_t *ids = random_ids(TOKENS, m.cfg.vocab);
    static const compute_type types[] = {COMPUTE_F64, COMPUTE_F32, COMPUTE_BF16};
    for (int i = 0; i < 6; i++) {
        const llama_sites *s = i < 3 ? &sites : NULL;
        double one[TOKENS], many[TOKENS];
        assert_ok(
            llama_stage_prepare(&m.stage, types[i % 3])); /* from i = 2 on the weights are bf16 */
        for (int threads = 1; threads <= 3; threads++) {
            omp_set_num_threads(threads);
            run(&m.stage, s, types[i % 3], ids, TOKENS, threads == 1 ? one : many);
            if (threads > 1) assert_memory_equal(one, many, (TOKENS - 1) * sizeof *one);
        }
        /* the same, one layer at a time, as two stages would */
        llama_scratch *scratch;
        assert_ok(llama_scratch_create(&m.cfg, s, types[i % 3], TOKENS + 7, &scratch));
        void *x = room(TOKENS * m.cfg.hidden, llama_real_bytes(types[i % 3]));
        assert_ok(llama_embed(&m.stage, types[i % 3], ids, TOKENS, x));
        for (int64_t l = 0; l < m.cfg.layers; l++) {
            llama_stage part = {
                .cfg = &m.cfg, .first_layer = l, .n_layers = 1, .layers = m.stage.layers + l};
            assert_ok(llama_layers_forward(&part, s, TOKENS, x, scratch));
        }
        double sum;
        assert_ok(llama_head_nll(&m.stage, TOKENS, x, ids, scratch, &sum, many));
        assert_memory_equal(one, many, (TOKENS - 1) * sizeof *one);
        mem_free(x);
        llama_scratch_destroy(&scratch);
    }
    mem_free(ids);
    free_turns(&t);
    llama_stage_clear(&m.stage);
}

static void test_refusals(void **state) {
    (void)state;
    whole_model m;
    make_model(&m, false, 0, false);
    llama_scratch *scratch;
    assert_ok(llama_scratch_create(&m.cfg, NULL, COMPUTE_F32, 8, &scratch));
    assert_true(llama_scratch_bytes(&m.cfg, NULL, COMPUTE_F32, 8, 1) > 0);
    float *x = room(9 * m.cfg.hidden, sizeof *x);
    const int32_t ids[] = {1, 2, (int32_t)m.cfg.vocab};
    assert_int_equal(llama_embed(&m.stage, COMPUTE_F32, ids, 3, x).code, ERR_INPUT);
    assert_int_equal(llama_embed(&m.stage, COMPUTE_F32, (int32_t[]){-1}, 1, x).code, ERR_INPUT);
    assert_int_equal(llama_layers_forward(&m.stage, NULL, 9, x, scratch).code, ERR_BUG);
    llama_sites sites = llama_sites_none();
    sites.act.bits = 4;
    assert_int_equal(llama_layers_forward(&m.stage, &sites, 4, x, scratch).code, ERR_BUG);
    double sum;
    assert_int_equal(llama_head_nll(&m.stage, 3, x, ids, scratch, &sum, NULL).code, ERR_INPUT);
    mem_free(x);
    llama_scratch_destroy(&scratch);
    llama_stage_clear(&m.stage);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain_against_slow), cmocka_unit_test(test_sites_against_slow),
        cmocka_unit_test(test_fused_r4),           cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
