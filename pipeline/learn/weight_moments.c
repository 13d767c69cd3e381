/* A hook of the capture adds squares of output gradients and squared lengths of inputs, per
 * channel, in fixed point. */
#include "pipeline/learn/weight_moments.h"

#include "base/mem.h"
#include "pipeline/wide_sum.h"

#include <inttypes.h>
#include <math.h>

/* Sums in fixed point: 2^-70, which is small beside any square of a gradient that counts, to 2^57.
 */
enum { UNIT_BITS = 70 };

/* Channels whose sums are kept, one after the other in a layer's part. */
typedef struct part {
    llama_role linear;
    hook_place place; /* where g of its outputs is seen */
    int64_t at, n;    /* n is 1 where channels are averaged */
} part;
enum { PARTS = 7 };

struct weight_moments {
    const llama_config *cfg;
    int64_t first, n, window;
    part parts[PARTS];
    int64_t each;     /* sums of a layer */
    wide_sum *sums;   /* [n, each] */
    int64_t *tokens;  /* [n] */
    double *energy_g; /* [window] |g_t|^2 of the outputs of down or o, until their inputs come */
    double *row;      /* [widest] sums of a slice */
};

static int64_t widest(const llama_config *cfg) {
    int64_t a = cfg->heads * cfg->head_dim, b = cfg->intermediate > a ? cfg->intermediate : a;
    return cfg->hidden > b ? cfg->hidden : b;
}

static int64_t set_parts(const llama_config *cfg, part *parts) {
    const int64_t q = cfg->heads * cfg->head_dim, kv = cfg->kv_heads * cfg->head_dim;
    const part table[PARTS] = {
        {ROLE_Q, HOOK_QUERY_OUT, 0, q},
        {ROLE_K, HOOK_KEY_OUT, 0, kv},
        {ROLE_V, HOOK_VALUE, 0, kv},
        {ROLE_O, HOOK_O_OUT, 0, 1},
        {ROLE_GATE, HOOK_GATE_OUT, 0, cfg->intermediate},
        {ROLE_UP, HOOK_UP_OUT, 0, cfg->intermediate},
        {ROLE_DOWN, HOOK_DOWN_OUT, 0, 1},
    };
    int64_t at = 0;
    for (int i = 0; i < PARTS; i++) {
        parts[i] = table[i];
        parts[i].at = at;
        at += parts[i].n;
    }
    return at;
}

uint64_t weight_moments_bytes(const llama_config *cfg, int64_t n, int64_t window) {
    part parts[PARTS];
    return (uint64_t)(n * set_parts(cfg, parts)) * sizeof(wide_sum) + (uint64_t)n * 8 +
           (uint64_t)(window + widest(cfg)) * 8;
}

err weight_moments_create(const llama_config *cfg, int64_t first, int64_t n, int64_t window,
                          weight_moments **out) {
    weight_moments *m;
    *out = NULL;
    err e = MEM_NEW(&m, 1, "moments of gradients");
    if (e.code) return e;
    *m = (weight_moments){.cfg = cfg, .first = first, .n = n, .window = window};
    m->each = set_parts(cfg, m->parts);
    e = MEM_NEW(&m->sums, n * m->each, "moments of gradients");
    if (!e.code) e = MEM_NEW(&m->tokens, n, "moments of gradients");
    if (!e.code) e = MEM_NEW(&m->energy_g, window, "moments of gradients");
    if (!e.code) e = MEM_NEW(&m->row, widest(cfg), "moments of gradients");
    if (e.code) weight_moments_destroy(&m);
    *out = m;
    return e;
}

void weight_moments_destroy(weight_moments **m) {
    if (!*m) return;
    mem_free((*m)->sums);
    mem_free((*m)->tokens);
    mem_free((*m)->energy_g);
    mem_free((*m)->row);
    mem_free(*m);
    *m = NULL;
}

