/* Draw windows, run the pass, sum integers over all ranks, step R1 by cayley_dist, R2 by r2_part
 * and scales by scale_part; if a sum overflowed, raise the exponent and repeat the step. */
#include "base/clock.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/size.h"
#include "model/sites.h"
#include "model/tensors.h"
#include "pipeline/learn/e2e_batch.h"
#include "pipeline/learn/learn_e2e_internal.h"
#include "pipeline/learn/range_step.h"
#include "pipeline/plan/product_peak.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static int64_t entries_of(const llama_config *cfg, const learn_e2e_options *o) {
    return o->r2_heads * cfg->head_dim * cfg->head_dim;
}

/* Entries of the scales of a layer that are learned. */
static int64_t scales_of(const llama_config *cfg, const learn_e2e_options *o) {
    const scale_sizes sizes = llama_scale_sizes(cfg);
    return scale_sizes_at(&sizes, o->scales, SCALE_KINDS);
}

uint64_t learn_e2e_fixed_bytes(const llama_config *cfg, const learn_e2e_options *o) {
    enum { SUM = 8, DENSE = 4, R2_DOUBLES = 9 };
    const uint64_t n2 = (uint64_t)cfg->hidden * (uint64_t)cfg->hidden;
    const cayley_dist_options r1 = {.n = cfg->hidden, .kind = o->kind, .grid = o->grid};
    const uint64_t r2 = (uint64_t)(cfg->layers * entries_of(cfg, o)) * R2_DOUBLES * sizeof(double);
    const scale_sizes sizes = llama_scale_sizes(cfg);
    return (o->r1 ? n2 * (SUM + DENSE) + cayley_dist_plan_bytes(&r1) : 0) + r2 +
           scale_part_bytes(&sizes, o->scales);
}

err learn_e2e_check(const learn_e2e_options *o, llama_pass_shape *shape) {
    const bool act = aquant_on(&o->sites.act), kv = aquant_on(&o->sites.kv);
    shape->r1 = o->r1 && (act || o->weights);
    shape->r2 = o->r2_heads > 0 && (act || kv || o->weights);
    if (shape->window > o->length)
        return err_make(ERR_USAGE, "learn.window", "make calib.window as long, or window shorter",
                        "windows of %" PRId64 " tokens from calibration windows (calib.window) of "
                        "%" PRId64,
                        shape->window, o->length);
    shape->scales = act || kv || o->weights ? o->scales : 0;
    if (shape->r1 || shape->r2 || shape->scales) return err_none();
    return err_make(
        ERR_USAGE, "learn", "set activations.bits or kv.bits, or leave learn empty",
        "nothing that a rotation stands before is quantized: there is nothing to learn");
}

/* ---- creation ---- */

static err join(learn_e2e *l) {
    const int rank = comm_rank(l->c), stages = l->l->stages;
    l->active = rank < l->l->replicas * stages;
    l->replica = rank / stages;
    l->number = rank % stages;
    if (l->active) l->range = l->l->ranges[l->number];
    if (comm_size(l->c) == 1) return err_none();
    err e = comm_split(l->c, l->active ? l->replica : -1, "replica", &l->stages);
    return e.code ? e : comm_split(l->c, l->active ? l->number : -1, "same stage", &l->peers);
}

static const comm *stages_of(const learn_e2e *l) {
    return l->stages ? l->stages : l->c;
}

void learn_e2e_share_r1(learn_e2e *l) {
    const int64_t n = l->cfg->hidden;
    const bool wide = l->w->shape.compute == COMPUTE_F64;
    for (int64_t row = 0; row < n; row += E2E_BAND) {
        const int64_t b = size_min(E2E_BAND, n - row);
        if (wide)
            cayley_dist_get_rows(l->r1, row, b, l->band);
        else
            cayley_dist_get_rows_f32(l->r1, row, b, l->band);
        if (!l->active) continue;
        if (wide)
            rotation_put_rows(l->R1, row, b, l->band);
        else
            rotation_put_rows_f32(l->R1, row, b, l->band);
    }
}

