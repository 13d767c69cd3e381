/* Draw rows, take loss and gradient as integers (range_step), sum over ranks, step R1 by
 * cayley_dist and R2 by the optimiser of the owning rank. */
#include "pipeline/learn/learn_range_internal.h"

#include "base/clock.h"
#include "base/mem.h"
#include "base/size.h"
#include "pipeline/learn/weight_mix.h"
#include "pipeline/plan/product_peak.h"
#include "rotations/cayley.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { TILE = 32 }; /* columns of a band of the gradient that stay in cache */

static double largest_weight(const comm *c, const row_pool *p, pool_kind kind) {
    double most = 0;
    int64_t sets = kind == POOL_R1 ? 2 * p->n_layers : p->n_layers;
    for (int64_t i = 0; i < sets; i++)
        for (int64_t r = 0; r < p->sets[kind][i].n; r++)
            most = fmax(most, (double)p->sets[kind][i].w[r]);
    comm_max_f64(c, &most, 1);
    return most;
}

/* Noise of a quantizer of b bits is its range over 2^b - 1: the weight of a site against others. */
static double noise_of(const aquant *q) {
    double levels = ldexp(1, q->bits) - 1;
    return 1 / (levels * levels);
}

/* Only proportions matter: the larger of the two is one. */
static float site_weight(const learn_range_options *o, const aquant *q) {
    double most = 0;
    if (aquant_on(&o->act)) most = fmax(most, noise_of(&o->act));
    if (range_values_count(o)) most = fmax(most, noise_of(&o->kv));
    return aquant_on(q) ? (float)(noise_of(q) / most) : 0;
}

/* Entries of a row of n that share a range, and their part of it: noise in one range is felt by
 * the gradient of its own entries alone. */
static int64_t group_of(const aquant *q, int64_t n) {
    return q->group && q->group < n ? q->group : n;
}
static float part_of_row(const aquant *q, int64_t n) {
    return (float)group_of(q, n) / (float)n;
}

/* The noise of an input over that of the others, which are of act.bits: less where it has 8. */
static float noise_beside(const learn_range_options *o, input_place place, int64_t layer) {
    aquant own = o->act;
    own.bits = input_bits_of(&o->eight, place, layer, own.bits);
    return (float)(noise_of(&own) / noise_of(&o->act));
}

static err check_options(const learn_range_options *o, bool weights) {
    bool r1 = o->r1 && (aquant_on(&o->act) || weights),
         r2 = o->r2_heads && (aquant_on(&o->act) || range_values_count(o) || weights);
    if (r1 || r2) return err_none();
    return err_make(
        ERR_USAGE, "learn", "set activations.bits, kv.bits or weights: true, or leave learn empty",
        "nothing that a rotation stands before is quantized: there is nothing to learn");
}

void learn_range_share_r1(learn_range *l) {
    cayley_dist_get_rows_bf16(l->r1, 0, l->n, l->R1);
}

/* Collective: rows of the start pass through every rank. */
static void put_start_r1(learn_range *l, const dealt_rows *R1) {
    double *band = (double *)l->rows;
    for (int64_t row = 0; row < l->n; row += RANGE_BAND) {
        const int64_t b = size_min(RANGE_BAND, l->n - row);
        dealt_rows_get(R1, row, b, band);
        cayley_dist_put_rows(l->r1, row, b, band);
    }
    learn_range_share_r1(l);
}

/* R2 has no channels of its own to let turn: with them its losses moved in no digit that matters.
 */
static optimizer_kind kind_of_r1(const learn_range_options *o) {
    return optimizer_is_adam(o->kind) ? OPTIMIZER_ADAM_CHANNELS : o->kind;
}

