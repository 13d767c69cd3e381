/* Layers are cut over the ranks so that work and memory of the capture are even; each window then
 * goes forward through the stages and back, and hooks keep rows and sums of what passes. */
#include "jobs/phases/learn_capture.h"

#include "base/log.h"
#include "base/size.h"
#include "jobs/phases/learn_looks.h"
#include "jobs/phases/learn_scale_state.h"
#include "jobs/phases/learn_site_state.h"
#include "jobs/phases/learn_weights.h"
#include "jobs/run/between_units.h"
#include "jobs/setup/recipe_asks.h"
#include "jobs/setup/setup.h"
#include "pipeline/learn/capture_run.h"
#include "pipeline/learn/e2e_layout.h"
#include "pipeline/plan/memory_plan.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

enum { POOL_TOKENS = 4096 };
/* Where rows of R1 are drawn by importance. */
enum { DRAWN_PLACES = 1 << CLIP_ATTN | 1 << CLIP_MLP };

/* Activations are samples where they are quantized in ranges (an FP8 cache has none); pca takes
 * moments of them. */
static bool needs_activations(const settings *s) {
    return s->activations.bits < 16 || settings_cache_has_ranges(s) ||
           quantize_starts_at(s, START_POINT_PCA);
}

int64_t learn_pool_tokens(const quantize_run *q) {
    const int64_t n = q->calib_windows, window = q->set->calib.window;
    if (!n || !needs_activations(q->set)) return 0;
    return size_min(size_max(1, POOL_TOKENS / n) * n, n * window);
}

/* What a rank loads for the capture. */
static load_options capture_load(const learner *l, int rank, const embed_rows *rows) {
    const bool passes = l->q->calib_windows > 0;
    return (load_options){.checkpoint = l->q->source.ck,
                          .cfg = learner_cfg(l),
                          .embed = passes && rank == 0 ? rows : NULL,
                          .head = passes && rank == l->n_stages - 1,
                          .range = l->range,
                          .compute = COMPUTE_BF16};
}

/* What the capture leaves for the phases `range`. */
static void add_pool(const learner *l, memory_plan *p) {
    const llama_config *cfg = learner_cfg(l);
    const int64_t n = l->range.n, tokens = learn_pool_tokens(l->q),
                  window = l->q->set->calib.window;
    memory_plan_add(p, "sampled rows", row_pool_bytes(cfg, n, tokens));
    if (learn_scales_need_gradients(l))
        memory_plan_add(p, "their gradients", row_pool_gradient_bytes(cfg, n, tokens));
    if (!learn_scales_done(l))
        memory_plan_add(p, "moments for scales", learn_scales_moments_bytes(l));
    if (!learn_sites_done(l))
        memory_plan_add(p, "rows of quantizers", learn_sites_samples_bytes(l));
    if (learn_draws_any(l->q->set))
        memory_plan_add(p, "drawn rows", row_pool_drawn_bytes(cfg, n, tokens));
    learn_looks_memory(l, p);
    if (learn_weights_needed(l->q->set)) {
        weight_rows_options o = learn_weights_options(l, &l->q->set->learn[0]);
        memory_plan_add(p, "rows of weights",
                        weight_rows_bytes(cfg, &o, n) + weight_moments_bytes(cfg, n, window));
    }
}

/* Large buffers of a rank with layers during the capture, for plans and runs alike, added to *p. */
static void capture_memory(const learner *l, const load_options *lo, memory_plan *p) {
    const int64_t window = l->q->set->calib.window;
    memory_plan_add(p, "weights", load_stage_bytes(lo));
    if (l->q->calib_windows)
        memory_plan_add(
            p, "passes",
            capture_bytes(lo->cfg, COMPUTE_BF16, l->range.n, window, l->n_stages, lo->head));
    if (learn_draws_any(l->q->set))
        memory_plan_add(
            p, "rows that may be drawn",
            noise_rows_bytes(lo->cfg, l->range.n, DRAWN_PLACES, learn_pool_tokens(l->q)));
    add_pool(l, p);
}

/* Weights of layers are asked for after the capture. */
static bool weights_stay(const learner *l) {
    return learn_weights_needed(l->q->set) || quantize_starts_at(l->q->set, START_POINT_WOMI);
}