static err create_rotation(const learn_e2e *l, rotation **out) {
    const int64_t n = l->cfg->hidden;
    return l->w->shape.compute == COMPUTE_F64 ? rotation_create_dense(n, NULL, out)
                                              : rotation_create_dense_f32(n, out);
}

void learn_e2e_share_r2(learn_e2e *l) {
    const int64_t d = l->cfg->head_dim, first = l->range.first * l->o.r2_heads;
    for (int64_t m = 0; m < l->range.n * l->o.r2_heads; m++)
        rotation_put_rows(l->R2[first + m], 0, d, r2_part_get(l->r2) + m * d * d);
}

/* The matrix that is used while it is learned, or as it was given. */
static err create_r1(learn_e2e *l, const dealt_rows *R1) {
    const int64_t n = l->cfg->hidden;
    const cayley_dist_options co = {
        .n = n, .kind = l->o.kind, .grid = l->o.grid, .blas_threads = l->o.blas_threads};
    err e = mem_alloc(E2E_BAND * n, sizeof(int64_t), "rows of R1", &l->band);
    if (!e.code && l->active) e = create_rotation(l, &l->R1);
    if (!e.code && l->active && l->w->shape.r1) e = fixed_sum_init(&l->sums[0], n * n, "sum of R1");
    e = comm_agree(l->c, e, "learning", NULL);
    if (!e.code) e = cayley_dist_create(l->c, &co, &l->r1);
    for (int64_t row = 0; row < n && !e.code; row += E2E_BAND) {
        const int64_t b = size_min(E2E_BAND, n - row);
        dealt_rows_get(R1, row, b, l->band);
        cayley_dist_put_rows(l->r1, row, b, l->band);
    }
    if (!e.code) learn_e2e_share_r1(l);
    return e;
}

static err create_r2(learn_e2e *l, const double *R2) {
    const int64_t d = l->cfg->head_dim, heads = l->o.r2_heads, first = l->range.first * heads;
    const int64_t count = l->range.n * heads, entries = entries_of(l->cfg, &l->o);
    err e = r2_part_create(l->o.kind, d, first, count, R2 + first * d * d, &l->r2);
    if (!e.code) e = MEM_NEW(&l->R2, l->cfg->layers * heads, "R2");
    for (int64_t m = 0; m < count && !e.code; m++)
        e = rotation_create_dense(d, NULL, &l->R2[first + m]);
    if (!e.code && l->active && l->w->shape.r2)
        e = fixed_sum_init(&l->sums[1], l->range.n * entries, "sum of R2");
    if (!e.code) e = MEM_NEW(&l->G2, l->range.n * entries, "gradient of R2");
    if (!e.code) learn_e2e_share_r2(l);
    return e;
}

static err create_scales(learn_e2e *l) {
    const scale_sizes sizes = llama_scale_sizes(l->cfg);
    const int64_t each = scales_of(l->cfg, &l->o), first = l->range.first, n = l->range.n;
    err e = scale_part_create(&sizes, l->o.scales, first, n, l->o.scale_start + first * each,
                              &l->scales);
    if (!e.code && l->active) e = fixed_sum_init(&l->sums[SUM_SCALES], n * each, "sum of scales");
    if (!e.code) e = MEM_NEW(&l->GS, n * each, "gradient of scales");
    if (!e.code) l->o.sites.scales = scale_part_set(l->scales);
    return e;
}

static err create_pass(learn_e2e *l, const llama_stage *stage) {
    const e2e_wish *w = l->w;
    err e = e2e_layout_order(w, l->l, l->replica, &l->order);
    if (!e.code && l->o.weights)
        e = weight_site_create(stage, l->o.weights, &w->shape, &l->weights);
    if (e.code) return e;
    const e2e_setting s = {.stages = stages_of(l),
                           .stage = stage,
                           .rows = l->number == 0 ? w->load.embed : NULL,
                           .order = l->order,
                           .shape = w->shape,
                           .objective = w->objective,
                           .top_k = w->top_k,
                           .r2_entries = entries_of(l->cfg, &l->o),
                           .weights = l->weights};
    e = e2e_pass_create(&s, &l->o.sites, &l->pass);
    l->n_mine = e2e_layout_windows(w->batch, l->l->replicas, l->replica);
    if (!e.code) e = MEM_NEW(&l->windows, l->n_mine, "windows");
    if (!e.code) e = MEM_NEW(&l->loss, l->n_mine, "losses");
    return e;
}