static err create_r1(learn_range *l, const dealt_rows *R1) {
    cayley_dist_options co = {.n = l->n,
                              .kind = kind_of_r1(&l->o),
                              .grid = l->o.grid,
                              .blas_threads = l->o.blas_threads,
                              .rough_gradient = true};
    err e = cayley_dist_create(l->c, &co, &l->r1);
    if (e.code) return e;
    int64_t sites = 2 * l->o.layers;
    l->per_site = size_ceil_div(l->o.rows, sites);
    int64_t most = (aquant_on(&l->o.act) ? l->per_site * 2 * l->pool->n_layers : 0) +
                   (l->weights ? weight_rows_direct(l->weights) : 0);
    const int64_t groups =
        size_max(l->n / group_of(&l->o.act, l->n), l->weights ? weight_rows_groups(l->weights) : 1);
    e = range_work_create(l->n, size_max(1, most), groups, &l->work1);
    if (!e.code) e = MEM_NEW(&l->grad1, l->n * l->n, "gradient of R1");
    if (!e.code) e = MEM_NEW(&l->rows, RANGE_BAND * l->n, "gradient of R1");
    if (!e.code) e = MEM_NEW(&l->R1, l->n * l->n, "R1 in bf16");
    e = comm_agree(l->c, e, "learning", NULL);
    if (!e.code) put_start_r1(l, R1);
    return e;
}

static err create_r2(learn_range *l, const double *R2) {
    int64_t dd = l->d * l->d;
    l->n_r2 = l->pool->n_layers * l->o.r2_heads;
    err e = MEM_NEW(&l->R2, l->n_r2 * dd, "R2");
    if (!e.code) e = MEM_NEW(&l->W2, l->n_r2 * dd, "directions of R2");
    if (!e.code) e = MEM_NEW(&l->kept2, l->n_r2 * dd, "R2 as it was");
    if (!e.code) e = MEM_NEW(&l->grad2, dd, "gradient of R2");
    if (!e.code)
        e = range_work_create(l->d, 2 * R2_ROWS, l->d / group_of(&l->o.act, l->d), &l->work2);
    if (!e.code && l->n_r2) e = optimizer_create(l->o.kind, l->d, l->n_r2, &l->r2);
    if (!e.code && l->weights) e = MEM_NEW(&l->G2, l->n_r2 * dd, "gradients of R2");
    if (!e.code && l->n_r2) memcpy(l->R2, R2, (size_t)(l->n_r2 * dd) * sizeof(double));
    return e;
}

/* Rows of weights among rows of activations, all in one unit: the expected change of the loss per
 * token. Noise of variance s^2 in every entry of an activation changes it by 1/2 s^2 |g|^2, and
 * s = range / L sqrt(12) with L = 2^b - 1 (symmetric: 2^b - 2). So a sum of w range^2 over
 * per_site rows of each site, whose raw |g|^2 were divided by their mean, counts mean / (24 L^2
 * per_site); a sum over rows of weights counts weight_rows_unit. Of R2 the sums over values and
 * o_proj inputs have each a mean of their own: the middle of the two stands for both. */
static void set_factors(learn_range *l) {
    const row_pool *p = l->pool;
    const double unit = weight_rows_unit(l->weights), half = l->o.act.symmetric ? 2 : 1,
                 levels = ldexp(1, l->o.act.bits) - half;
    l->factor1 = l->factor2 = 1;
    if (l->o.r1 && aquant_on(&l->o.act)) {
        l->factor1 = unit * 24 * levels * levels * (double)l->per_site / p->mean[POOL_R1];
        l->w_max1 = fmax(l->w_max1, l->factor1 * weight_rows_heaviest(l->weights));
    } else {
        l->w_max1 = weight_rows_heaviest(l->weights);
    }
    double rows = 0, noise = 0;
    int kinds = 0;
    if (range_values_count(&l->o)) {
        rows += (double)p->kv_heads * p->mean[POOL_VALUE];
        noise = fmax(noise, noise_of(&l->o.kv));
        kinds++;
    }
    if (range_outputs_count(&l->o)) {
        rows += (double)p->heads * p->mean[POOL_O];
        noise = fmax(noise, noise_of(&l->o.act));
        kinds++;
    }
    if (kinds) l->factor2 = unit * 24 * R2_ROWS * (double)(kinds * l->o.r2_heads) / (rows * noise);
}

static uint64_t bytes_of_r2(int64_t d, const learn_range_options *o, int64_t n_layers,
                            bool weights) {
    const uint64_t dd = (uint64_t)(d * d) * sizeof(double);
    /* R2, directions, R2 as it was, M, G2 */
    const uint64_t each = 3 + (o->kind == OPTIMIZER_ADAM) + weights;
    return (uint64_t)(n_layers * o->r2_heads) * dd * each + dd +
           range_work_bytes(d, 2 * R2_ROWS, d / group_of(&o->act, d));
}

