/* Matrices get samples in proportion to the noise their rows would cause; rows are drawn by
 * counter-based random numbers, rotated, and given to range_step like rows of activations. */
#include "pipeline/learn/weight_rows.h"

#include "base/mem.h"
#include "base/size.h"
#include "pipeline/learn/weight_rows_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Fewer than this of a matrix say too little; a matrix without A may be drawn from more often than
 * it has rows. */
enum { LEAST_SAMPLES = 16 };

/* Random numbers of a matrix in a step: index bits 0..19 the sample, 20..43 the matrix, then the
 * step. */
enum { SAMPLE_BITS = 20, MATRIX_BITS = 24 };

uint64_t weight_rows_index(const weight_rows *w, const weight_matrix *m, int64_t step, int64_t i) {
    uint64_t number = (uint64_t)((w->stage->first_layer + m->layer) * w->slots + m->slot);
    return (((uint64_t)step << MATRIX_BITS | number) << SAMPLE_BITS) + (uint64_t)i;
}

void weight_rows_take(const weight_matrix *m, int64_t row, double scale, float *out) {
    const float s = (float)scale;
    wmat_expand_f32(m->w, m->row0 + row, 1, 0, m->w->cols, out, m->w->cols);
    if (m->gain)
        for (int64_t j = 0; j < m->w->cols; j++) out[j] *= m->gain[j];
    for (int64_t j = 0; j < m->w->cols; j++) out[j] *= s;
}

/* ---- the matrices of a layer and their shares ---- */

static void add_matrix(weight_rows *w, weight_matrix m) {
    m.slot = w->n_matrices % w->slots;
    w->m[w->n_matrices++] = m;
}

/* A matrix with neither a learned A nor a learned B has nothing to gain: its share stays zero. */
static void list_layer(weight_rows *w, int64_t i) {
    const llama_layer *l = &w->stage->layers[i];
    const llama_config *cfg = w->stage->cfg;
    const weight_side r1 = w->o.r1 ? SIDE_R1 : SIDE_NONE, r2 = w->o.r2_heads ? SIDE_R2 : SIDE_NONE,
                      r4 = w->o.R4 ? SIDE_R4 : SIDE_NONE;
    const weight_matrix plain[] = {
        {.w = &l->q, .role = ROLE_Q, .gain = l->attn_norm, .in = r1},
        {.w = &l->k, .role = ROLE_K, .gain = l->attn_norm, .in = r1},
        {.w = &l->gate, .role = ROLE_GATE, .gain = l->mlp_norm, .in = r1},
        {.w = &l->up, .role = ROLE_UP, .gain = l->mlp_norm, .in = r1},
        {.w = &l->o, .role = ROLE_O, .in = r2, .out = r1},
        {.w = &l->down, .role = ROLE_DOWN, .in = r4, .out = r1},
    };
    for (size_t k = 0; k < sizeof plain / sizeof plain[0]; k++) {
        weight_matrix m = plain[k];
        m.layer = i;
        m.rows = m.w->rows;
        add_matrix(w, m);
    }
    for (int64_t h = 0; h < cfg->kv_heads; h++)
        add_matrix(w, (weight_matrix){.w = &l->v,
                                      .role = ROLE_V,
                                      .gain = l->attn_norm,
                                      .in = r1,
                                      .out = r2,
                                      .layer = i,
                                      .row0 = h * cfg->head_dim,
                                      .rows = cfg->head_dim});
}

static bool learns(const weight_matrix *m) {
    return m->in == SIDE_R1 || m->in == SIDE_R2 || m->out != SIDE_NONE;
}

/* Rows of o where R1 is not rotated: B alone, but B is R2, which the batch of R1 does not see. */
static bool goes_with_batch(const weight_matrix *m) {
    return m->out == SIDE_NONE && m->in == SIDE_R1;
}

static double row_energy(const weight_matrix *m, int64_t row, float *buf) {
    double sum = 0;
    weight_rows_take(m, row, 1, buf);
    for (int64_t j = 0; j < m->w->cols; j++) sum += (double)buf[j] * buf[j];
    return sum;
}