/* Products a second of all ranks that work. */
static double measure_peak(const learn_e2e *l) {
    int64_t mega = l->active ? (int64_t)(product_peak(l->w->shape.compute) / 1e6) : 0;
    comm_sum_i64(l->c, &mega, 1);
    return (double)mega * 1e6;
}

err learn_e2e_create(const comm *c, const learn_e2e_options *o, const e2e_wish *w,
                     const e2e_layout *layout, const llama_stage *stage, const dealt_rows *R1,
                     const double *R2, learn_e2e **out) {
    *out = NULL;
    learn_e2e *l = calloc(1, sizeof *l);
    if (!l) abort();
    *l = (learn_e2e){.c = c, .o = *o, .w = w, .l = layout, .cfg = w->load.cfg};
    for (int i = 0; i < SUMS; i++) l->exponents[i] = FIXED_SUM_UNKNOWN;
    l->judge = learn_judge_new(w->objective->needs_teacher ? JUDGE_NOISE_KL : JUDGE_NOISE, 0, 1);
    err e = comm_agree(c, join(l), "learning", NULL);
    if (!e.code) e = comm_agree(c, MEM_NEW(&l->pick, w->batch, "batch"), "learning", NULL);
    if (!e.code && R1) e = create_r1(l, R1);
    if (!e.code && o->r2_heads) e = comm_agree(c, create_r2(l, R2), "learning", NULL);
    if (!e.code && w->shape.scales) e = comm_agree(c, create_scales(l), "learning", NULL);
    l->o.sites.R1 = l->R1;
    l->o.sites.R2 = (const rotation *const *)l->R2;
    l->o.sites.r2_per_head = o->r2_heads > 1;
    if (!e.code)
        e = comm_agree(c, l->active ? create_pass(l, stage) : err_none(), "learning", NULL);
    if (!e.code && o->measure) l->peak = measure_peak(l);
    if (e.code) learn_e2e_destroy(&l);
    *out = l;
    return e;
}

void learn_e2e_destroy(learn_e2e **learner) {
    learn_e2e *l = *learner;
    if (!l) return;
    e2e_pass_destroy(&l->pass);
    weight_site_destroy(&l->weights);
    schedule_destroy(&l->order);
    cayley_dist_destroy(&l->r1);
    r2_part_destroy(&l->r2);
    scale_part_destroy(&l->scales);
    rotation_destroy(&l->R1);
    for (int64_t i = 0; l->R2 && i < l->cfg->layers * l->o.r2_heads; i++)
        rotation_destroy(&l->R2[i]);
    for (int i = 0; i < SUMS; i++) fixed_sum_clear(&l->sums[i]);
    comm_destroy(&l->stages);
    comm_destroy(&l->peers);
    void *const all[] = {l->R2, l->G2, l->GS, l->band, l->windows, l->loss, l->pick};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) mem_free(all[i]);
    free(l);
    *learner = NULL;
}

/* ---- a step ---- */

static int64_t slices_of(const learn_e2e *l) {
    return size_ceil_div(l->w->shape.window, l->w->shape.slice);
}

/* Units that meet in an entry of the sum of R1 (all layers), or of one layer's. */
static int64_t units_of(const learn_e2e *l, int which) {
    return l->w->batch * slices_of(l) * (which == SUM_R1 ? l->cfg->layers : 1);
}

/* Rows of a window that have a loss. */
static int64_t predictions(const learn_e2e *l) {
    return l->w->shape.window - (l->w->objective->counts_last_row ? 0 : 1);
}