static err add(weight_moments *m, int64_t layer, int64_t at, const double *v, int64_t n) {
    wide_sum *to = m->sums + (layer - m->first) * m->each + at;
    for (int64_t i = 0; i < n; i++) {
        if (!wide_sum_add(&to[i], v[i], UNIT_BITS))
            return err_make(ERR_NUMERICS, "gradients of the calibration text",
                            "check the model and the text",
                            "layer %" PRId64 ": the square of a gradient is %g", layer, v[i]);
    }
    return err_none();
}

/* Sums over the tokens of a slice, each channel by itself, tokens in order. */
static err add_channels(weight_moments *m, const part *p, int64_t layer, int64_t n_tokens,
                        const float *g) {
    const double energy = (double)m->cfg->hidden;
#pragma omp parallel for schedule(static)
    for (int64_t j = 0; j < p->n; j++) {
        double sum = 0;
        for (int64_t t = 0; t < n_tokens; t++) sum += (double)g[t * p->n + j] * g[t * p->n + j];
        m->row[j] = sum * energy;
    }
    return add(m, layer, p->at, m->row, p->n);
}

static double square(const float *v, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)v[i] * v[i];
    return sum;
}

/* Inputs of o and down come after their outputs: the products of the two lengths. */
static err add_lengths(weight_moments *m, const part *p, int64_t layer, int64_t n_tokens,
                       int64_t width, const float *x) {
    double sum = 0;
    for (int64_t t = 0; t < n_tokens; t++) sum += square(x + t * width, width) * m->energy_g[t];
    sum /= (double)m->cfg->hidden;
    return add(m, layer, p->at, &sum, 1);
}

static err take(void *ctx, int64_t layer, hook_place place, int64_t t0, int64_t n_tokens,
                int64_t width, const float *x, const float *g) {
    weight_moments *m = ctx;
    (void)t0;
    if (place == HOOK_O_IN) return add_lengths(m, &m->parts[3], layer, n_tokens, width, x);
    if (place == HOOK_DOWN_IN) return add_lengths(m, &m->parts[6], layer, n_tokens, width, x);
    if (place == HOOK_O_OUT || place == HOOK_DOWN_OUT) {
        if (place == HOOK_DOWN_OUT) m->tokens[layer - m->first] += n_tokens;
        for (int64_t t = 0; t < n_tokens; t++) m->energy_g[t] = square(g + t * width, width);
        return err_none();
    }
    for (int i = 0; i < PARTS; i++)
        if (m->parts[i].place == place) return add_channels(m, &m->parts[i], layer, n_tokens, g);
    return err_none();
}

llama_hook weight_moments_hook(weight_moments *m) {
    uint32_t places = 1u << HOOK_O_IN | 1u << HOOK_DOWN_IN;
    for (int i = 0; i < PARTS; i++) places |= 1u << m->parts[i].place;
    return (llama_hook){.places = places, .take = take, .ctx = m};
}

int weight_moments_pieces(const weight_moments *m, int64_t layer,
                          byte_piece out[WEIGHT_MOMENTS_PIECES]) {
    const int64_t l = layer - m->first;
    out[0] = (byte_piece){m->sums + l * m->each, (uint64_t)m->each * sizeof *m->sums};
    out[1] = (byte_piece){&m->tokens[l], sizeof m->tokens[l]};
    return WEIGHT_MOMENTS_PIECES;
}

double weight_moments_row(const weight_moments *m, int64_t layer, llama_role linear, int64_t row) {
    const int64_t l = layer - m->first;
    for (int i = 0; i < PARTS; i++) {
        const part *p = &m->parts[i];
        if (p->linear != linear || !m->tokens[l]) continue;
        const wide_sum sum = m->sums[l * m->each + p->at + (p->n == 1 ? 0 : row)];
        return wide_sum_real(sum, UNIT_BITS) / (double)m->tokens[l];
    }
    return 0;
}