/* Layers whose weights stay, without embedding and head. */
uint64_t learn_capture_weights_bytes(const learner *l) {
    const embed_rows none = {.n = 0};
    const load_options lo = capture_load(l, -1, &none);
    return weights_stay(l) ? load_stage_bytes(&lo) : 0;
}

/* And what the capture took of them. */
void learn_saved_memory(const learner *l, int ranks, memory_plan *p) {
    if (weights_stay(l)) memory_plan_add(p, "weights", learn_capture_weights_bytes(l));
    add_pool(l, p);
    learn_model_memory(l, ranks, p);
}

void learn_model_memory(const learner *l, int ranks, memory_plan *p) {
    const int64_t n = learner_cfg(l)->hidden;
    if (rotation_set_r1(l->q->rotations))
        memory_plan_add(p, "R1 between steps",
                        (uint64_t)(size_ceil_div(n, ranks) * n) * sizeof(double));
    memory_plan_add(
        p, "R2, scales and clips",
        (uint64_t)(learner_cfg(l)->layers * learner_r2_entries(l) + l->n_scales + l->n_sites) *
                sizeof(double) +
            learn_scales_set_bytes(l->q->set, learner_cfg(l)));
}

/* Planned bytes of the capture on a rank with `layers` layers. */
static double planned(const learner *l, int rank, int64_t layers) {
    const llama_config *cfg = learner_cfg(l);
    const embed_rows rows = {
        .n = size_min(cfg->vocab, l->q->calib_windows * l->q->set->calib.window)};
    memory_plan p = {.n = 0};
    learner one = *l;
    one.range = (stage_range){.n = layers};
    const load_options lo = capture_load(&one, rank, &rows);
    capture_memory(&one, &lo, &p);
    return (double)memory_plan_total(&p);
}

void learn_cut(const learner *l, int ranks, stage_range *ranges, int *n_stages) {
    enum { NEITHER = -1 };
    const llama_config *cfg = learner_cfg(l);
    const schedule_costs work = e2e_layout_costs(cfg, false);
    learner as = *l;
    as.n_stages = (int)size_min(ranks, cfg->layers);
    const double one = planned(&as, NEITHER, 1);
    const stage_costs costs = {
        .layer_work = 2 * work.forward + work.backward,
        .layer_memory = cfg->layers > 1 ? planned(&as, NEITHER, 2) - one : one,
        .first_memory = planned(&as, 0, 1) - one,
        .last_work = l->q->calib_windows ? work.head : 0,
        .last_memory = planned(&as, as.n_stages - 1, 1) - one,
    };
    partition_stages(cfg->layers, &costs, ranks, ranges, n_stages);
}

static err plan(const learner *l, const load_options *lo) {
    memory_plan p = {.n = 0};
    if (comm_rank(l->q->c) < l->n_stages) {
        memory_plan_add(&p, "program", l->q->base_bytes);
        capture_memory(l, lo, &p);
        learn_model_memory(l, comm_size(l->q->c), &p);
    }
    return memory_plan_check(l->q->c, &p, "capture", l->q->flags.limit);
}

static err between_waves(void *ctx, const comm *c, int64_t done, int64_t total) {
    return between_units(ctx, c, "capture", done, total);
}

/* Collective. All windows through the stages and back. */
static err pass(learner *l, const embed_rows *rows, int64_t window) {
    quantize_run *q = l->q;
    const int64_t n = q->calib_windows;
    const int32_t **starts = calloc((size_t)n, sizeof *starts);
    llama_hook hooks[8];
    int64_t now = 0;
    capture_hooks also = {.hooks = hooks, .window = &now};
    const capture_between between = {.call = between_waves, .ctx = q};
    double nll = 0;
    err e = err_none();
    if (!starts) abort();
    for (int64_t i = 0; i < n; i++) starts[i] = q->calib_ids + i * window;
    eval_windows w = {.ids = starts, .n = n, .length = window};
    if (l->moments) hooks[also.n++] = weight_moments_hook(l->moments);
    if (l->scale_moments) hooks[also.n++] = scale_moments_hook(l->scale_moments);
    if (l->scale_peaks) hooks[also.n++] = scale_peaks_hook(l->scale_peaks);
    if (l->keys) hooks[also.n++] = key_moments_hook(l->keys);
    if (l->peaks) hooks[also.n++] = cache_peaks_hook(l->peaks);
    const settings *s = q->set;
    const bool behind = !s->rotate.r1 && !(s->scale.pairs & PAIR_NORM);
    if (l->noise && behind) noise_rows_behind(l->noise, &l->stage);
    if (l->looks && behind) site_rows_behind(l->looks, &l->stage);
    if (l->noise) hooks[also.n++] = noise_rows_hook(l->noise, &now);
    if (l->drawn) hooks[also.n++] = noise_rows_hook(l->drawn, &now);
    if (l->looks) hooks[also.n++] = site_rows_hook(l->looks, &now);
    if (comm_rank(q->c) < l->n_stages)
        e = capture_run(l->stages ? l->stages : q->c, &l->stage, COMPUTE_BF16, rows, &w, &l->pool,
                        &also, &between, &nll);
    free(starts);
    e = comm_agree(q->c, e, "capturing activations", NULL);
    if (!e.code)
        log_line(LOG_PHASE,
                 "captured %" PRId64 " tokens of every site, gradients of %" PRId64
                 "; text at %.4f nats a token",
                 l->pool.tokens, n * window, nll);
    return e;
}