uint64_t learn_range_bytes(const llama_config *cfg, const learn_range_options *o, int64_t n_layers,
                           bool cell, int64_t rows_of_weights, int64_t groups) {
    const int64_t n = cfg->hidden, per_site = size_ceil_div(o->rows, 2 * o->layers);
    const uint64_t n2 = (uint64_t)(n * n);
    const bool act = aquant_on(&o->act);
    const cayley_dist_options r1 = {.n = n, .kind = kind_of_r1(o), .grid = o->grid};
    uint64_t bytes = 0;
    if (o->r1 && (act || rows_of_weights)) {
        const int64_t rows = (act ? per_site * 2 * n_layers : 0) + rows_of_weights;
        bytes +=
            n2 * (sizeof(int64_t) + sizeof(bf16)) +
            2 * (uint64_t)(RANGE_BAND * n) * sizeof(int64_t) + /* as rows, and dealt to cells */
            range_work_bytes(n, size_max(1, rows), size_max(n / group_of(&o->act, n), groups));
        bytes += cell ? cayley_dist_plan_bytes(&r1) : cayley_dist_beside_bytes(&r1);
    }
    if (o->r2_heads) bytes += bytes_of_r2(cfg->head_dim, o, n_layers, rows_of_weights > 0);
    return bytes + product_peak_bytes(COMPUTE_BF16);
}

/* Collective. */
static double measure_peak(const comm *c) {
    int64_t mega = (int64_t)(product_peak(COMPUTE_BF16) / 1e6);
    comm_sum_i64(c, &mega, 1);
    return 1e6 * (double)mega;
}

err learn_range_create(const comm *c, const learn_range_options *o, row_pool *pool,
                       weight_rows *weights, const dealt_rows *R1, const double *R2,
                       learn_range **out) {
    *out = NULL;
    err e = comm_agree(c, check_options(o, weights != NULL), "learning", NULL);
    if (e.code) return e;
    learn_range *l = calloc(1, sizeof *l);
    if (!l) abort();
    l->c = c;
    l->o = *o;
    l->judge1 = l->judge2 =
        learn_judge_new(JUDGE_NOISE, JUDGE_PATIENCE, learn_judge_most(l->o.steps));
    l->o.r1 = o->r1 && (aquant_on(&o->act) || weights);
    l->pool = pool;
    l->weights = weights;
    l->n = pool->hidden;
    l->d = pool->head_dim;
    if (l->o.r1) e = create_r1(l, R1);
    if (!e.code && o->r2_heads) e = comm_agree(c, create_r2(l, R2), "learning", NULL);
    l->w_max1 = largest_weight(c, pool, POOL_R1);
    l->w_max2 = fmax(largest_weight(c, pool, POOL_VALUE), largest_weight(c, pool, POOL_O));
    if (!e.code && weights) set_factors(l);
    if (!e.code && o->measure) l->peak = measure_peak(c);
    if (e.code) learn_range_destroy(&l);
    *out = l;
    return e;
}

void learn_range_destroy(learn_range **l) {
    if (!*l) return;
    learn_range *x = *l;
    cayley_dist_destroy(&x->r1);
    optimizer_destroy(&x->r2);
    range_work_destroy(&x->work1);
    range_work_destroy(&x->work2);
    mem_free(x->R1);
    mem_free(x->R2);
    mem_free(x->W2);
    mem_free(x->kept2);
    mem_free(x->G2);
    mem_free(x->grad1);
    mem_free(x->grad2);
    mem_free(x->rows);
    free(x);
    *l = NULL;
}

/* Bytes that the sums of all ranks fit in, the same on every rank: RANGE_SUM_BYTES, which plans
 * count with, unless a gradient is larger than any that was met. */
static int bytes_of_sums(const learn_range *l, const range_batch *b) {
    int64_t most = 0;
#pragma omp parallel for reduction(max : most)
    for (int64_t i = 0; i < l->n * l->n; i++) most = size_max(most, llabs(b->grad[i]));
    comm_max_i64(l->c, &most, 1);
    return most <= (INT64_C(1) << (8 * RANGE_SUM_BYTES - 1)) / (comm_size(l->c) + 1)
               ? RANGE_SUM_BYTES
               : (int)sizeof *b->grad;
}