/* Of the pieces of the text the last ones are held out, as many as of rows (range_held). */
static void pick_windows(learn_e2e *l, bool held) {
    const int64_t cuts = l->o.length / l->w->shape.window, pieces = l->o.n_windows * cuts,
                  out = range_held(pieces), left = pieces > out ? pieces - out : pieces;
    if (held)
        for (int64_t i = 0; i < l->w->batch; i++) l->pick[i] = pieces - out + i % out;
    else
        e2e_batch_draw(l->o.seed, l->step, l->w->batch, left, l->pick);
    for (int64_t i = 0; i < l->n_mine; i++) {
        const int64_t piece = l->pick[l->replica + i * l->l->replicas];
        const int64_t at = piece / cuts * l->o.length + piece % cuts * l->w->shape.window;
        l->windows[i] = (e2e_window){.ids = l->o.ids + at, .number = piece / cuts + 1};
    }
}

/* One pass over the batch. *again: some rank's sums are spoilt, and the exponents are new. */
static err run_pass(learn_e2e *l, bool *again) {
    const double weight = 1 / ((double)l->w->batch * (double)predictions(l));
    e2e_result out = {.loss = l->loss};
    if (l->sums[SUM_R1].v) out.R1 = &l->sums[SUM_R1];
    if (l->sums[SUM_R2].v) out.R2 = &l->sums[SUM_R2];
    if (l->sums[SUM_SCALES].v) out.scales = &l->sums[SUM_SCALES];
    for (int i = 0; i < SUMS; i++)
        if (l->sums[i].v) fixed_sum_begin(&l->sums[i], l->exponents[i], units_of(l, i));
    err e = err_none();
    l->passes++;
    if (l->active) e = e2e_pass_run(l->pass, &l->o.sites, l->windows, weight, l->step, &out);
    e = comm_agree(l->c, e, "a step", NULL);
    if (e.code) return e;
    double max[SUMS];
    int64_t spoilt = 0;
    for (int i = 0; i < SUMS; i++) {
        max[i] = l->sums[i].max;
        spoilt = spoilt || l->sums[i].spoilt;
    }
    comm_max_f64(l->c, max, SUMS);
    comm_max_i64(l->c, &spoilt, 1);
    for (int i = 0; i < SUMS; i++) l->exponents[i] = fixed_sum_exponent(max[i], units_of(l, i));
    *again = spoilt;
    return e;
}

static double rate_now(const learn_e2e *l, double lr) {
    return l->judge.rate * lr_schedule_at(l->o.schedule, lr, l->step, l->o.steps);
}

/* Of the loss, that of which a step may promise OPTIMIZER_PROMISE. */
static double share_now(const learn_e2e *l) {
    return l->judge.rate * l->w->objective->promised;
}

/* The sums of this step stand in exponents of the step before; those in l are of the next. */
static err move_r1(learn_e2e *l, int exponent, learn_report *report) {
    const int64_t n = l->cfg->hidden;
    optimizer_report r;
    for (int64_t row = 0; row < n; row += E2E_BAND) {
        const int64_t b = size_min(E2E_BAND, n - row);
        int64_t *v = l->band;
        if (l->active)
            v = l->sums[SUM_R1].v + row * n;
        else
            memset(v, 0, (size_t)(b * n) * sizeof *v);
        cayley_dist_sum_gradient(l->r1, row, b, v, exponent, sizeof *v);
    }
    const double lr = rate_now(l, l->o.lr_r1), share = share_now(l);
    err e = cayley_dist_step(l->r1, lr, share * report->loss, &r);
    if (e.code) return e;
    report->angle_r1 = r.angle;
    report->promise = share * r.promise;
    learn_e2e_share_r1(l);
    return cayley_dist_probe(l->r1, l->o.seed, l->step, &report->orthogonality);
}

/* The sum over replicas of what stages alone have, as numbers. */
static void sum_peers(learn_e2e *l, int which, int exponent, double *G) {
    fixed_sum *s = &l->sums[which];
    if (l->peers) comm_sum_i64(l->peers, s->v, s->n);
    for (int64_t i = 0; i < s->n; i++) G[i] = ldexp((double)s->v[i], exponent);
}

static err move_r2(learn_e2e *l, int exponent, learn_report *report) {
    optimizer_report r = {0};
    err e = err_none();
    if (l->active) {
        sum_peers(l, SUM_R2, exponent, l->G2);
        e = r2_part_step(l->r2, rate_now(l, l->o.lr_r2), share_now(l) * report->loss, l->G2, &r);
        if (!e.code) learn_e2e_share_r2(l);
    }
    comm_max_f64(l->c, &r.angle, 1);
    report->angle_r2 = r.angle;
    return comm_agree(l->c, e, "step of R2", NULL);
}