err learn_capture_room(learner *l) {
    const llama_config *cfg = learner_cfg(l);
    const int64_t window = l->q->set->calib.window, tokens = learn_pool_tokens(l->q);
    err e = row_pool_init(cfg, l->range.first, l->range.n, tokens, &l->pool);
    if (!e.code && learn_weights_needed(l->q->set))
        e = weight_moments_create(cfg, l->range.first, l->range.n, window, &l->moments);
    if (!e.code && learn_scales_need_gradients(l)) e = row_pool_keep_gradients(&l->pool);
    if (!e.code) e = learn_scales_moments(l);
    if (!e.code) e = learn_sites_samples(l, window);
    learn_looks_room(l);
    return e;
}

void learn_rows_clear(learner *l) {
    row_pool_clear(&l->pool);
    llama_stage_clear(&l->stage);
    weight_moments_destroy(&l->moments);
    scale_moments_destroy(&l->scale_moments);
    scale_peaks_destroy(&l->scale_peaks);
    key_moments_destroy(&l->keys);
    cache_peaks_destroy(&l->peaks);
    noise_rows_destroy(&l->noise);
    noise_rows_destroy(&l->drawn);
}

void learn_capture_clear(learner *l) {
    learn_rows_clear(l);
    site_rows_destroy(&l->looks);
}

static err load(learner *l, const load_options *lo, int64_t window, int64_t tokens) {
    const llama_config *cfg = learner_cfg(l);
    err e = learn_capture_room(l);
    if (!e.code && learn_draws_any(l->q->set))
        e = noise_rows_create(cfg, l->range.first, l->range.n, DRAWN_PLACES, window, tokens,
                              &l->drawn);
    if (!e.code && comm_rank(l->q->c) < l->n_stages) e = load_stage(lo, &l->stage);
    return comm_agree(l->q->c, e, "loading the weights", NULL);
}

/* Embedding and head have done their work; the layers too where nobody takes rows of them. */
static void drop_weights(learner *l) {
    if (weights_stay(l)) {
        wmat_clear(&l->stage.embed);
        wmat_clear(&l->stage.head);
        return;
    }
    llama_stage_clear(&l->stage);
    l->stage = (llama_stage){.cfg = learner_cfg(l)};
}

err learn_capture_weights(learner *l) {
    const embed_rows none = {.n = 0};
    const load_options lo = capture_load(l, -1, &none);
    l->stage = (llama_stage){.cfg = learner_cfg(l)};
    return weights_stay(l) && l->range.n ? load_stage(&lo, &l->stage) : err_none();
}

err learn_capture_rows(learner *l) {
    quantize_run *q = l->q;
    const llama_config *cfg = learner_cfg(l);
    const int64_t window = q->set->calib.window, tokens = learn_pool_tokens(q);
    embed_rows rows;
    err e = comm_agree(q->c,
                       embed_rows_init(q->calib_ids, q->calib_windows * window, cfg->vocab, &rows),
                       "tokens", NULL);
    if (e.code) return e;
    const load_options lo = capture_load(l, comm_rank(q->c), &rows);
    l->stage = (llama_stage){.cfg = cfg};
    e = plan(l, &lo);
    if (!e.code) e = load(l, &lo, window, tokens);
    if (!e.code && q->calib_ids) e = pass(l, &rows, window);
    embed_rows_clear(&rows);
    drop_weights(l);
    for (int k = 0; k < POOL_KINDS && !e.code && tokens; k++) {
        e = comm_agree(q->c, row_pool_finish(q->c, &l->pool, (pool_kind)k), "sensitivities", NULL);
        if (k != POOL_R1) row_pool_normalise(&l->pool, (pool_kind)k);
    }
    if (!e.code && learn_draws_any(q->set)) {
        noise_rows_finish(l->drawn);
        e = comm_agree(q->c, row_pool_draw(q->c, &l->pool, l->drawn, q->calib_windows * window),
                       "drawn rows", NULL);
        noise_rows_destroy(&l->drawn);
    }
    if (!e.code && l->noise) noise_rows_finish(l->noise);
    return e;
}