/* The transposed integers of a batch as rows of G, at once where ranks share the step, else a band
 * at a time, into the distributed sum. */
static void sum_gradient(learn_range *l, const range_batch *b) {
    const int exponent = ilogb(b->unit);
    if (cayley_dist_sum_transposed(l->r1, b->grad, exponent)) return;
    const int bytes = bytes_of_sums(l, b);
    for (int64_t i0 = 0; i0 < l->n; i0 += RANGE_BAND) {
        int64_t rows = size_min(RANGE_BAND, l->n - i0);
#pragma omp parallel for
        for (int64_t j0 = 0; j0 < l->n; j0 += TILE)
            for (int64_t i = 0; i < rows; i++)
                for (int64_t j = j0; j < l->n && j < j0 + TILE; j++)
                    l->rows[i * l->n + j] = b->grad[j * l->n + i0 + i];
        cayley_dist_sum_gradient(l->r1, i0, rows, l->rows, exponent, bytes);
    }
}

void learn_range_draw_r1(learn_range *l, range_part part) {
    const range_rule rule = {
        .symmetric = l->o.act.symmetric, .include_zero = true, .group = l->o.act.group};
    for (int64_t i = 0; i < 2 * l->pool->n_layers; i++) {
        const int64_t site = 2 * l->pool->first_layer + i;
        const uint64_t start = rng_u64(l->o.seed, RNG_RANGE_ROWS, (uint64_t)site) >> 32,
                       at = start + (uint64_t)(l->step * l->per_site);
        const float beside = noise_beside(&l->o, i % 2 ? INPUT_MLP : INPUT_ATTN, site / 2);
        const range_draw d = {.rule = rule,
                              .weight = part_of_row(&l->o.act, l->n) * beside,
                              .first_index = part == RANGE_HELD ? 0 : at,
                              .order = part == RANGE_HELD ? RANGE_HELD_IN_ORDER : RANGE_IN_ORDER};
        range_add(l->work1, &l->pool->sets[POOL_R1][i], d, l->per_site);
    }
}

/* Everything that touches R1: activations, and rows of weights, which touch R2 too (l->G2). */
static void take_batch(learn_range *l, range_batch *b) {
    const bool act = l->o.r1 && aquant_on(&l->o.act);
    *b = (range_batch){.n = l->n, .unit = 1, .grad = l->grad1};
    if (l->o.r1) {
        range_begin_bf16(l->work1, l->R1);
        if (act) learn_range_draw_r1(l, RANGE_LEARNED);
        if (l->weights) weight_rows_add(l->weights, l->step, (float)l->factor1, l->work1);
        range_finish(l->work1, l->w_max1, b);
    }
    if (l->weights) {
        if (l->G2) memset(l->G2, 0, (size_t)(l->n_r2 * l->d * l->d) * sizeof *l->G2);
        weight_rows_mix(l->weights, l->step, (float)l->factor1,
                        l->o.r1 ? range_rotation(l->work1) : NULL, l->R2, b, l->G2);
    }
}

double learn_range_loss_r1(const learn_range *l, int64_t loss) {
    const bool act = l->o.r1 && aquant_on(&l->o.act);
    const int64_t rows = act ? l->per_site * 2 * l->o.layers : l->o.rows; /* weights sum to it */
    return (double)loss * RANGE_LOSS_UNIT / (double)rows;
}

double learn_range_loss_r2(const learn_range *l, int64_t loss) {
    return (double)loss * RANGE_LOSS_UNIT / (double)(l->o.layers * l->o.r2_heads * 2 * R2_ROWS);
}

static err step_r1(learn_range *l, const range_batch *b, learn_report *report) {
    sum_gradient(l, b);
    optimizer_report r;
    const double rate = l->judge1.rate, share = rate * RANGE_PROMISED,
                 lr = rate * lr_schedule_at(l->o.schedule, l->o.lr_r1, l->step, l->o.steps);
    err e = cayley_dist_step(l->r1, lr, share * (double)b->loss * RANGE_LOSS_UNIT, &r);
    if (e.code) return e;
    report->angle_r1 = r.angle;
    report->promise = share * r.promise;
    learn_range_share_r1(l);
    return cayley_dist_probe(l->r1, l->o.seed, l->step, &report->orthogonality);
}