static err move_scales(learn_e2e *l, int exponent, learn_report *report) {
    err e = err_none();
    if (l->active) {
        sum_peers(l, SUM_SCALES, exponent, l->GS);
        e = scale_part_step(l->scales, rate_now(l, l->o.lr_scale), l->GS);
    }
    report->condition = scale_part_condition(l->scales);
    comm_max_f64(l->c, &report->condition, 1);
    return comm_agree(l->c, e, "step of scales", NULL);
}

/* Losses of all windows meet as bits, one rank giving each; their sum is taken in their order. */
static err mean_loss(const learn_e2e *l, double *mean) {
    const bool mine = l->active && l->number == l->l->stages - 1;
    int64_t *bits;
    err e = comm_agree(l->c, MEM_NEW(&bits, l->w->batch, "losses"), "a step", NULL);
    if (e.code) {
        mem_free(bits);
        return e;
    }
    for (int64_t i = 0; mine && i < l->n_mine; i++)
        memcpy(&bits[l->replica + i * l->l->replicas], &l->loss[i], sizeof *bits);
    comm_sum_i64(l->c, bits, l->w->batch);
    *mean = 0;
    for (int64_t i = 0; i < l->w->batch; i++) {
        double one;
        memcpy(&one, &bits[i], sizeof one);
        *mean += one;
    }
    *mean /= (double)l->w->batch * (double)predictions(l);
    mem_free(bits);
    return e;
}

/* Flop that a token needs: products with the weights forward and backward, with R1 (three at each
 * of two sites, a fourth where scales stand there) and attention (seven with half a window), and
 * the head. */
static double token_flop(const learn_e2e *l) {
    const double n = (double)l->cfg->hidden, heads = (double)(l->cfg->heads * l->cfg->head_dim);
    const double scaled = l->w->shape.scales & (1u << SCALE_ATTN | 1u << SCALE_MLP) ? 2 * n * n : 0;
    const double rotations = (l->w->shape.r1 ? 6 * n * n : 0) + scaled;
    const double attention = 3.5 * heads * (double)l->w->shape.window;
    const double layer = 2 * (double)llama_layer_params(l->cfg) + rotations + attention;
    return 2 * ((double)l->cfg->layers * layer + 2 * n * (double)l->cfg->vocab);
}

static void tell_speed(const learn_e2e *l, double seconds, learn_report *report) {
    const double tokens = (double)(l->w->batch * l->w->shape.window);
    report->tokens_per_s = tokens / seconds;
    report->peak_share = l->peak > 0 ? tokens * token_flop(l) / seconds / l->peak : 0;
}

err learn_e2e_step(learn_e2e *l, learn_report *report) {
    enum { TRIES = 4 }; /* the second has what it needs; more would be a bug */
    int before[SUMS], used[SUMS];
    bool again = true;
    double start = 0;
    err e = err_none();
    memcpy(before, l->exponents, sizeof before);
    memset(report, 0, sizeof *report);
    pick_windows(l, false);
    if (l->weights) e = weight_site_refresh(l->weights, &l->o.sites);
    e = comm_agree(l->c, e, "weights in the loop", NULL);
    for (int i = 0; again && !e.code; i++) {
        if (i == TRIES) return err_make(ERR_BUG, "learning", NULL, "sums overflow again and again");
        start = clock_now_s();
        memcpy(used, l->exponents, sizeof used);
        e = run_pass(l, &again);
    }
    if (!e.code) e = mean_loss(l, &report->loss);
    if (!e.code && l->w->shape.r1) e = move_r1(l, used[SUM_R1], report);
    if (!e.code && l->w->shape.r2) e = move_r2(l, used[SUM_R2], report);
    if (!e.code && l->scales) e = move_scales(l, used[SUM_SCALES], report);
    if (e.code)
        memcpy(l->exponents, before, sizeof before);
    else
        l->step++;
    report->step = l->step;
    tell_speed(l, clock_now_s() - start, report);
    return e;
}