static err set_share(weight_rows *w, const weight_moments *mo, weight_matrix *m) {
    const int64_t layer = w->stage->first_layer + m->layer;
    const bool direct = goes_with_batch(m);
    double moment = 0, energy = 0, sum = 0;
    if (!learns(m)) return err_none();
    if (direct) {
        err e = MEM_NEW(&m->edges, m->rows, "shares of rows");
        if (e.code) return e;
    }
    for (int64_t i = 0; i < m->rows; i++) {
        const double mi = weight_moments_row(mo, layer, m->role, m->row0 + i),
                     ei = row_energy(m, i, w->row);
        moment += mi;
        energy += ei;
        sum += mi * ei;
        if (direct) m->edges[i] = sum;
    }
    /* mixed rows share the moments and the energy of the matrix alike */
    m->share = direct ? sum : moment * energy / (double)m->rows;
    m->scale = energy > 0 ? sqrt((double)w->stage->cfg->hidden * (double)m->rows / energy) : 0;
    return err_none();
}

/* K of all matrices of the model, layers in order, summed in that order on every rank. */
static double sum_shares(const comm *c, const weight_rows *w) {
    double *mine = malloc((size_t)(w->n_matrices + 1) * sizeof *mine), total = 0;
    size_t len;
    if (!mine) abort();
    for (int64_t i = 0; i < w->n_matrices; i++) mine[i] = w->m[i].share;
    void *all = comm_gather_joined(c, mine, (size_t)w->n_matrices * sizeof *mine, &len);
    comm_bcast_blob(c, &all, &len, 0);
    for (size_t i = 0; i < len / sizeof(double); i++) total += ((double *)all)[i];
    free(mine);
    free(all);
    return total;
}

static int64_t groups_of(const weight_matrix *m, const wquant *how) {
    return m->w->cols / wquant_group(how, m->w->cols);
}

/* Samples by share, in whole numbers; what rounding takes or adds, the weight gives back. */
static void deal_samples(weight_rows *w, weight_matrix *m) {
    const double ideal = (double)w->o.rows * m->share / w->total;
    if (!(m->share > 0)) return;
    int64_t most = goes_with_batch(m) ? (int64_t)1 << SAMPLE_BITS : m->rows;
    m->count = size_min(most, size_max(LEAST_SAMPLES, llrint(ideal)));
    m->weight = (float)(ideal / (double)m->count / (double)groups_of(m, &w->o.how));
    w->heaviest = fmax(w->heaviest, (double)m->weight);
    w->samples += m->count;
    if (goes_with_batch(m)) w->direct += m->count;
}

/* ---- life ---- */

static int64_t widest_of(const llama_config *cfg) {
    return size_max(cfg->hidden, size_max(cfg->intermediate, cfg->heads * cfg->head_dim));
}

uint64_t weight_rows_bytes(const llama_config *cfg, const weight_rows_options *o,
                           int64_t n_layers) {
    uint64_t wide = (uint64_t)widest_of(cfg), n = (uint64_t)n_layers,
             rows = (uint64_t)((cfg->heads + 2 * cfg->kv_heads) * cfg->head_dim +
                               2 * cfg->intermediate);
    return n * rows * sizeof(double) + n * (uint64_t)(6 + cfg->kv_heads) * sizeof(weight_matrix) +
           MIX_ROWS * (wide * 14 + 12) + 4 * wide +
           4 * (uint64_t)(o->r2_heads * cfg->head_dim * cfg->head_dim);
}

static err alloc_buffers(weight_rows *w) {
    const int64_t d = w->stage->cfg->head_dim, n = MIX_ROWS * w->widest;
    weight_mix *mix = &w->mix;
    *mix = (weight_mix){.a = NULL};
    err e = MEM_NEW(&w->row, w->widest, "a row of weights");
    if (!e.code) e = MEM_NEW(&mix->a, n, "mixed rows of weights");
    if (!e.code) e = MEM_NEW(&mix->z, n, "mixed rows of weights");
    if (!e.code) e = MEM_NEW(&mix->u, n, "mixed rows of weights");
    if (!e.code) e = MEM_NEW(&mix->da, n, "mixed rows of weights");
    if (!e.code) e = MEM_NEW(&mix->loss, MIX_ROWS, "rows");
    if (!e.code) e = MEM_NEW(&mix->at, MIX_ROWS, "rows");
    if (!e.code) e = MEM_NEW(&w->R2, w->o.r2_heads * d * d, "R2 in fp32");
    return e;
}