int learn_range_passes_r2(const learn_range *l) {
    return l->o.cache_rotation ? 2 : 1;
}

/* R2, or R2 T where the rows are values that the runtime rotates. */
static void begin_r2(learn_range *l, int64_t matrix, bool rotated) {
    const int64_t dd = l->d * l->d;
    const double *R2 = l->R2 + matrix * dd;
    if (!rotated) {
        range_begin(l->work2, R2);
        return;
    }
    double *both = malloc((size_t)dd * sizeof *both);
    if (!both) abort();
    memcpy(both, R2, (size_t)dd * sizeof *both);
    rotation_apply_f64(l->o.cache_rotation, both, l->d, l->d, false);
    range_begin(l->work2, both);
    free(both);
}

void learn_range_draw_r2(learn_range *l, int64_t matrix, range_part part, int pass) {
    int64_t heads = l->o.r2_heads, layer = matrix / heads, head = matrix % heads;
    int64_t global = (l->pool->first_layer + layer) * heads + head, all = l->o.layers * heads;
    const bool held = part == RANGE_HELD;
    const int64_t step = held ? 0 : l->step;
    range_draw d = {.seed = l->o.seed,
                    .purpose = held ? RNG_RANGE_HELD_R2 : RNG_RANGE_ROWS_R2,
                    .order = held ? RANGE_HELD_AT_RANDOM : RANGE_AT_RANDOM};
    uint64_t first = (uint64_t)((step * all + global) * 2 * R2_ROWS);
    int64_t kv = l->pool->kv_heads, q = l->pool->heads;
    const bool apart = learn_range_passes_r2(l) > 1;
    begin_r2(l, matrix, apart && pass == 0);
    if (range_values_count(&l->o) && pass == 0) {
        d.rule = (range_rule){.symmetric = l->o.kv.symmetric, .include_zero = false};
        d.weight = site_weight(&l->o, &l->o.kv);
        d.first_index = first;
        d.period = kv;
        d.span = heads > 1 ? 1 : kv;
        d.offset = heads > 1 ? head : 0;
        range_add(l->work2, &l->pool->sets[POOL_VALUE][layer], d, R2_ROWS);
    }
    if (range_outputs_count(&l->o) && pass == (apart ? 1 : 0)) {
        d.rule = (range_rule){.symmetric = l->o.act.symmetric,
                              .include_zero = l->o.act.group > 0,
                              .group = group_of(&l->o.act, l->d)};
        d.weight = site_weight(&l->o, &l->o.act) * part_of_row(&l->o.act, l->d) *
                   noise_beside(&l->o, INPUT_O, l->pool->first_layer + layer);
        d.first_index = first + R2_ROWS;
        d.period = q;
        d.span = heads > 1 ? q / kv : q;
        d.offset = heads > 1 ? head * (q / kv) : 0;
        range_add(l->work2, &l->pool->sets[POOL_O][layer], d, R2_ROWS);
    }
}

/* dL/dR2 of one matrix into G; its loss on activations. */
static int64_t gradient_r2(learn_range *l, int64_t m, double *G) {
    const int64_t d = l->d, dd = d * d;
    range_batch b = {.grad = l->grad2};
    int64_t loss = 0;
    const bool any = range_values_count(&l->o) || range_outputs_count(&l->o);
    memset(G, 0, (size_t)dd * sizeof *G);
    for (int pass = 0; any && pass < learn_range_passes_r2(l); pass++) {
        learn_range_draw_r2(l, m, RANGE_LEARNED, pass);
        range_finish(l->work2, l->w_max2, &b);
        loss += b.loss;
        for (int64_t i = 0; i < d; i++)
            for (int64_t j = 0; j < d; j++) G[i * d + j] += (double)b.grad[j * d + i] * b.unit;
        /* The sums of the values are by R2 T: by R2 they are these times T^T. */
        if (pass == 0) rotation_apply_f64(l->o.cache_rotation, G, d, d, true);
    }
    for (int64_t k = 0; l->G2 && k < dd; k++) G[k] += l->G2[m * dd + k] * (l->factor2 / l->factor1);
    return loss;
}