/* Streams and their gradients between stages, how sensitive each row is, then the start points. */
static plan_bytes capture_network(const learner *l, const plan_maker *m) {
    const settings *s = m->q->set;
    const llama_config *cfg = plan_config(m);
    const int64_t h = cfg->hidden, text = m->q->calib_windows * s->calib.window,
                  tokens = learn_pool_tokens(m->q);
    const bool r1 = rotation_set_r1(m->q->rotations) != NULL,
               womi = s->rotate.start.word == START_POINT_WOMI,
               eigen = womi || s->rotate.start.word == START_POINT_PCA,
               r2 = quantize_starts_at(s, START_POINT_PCA) ||
                    quantize_starts_at(s, START_POINT_WOMI);
    grid_shape g;
    const bool grid = !plan_grid(m, &g).code && g.rows * g.cols > 1;
    const uint64_t rows = (uint64_t)(tokens * (2 + cfg->kv_heads + cfg->heads)),
                   streams = 2 * sizeof(float) * (uint64_t)(text * h),
                   square = sizeof(int64_t) * (uint64_t)(h * h * (grid ? 1 : 2));
    plan_bytes sum = plan_add(plan_to_next(m, 1, m->n_stages, streams),
                              plan_layers_to_all(m, rows * sizeof(float)));
    if (learn_draws_any(s))
        sum = plan_add(sum, plan_layers_to_first(m, 4 * (uint64_t)tokens * sizeof(double)));
    if (r1 && eigen) sum = plan_add(sum, plan_to_all(m, square));
    if (r2)
        sum =
            plan_add(sum, plan_layers_to_all(m, (uint64_t)learner_r2_entries(l) * sizeof(double)));
    return sum;
}

/* Windows go through in waves of as many as there are stages: forward of all, then backward. */
err learn_capture_plan(learner *l, plan_maker *m) {
    const quantize_run *q = m->q;
    const llama_config *cfg = plan_config(m);
    const int64_t window = q->set->calib.window, windows = q->calib_windows;
    const int stages = m->n_stages;
    const double wave = (double)size_max(1, size_min(stages, windows));
    double slowest = 0, work = 0, load = 0, start = 0;
    plan_phase *f;
    err e = plan_add_phase(m, "capture", &f);
    if (e.code) return e;
    for (int r = 0; r < stages; r++) {
        l->range = m->ranges[r];
        const load_options lo = capture_load(l, r, &m->rows);
        memory_plan p = plan_fresh(m);
        capture_memory(l, &lo, &p);
        learn_model_memory(l, m->ranks, &p);
        plan_offer(f, &p, r);
        const double one = plan_time_capture(&m->rank, cfg, lo.range.n, lo.head, window);
        slowest = fmax(slowest, one);
        work += one / stages;
        load = fmax(load, plan_time_load(&m->rank, load_stage_bytes(&lo)));
        if (quantize_starts_at(q->set, START_POINT_PCA))
            start = fmax(start, plan_time_pca(&m->rank, cfg, lo.range.n, learn_pool_tokens(q)));
    }
    /* Where ranks share cores, those that wait leave theirs to others. */
    const double share = fmin(1, m->rank.cores),
                 waiting = share * slowest * (wave + stages - 1) / wave,
                 passes = (double)windows * fmax(waiting, work);
    const double waves = fmax(1, ceil((double)windows / wave));
    f->seconds = load + passes + start;
    f->blind_s = fmax(fmax(load, start), passes / waves);
    if (passes > 0) f->busy = work * (double)windows / passes;
    plan_send(m, f, capture_network(l, m));
    return e;
}