static err fill(weight_rows *w, const weight_moments *mo) {
    err e = MEM_NEW(&w->m, w->stage->n_layers * w->slots, "matrices");
    if (!e.code) e = alloc_buffers(w);
    for (int64_t i = 0; i < w->stage->n_layers && !e.code; i++) list_layer(w, i);
    for (int64_t i = 0; i < w->n_matrices && !e.code; i++) {
        if (w->m[i].w->kind != WMAT_BF16)
            e = err_make(ERR_BUG, "rows of weights", NULL, "weights are not bf16");
        if (!e.code) e = set_share(w, mo, &w->m[i]);
    }
    return e;
}

err weight_rows_create(const comm *c, const weight_rows_options *o, const llama_stage *stage,
                       const weight_moments *m, weight_rows **out) {
    *out = NULL;
    weight_rows *w = calloc(1, sizeof *w);
    if (!w) abort();
    w->o = *o;
    w->stage = stage;
    w->slots = 6 + stage->cfg->kv_heads;
    w->widest = widest_of(stage->cfg);
    err e = comm_agree(c, fill(w, m), "rows of weights", NULL);
    if (!e.code) w->total = sum_shares(c, w);
    if (!e.code && !(w->total > 0 && isfinite(w->total)))
        e = err_make(ERR_NUMERICS, "rows of weights", "check the calibration text",
                     "what rounding weights would cost comes out as %g", w->total);
    for (int64_t i = 0; i < w->n_matrices && !e.code; i++) deal_samples(w, &w->m[i]);
    comm_max_f64(c, &w->heaviest, 1);
    comm_sum_i64(c, &w->samples, 1);
    if (e.code) weight_rows_destroy(&w);
    *out = w;
    return e;
}

void weight_rows_destroy(weight_rows **w) {
    if (!*w) return;
    weight_rows *x = *w;
    for (int64_t i = 0; i < x->n_matrices; i++) mem_free(x->m[i].edges);
    void *p[] = {x->m,      x->row,    x->mix.a,    x->mix.z, x->mix.u,
                 x->mix.da, x->mix.at, x->mix.loss, x->R2};
    for (size_t i = 0; i < sizeof p / sizeof p[0]; i++) mem_free(p[i]);
    free(x);
    *w = NULL;
}

int64_t weight_rows_direct(const weight_rows *w) {
    return w->direct;
}

int64_t weight_rows_groups(const weight_rows *w) {
    return w->o.r1 ? w->stage->cfg->hidden / wquant_group(&w->o.how, w->stage->cfg->hidden) : 1;
}

double weight_rows_heaviest(const weight_rows *w) {
    return w->heaviest;
}

int64_t weight_rows_samples(const weight_rows *w) {
    return w->samples;
}

/* A sample of weight ideal / count / groups, scaled to |z|^2 = hidden, stands for K / rows of what
 * the header's sum has for the whole model. */
double weight_rows_unit(const weight_rows *w) {
    const double levels = ldexp(1, w->o.how.bits) - (w->o.how.symmetric ? 2 : 1);
    return w->total / ((double)w->o.rows * (double)w->stage->cfg->hidden * 24 * levels * levels);
}

/* ---- rows that nothing mixes ---- */

/* The row in whose part of the running sums v falls. */
static int64_t find_row(const weight_matrix *m, double v) {
    int64_t lo = 0, hi = m->rows - 1;
    while (lo < hi) {
        const int64_t mid = lo + (hi - lo) / 2;
        if (m->edges[mid] > v)
            hi = mid;
        else
            lo = mid + 1;
    }
    return lo;
}

void weight_rows_add(weight_rows *w, int64_t step, float factor, range_work *batch) {
    const double length = sqrt((double)w->stage->cfg->hidden);
    const range_rule rule = {
        .symmetric = w->o.how.symmetric, .include_zero = true, .group = w->o.how.group};
    for (int64_t k = 0; k < w->n_matrices; k++) {
        const weight_matrix *m = &w->m[k];
        for (int64_t i = 0; goes_with_batch(m) && i < m->count; i++) {
            const double r =
                rng_uniform(w->o.seed, RNG_WEIGHT_ROWS, weight_rows_index(w, m, step, i));
            const int64_t row = find_row(m, ((double)i + r) / (double)m->count * m->share);
            const double energy = row_energy(m, row, w->row);
            if (!(energy > 0)) continue;
            const float s = (float)(length / sqrt(energy));
            for (int64_t j = 0; j < m->w->cols; j++) w->row[j] *= s;
            range_add_row(batch, w->row, factor * m->weight, rule);
        }
    }
}