static err step_r2(learn_range *l, int64_t *loss, learn_report *report) {
    const int64_t dd = l->d * l->d;
    double *G = malloc((size_t)dd * sizeof *G), *each = calloc((size_t)l->n_r2 + 1, sizeof *each);
    if (!G || !each) abort();
    const double rate = l->judge2.rate, share = rate * RANGE_PROMISED,
                 lr = rate * lr_schedule_at(l->o.schedule, l->o.lr_r2, l->step, l->o.steps);
    err e = err_none();
    for (int64_t m = 0; m < l->n_r2 && !e.code; m++) {
        const int64_t mine = gradient_r2(l, m, G);
        *loss += mine;
        /* What rows of weights lose by R2 stands in the loss of R1: the bound needs all or none. */
        if (!l->G2) each[m] = share * (double)mine * RANGE_LOSS_UNIT;
        e = cayley_skew(l->d, G, l->R2 + m * dd, l->W2 + m * dd);
    }
    optimizer_report r = {0};
    if (!e.code && l->n_r2) e = optimizer_step(l->r2, lr, each, l->W2, l->R2, &r);
    free(G);
    free(each);
    e = comm_agree(l->c, e, "step of R2", NULL);
    comm_max_f64(l->c, &r.angle, 1);
    report->angle_r2 = r.angle;
    return e;
}

/* Rows of R1 a second, and the products u = x R of all rows at the measured peak in their share of
 * the time. */
static void tell_speed(const learn_range *l, double seconds, learn_report *report) {
    const double n = (double)l->n, d = (double)l->d,
                 act = aquant_on(&l->o.act) ? (double)(l->per_site * 2 * l->o.layers) : 0,
                 weights = l->weights ? (double)weight_rows_samples(l->weights) : 0,
                 rows = l->o.r1 ? act + weights : 0,
                 rows_r2 = (double)(l->o.layers * l->o.r2_heads * R2_ROWS *
                                    (range_values_count(&l->o) + range_outputs_count(&l->o)));
    if (seconds <= 0) return;
    report->tokens_per_s = (rows > 0 ? rows : rows_r2) / seconds;
    if (l->peak > 0) report->peak_share = 2 * (rows * n * n + rows_r2 * d * d) / seconds / l->peak;
}

err learn_range_step(learn_range *l, learn_report *report) {
    const double start = clock_now_s();
    memset(report, 0, sizeof *report);
    err e = err_none();
    range_batch b = {.loss = 0};
    int64_t loss_r2 = 0;
    if (l->o.r1 || l->weights) {
        take_batch(l, &b);
        comm_sum_i64(l->c, &b.loss, 1);
        report->loss = learn_range_loss_r1(l, b.loss);
    }
    if (l->o.r1) e = step_r1(l, &b, report);
    if (!e.code && l->o.r2_heads) e = step_r2(l, &loss_r2, report);
    if (!e.code && l->o.r2_heads) {
        comm_sum_i64(l->c, &loss_r2, 1);
        report->loss_r2 = learn_range_loss_r2(l, loss_r2);
    }
    if (!e.code) l->step++;
    report->step = l->step;
    tell_speed(l, clock_now_s() - start, report);
    return e;
}

void learn_range_take_r1(learn_range *l, dealt_rows *to) {
    if (!l->o.r1) return;
    double *band = (double *)l->rows;
    for (int64_t row = 0; row < l->n; row += RANGE_BAND) {
        const int64_t b = size_min(RANGE_BAND, l->n - row);
        cayley_dist_get_rows(l->r1, row, b, band);
        dealt_rows_put(to, row, b, band);
    }
}

uint64_t learn_range_r1_bytes(const learn_range *l) {
    int64_t most = l->o.r1 ? (int64_t)cayley_dist_bytes(l->r1) : 0;
    comm_max_i64(l->c, &most, 1);
    return (uint64_t)most;
}

const double *learn_range_r2(const learn_range *l) {
    return l->R2;
}

uint64_t learn_range_replica(const learn_range *l, const void **data) {
    *data = l->R1;
    return l->R1 ? (uint64_t)(l->n * l->n) * sizeof *l->R1 : 0;
}