static void obey(learn_e2e *l, judge_word word) {
    if (word == JUDGE_GO_ON) return;
    const bool restore = word == JUDGE_RESTORE;
    if (l->r1 && restore) cayley_dist_restore(l->r1);
    if (l->r1 && !restore) cayley_dist_snapshot(l->r1);
    if (l->r1 && restore) learn_e2e_share_r1(l);
    if (l->r2 && restore) r2_part_restore(l->r2);
    if (l->r2 && !restore) r2_part_snapshot(l->r2);
    if (l->r2 && l->active && restore) learn_e2e_share_r2(l);
    if (l->scales && restore) scale_part_restore(l->scales);
    if (l->scales && !restore) scale_part_snapshot(l->scales);
}

/* The gradients of the pass are not used, and what it says of their size is not remembered. */
err learn_e2e_judge(learn_e2e *l, learn_verdict *v) {
    int exponents[SUMS];
    bool again;
    memcpy(exponents, l->exponents, sizeof exponents);
    *v = (learn_verdict){.step = l->step, .r1 = l->w->shape.r1, .r2 = l->w->shape.r2};
    pick_windows(l, true);
    err e = l->weights ? weight_site_refresh(l->weights, &l->o.sites) : err_none();
    e = comm_agree(l->c, e, "weights in the loop", NULL);
    if (!e.code) e = run_pass(l, &again);
    memcpy(l->exponents, exponents, sizeof exponents);
    if (!e.code) e = mean_loss(l, &v->loss);
    if (e.code) return e;
    v->word = v->word_r2 = learn_judge_hear(&l->judge, v->loss, l->step, l->step == l->o.steps);
    obey(l, v->word);
    v->j = v->j_r2 = l->judge;
    return e;
}

void learn_e2e_take(learn_e2e *l, dealt_rows *to, double *R2) {
    const int64_t n = l->cfg->hidden, entries = entries_of(l->cfg, &l->o);
    for (int64_t row = 0; l->w->shape.r1 && row < n; row += E2E_BAND) {
        const int64_t b = size_min(E2E_BAND, n - row);
        cayley_dist_get_rows(l->r1, row, b, l->band);
        dealt_rows_put(to, row, b, l->band);
    }
    for (int s = 0; entries && s < l->l->stages; s++) {
        double *at = R2 + l->l->ranges[s].first * entries;
        const uint64_t bytes = (uint64_t)(l->l->ranges[s].n * entries) * sizeof *at;
        if (comm_rank(l->c) == s) memcpy(at, r2_part_get(l->r2), bytes);
        comm_bcast(l->c, at, bytes, s); /* the first replica's */
    }
}

void learn_e2e_take_scales(learn_e2e *l, double *scales) {
    const int64_t each = scales_of(l->cfg, &l->o);
    for (int s = 0; l->scales && s < l->l->stages; s++) {
        double *at = scales + l->l->ranges[s].first * each;
        if (comm_rank(l->c) == s) scale_part_take(l->scales, at);
        comm_bcast(l->c, at, (uint64_t)(l->l->ranges[s].n * each) * sizeof *at, s);
    }
}

int64_t learn_e2e_passes(const learn_e2e *l) {
    return l->passes;
}

uint64_t learn_e2e_replica(learn_e2e *l, const void **data) {
    const int64_t n = l->cfg->hidden;
    const bool wide = l->w->shape.compute == COMPUTE_F64; /* else R1 stands in fp32 alone */
    double *row = l->band;
    float *narrow = l->band;
    *data = NULL;
    if (!l->R1) return 0;
    for (int64_t i = 0; i < n; i++) {
        const double x = rng_normal(0, RNG_PROBE, (uint64_t)i);
        if (wide)
            row[i] = x;
        else
            narrow[i] = (float)x;
    }
    if (wide)
        rotation_apply_f64(l->R1, row, 1, n, false);
    else
        rotation_apply_f32(l->R1, narrow, 1, n, false);
    *data = l->band;
    return (uint64_t)n * (wide ? sizeof *row : sizeof *narrow);
}
