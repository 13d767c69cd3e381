/* Squares of inputs and gradients are summed per channel in fixed point; the fourth root of their
 * ratio is scaled to a geometric mean of one and bounded. */
#include "pipeline/learn/scale_closed.h"

#include "base/mem.h"
#include "base/size.h"
#include "pipeline/wide_sum.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* Sums in fixed point: units of 2^-70, which are small beside any square of a gradient that counts,
 * and room to 2^57. */
enum { UNIT_BITS = 70 };

struct scale_moments {
    llama_config cfg;
    int64_t first, n, each; /* each: sums of a layer */
    scale_places places;
    int64_t at[SCALE_KINDS]; /* where a kind's sums begin in a layer's: x^2, then g^2 */
    wide_sum *sums;          /* [n, each] */
    double *row;             /* [widest] sums of a slice */
};

static int64_t width_of(const llama_config *c, hook_place place) {
    if (place == HOOK_DOWN_IN) return c->intermediate;
    if (place == HOOK_O_IN) return c->heads * c->head_dim;
    return place == HOOK_PLACES ? 0 : c->kv_heads * c->head_dim;
}

/* Fills at, gives the sums of a layer, and the widest. */
static int64_t lay_out(const llama_config *cfg, const scale_places *places, int64_t *at,
                       int64_t *widest) {
    int64_t total = 0;
    *widest = 1;
    for (int k = 0; k < SCALE_KINDS; k++) {
        const int64_t n = width_of(cfg, places->of[k]);
        at[k] = total;
        total += 2 * n;
        *widest = size_max(*widest, n);
    }
    return total;
}

uint64_t scale_moments_bytes(const llama_config *cfg, int64_t n, const scale_places *places) {
    int64_t at[SCALE_KINDS], widest;
    const int64_t each = lay_out(cfg, places, at, &widest);
    return (uint64_t)(n * each) * sizeof(wide_sum) + (uint64_t)widest * sizeof(double);
}

err scale_moments_create(const llama_config *cfg, int64_t first, int64_t n,
                         const scale_places *places, scale_moments **out) {
    int64_t widest;
    *out = NULL;
    scale_moments *m;
    err e = MEM_NEW(&m, 1, "moments of scaled sites");
    if (e.code) return e;
    *m = (scale_moments){.cfg = *cfg, .first = first, .n = n, .places = *places};
    m->each = lay_out(cfg, places, m->at, &widest);
    e = MEM_NEW(&m->sums, n * m->each, "moments of scaled sites");
    if (!e.code) e = MEM_NEW(&m->row, widest, "moments of scaled sites");
    if (e.code) scale_moments_destroy(&m);
    *out = m;
    return e;
}

void scale_moments_destroy(scale_moments **m) {
    if (!*m) return;
    mem_free((*m)->sums);
    mem_free((*m)->row);
    mem_free(*m);
    *m = NULL;
}

/* Squares of a slice, each channel by itself, tokens in order. */
static err add_squares(scale_moments *m, int64_t layer, int64_t at, int64_t n_tokens, int64_t n,
                       const float *v) {
    wide_sum *to = m->sums + (layer - m->first) * m->each + at;
    double *sum = m->row;
#pragma omp parallel for schedule(static)
    for (int64_t j = 0; j < n; j++) {
        sum[j] = 0;
        for (int64_t t = 0; t < n_tokens; t++) {
            const double x = v[t * n + j];
            sum[j] += x * x;
        }
    }
    for (int64_t j = 0; j < n; j++) {
        if (!wide_sum_add(&to[j], sum[j], UNIT_BITS))
            return err_make(
                ERR_NUMERICS, "activations of the calibration text", "check the model and the text",
                "layer %" PRId64 ", channel %" PRId64 ": squares sum to %g", layer, j, sum[j]);
    }
    return err_none();
}

static err take(void *ctx, int64_t layer, hook_place place, int64_t t0, int64_t n_tokens,
                int64_t width, const float *x, const float *g) {
    scale_moments *m = ctx;
    err e = err_none();
    (void)t0;
    for (int k = 0; k < SCALE_KINDS && !e.code; k++) {
        if (m->places.of[k] != place) continue;
        e = add_squares(m, layer, m->at[k], n_tokens, width, x);
        if (!e.code) e = add_squares(m, layer, m->at[k] + width, n_tokens, width, g);
    }
    return e;
}

llama_hook scale_moments_hook(scale_moments *m) {
    uint32_t places = 0;
    for (int k = 0; k < SCALE_KINDS; k++)
        if (m->places.of[k] != HOOK_PLACES) places |= 1u << m->places.of[k];
    return (llama_hook){.places = places, .take = take, .ctx = m};
}

byte_piece scale_moments_piece(const scale_moments *m, int64_t layer) {
    return (byte_piece){m->sums + (layer - m->first) * m->each,
                        (uint64_t)m->each * sizeof *m->sums};
}

/* Which scale channel j of the hooked site takes. */
static int64_t scale_of(const scale_moments *m, scale_kind kind, int64_t j) {
    const int64_t d = m->cfg.head_dim, head = j / d, c = j % d;
    if (kind == SCALE_UD) return j;
    if (kind == SCALE_QK) return (m->cfg.qk_norm ? 0 : head * d) + c % (d / 2);
    return (m->places.of[kind] == HOOK_O_IN ? head / (m->cfg.heads / m->cfg.kv_heads) : head) * d +
           c;
}

/* The mean of what is there; entries below 1e-12 of it are raised to that. */
static bool raise_floor(double *v, int64_t n) {
    double sum = 0;
    for (int64_t j = 0; j < n; j++) sum += v[j];
    const double least = 1e-12 * sum / (double)n;
    for (int64_t j = 0; j < n; j++) v[j] = fmax(v[j], least);
    return sum > 0;
}

void scale_closed(const scale_moments *m, scale_kind kind, int64_t layer, double *s) {
    const llama_config *c = &m->cfg;
    const int64_t width = width_of(c, m->places.of[kind]);
    const int64_t n = kind == SCALE_UD ? c->intermediate : c->kv_heads * c->head_dim;
    const int64_t half = c->head_dim / 2;
    const wide_sum *xx = m->sums + (layer - m->first) * m->each + m->at[kind], *gg = xx + width;
    double *x = s, *g = m->row;
    memset(x, 0, (size_t)n * sizeof *x);
    memset(g, 0, (size_t)n * sizeof *g);
    for (int64_t j = 0; j < width; j++) {
        x[scale_of(m, kind, j)] += wide_sum_real(xx[j], UNIT_BITS);
        g[scale_of(m, kind, j)] += wide_sum_real(gg[j], UNIT_BITS);
    }
    for (int64_t j = 0; kind == SCALE_QK && j < n; j++) {
        const int64_t d = c->head_dim, from = (c->qk_norm ? 0 : j / d * d) + j % half;
        x[j] = x[from];
        g[j] = g[from];
    }
    const bool some_x = raise_floor(x, n), some_g = raise_floor(g, n);
    for (int64_t j = 0; j < n; j++) s[j] = some_x && some_g ? pow(x[j] / g[j], 0.25) : 1;
    scale_settle(s, n);
}

void scale_settle(double *s, int64_t n) {
    double sum = 0;
    for (int64_t j = 0; j < n; j++) {
        if (!(s[j] > 0) || !isfinite(s[j])) s[j] = 1;
        sum += log(s[j]);
    }
    const double middle = exp(sum / (double)n);
    for (int64_t j = 0; j < n; j++) s[j] = fmin(fmax(s[j] / middle, 1.0 / 64), 64);
}
