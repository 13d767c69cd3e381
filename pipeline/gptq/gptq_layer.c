/* For each of the four inputs of a layer: moments over all windows, factor, rows, exchange of
 * codes, and the windows go on through the quantized linears. The loop of gptq_run_layer is the
 * recipe. */
#include "pipeline/gptq/gptq_stack.h"

#include "base/clock.h"
#include "base/gemm.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/size.h"
#include "pipeline/gptq/gptq_sites.h"
#include "pipeline/stages/load_stage.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- streams ---- */

static err step_inputs(gptq_run *r, const llama_stage *stage, int stream, llama_step step) {
    const llama_sites *sites = stream == GPTQ_FULL ? r->s.full : r->s.sites;
    err e = err_none();
    for (int64_t i = 0; i < gptq_windows_own(r->windows) && !e.code; i++) {
        float *x;
        bf16 *to;
        e = gptq_windows_get_x(r->windows, stream, i, &x);
        if (!e.code) e = gptq_windows_get_input(r->windows, stream, i, &to);
        if (!e.code)
            e = llama_step_input(stage, stage->first_layer, sites, step, r->s.length, x, r->scratch,
                                 to);
        if (!e.code) e = gptq_windows_put_input(r->windows, stream, i);
    }
    return comm_agree(r->s.c, e, "activations", NULL);
}

static err step_outputs(gptq_run *r, const llama_stage *stage, int stream, llama_step step) {
    err e = err_none();
    for (int64_t i = 0; i < gptq_windows_own(r->windows) && !e.code; i++) {
        float *x;
        bf16 *in;
        e = gptq_windows_get_x(r->windows, stream, i, &x);
        if (!e.code) e = gptq_windows_get_input(r->windows, stream, i, &in);
        if (!e.code)
            e = llama_step_add(stage, stage->first_layer, step, r->s.length, in, x, r->scratch);
        if (!e.code) e = gptq_windows_put_x(r->windows, stream, i);
    }
    return comm_agree(r->s.c, e, "activations", NULL);
}

static err embed(gptq_run *r) {
    const gptq_settings *s = &r->s;
    const int64_t own = gptq_windows_own(r->windows), n = s->length;
    embed_rows rows = {0};
    llama_stage stage = {.cfg = s->job->cfg};
    int32_t *ids = malloc((size_t)(own * n + 1) * sizeof *ids);
    if (!ids) abort();
    for (int64_t i = 0; i < own; i++)
        memcpy(ids + i * n, gptq_windows_ids(r->windows, i), (size_t)n * sizeof *ids);
    err e = embed_rows_init(ids, own * n, s->job->cfg->vocab, &rows);
    const load_options o = {.checkpoint = s->job->checkpoint,
                            .cfg = s->job->cfg,
                            .fuse = s->job->rotations,
                            .embed = &rows,
                            .compute = COMPUTE_BF16};
    if (!e.code && own) e = load_stage(&o, &stage);
    for (int64_t i = 0; i < own * n && !e.code; i++) ids[i] = rows.row[ids[i]];
    const int streams = s->asymmetric ? 2 : 1;
    for (int64_t i = 0; i < own * streams && !e.code; i++) {
        const int stream = (int)(i / own);
        float *x;
        e = gptq_windows_get_x(r->windows, stream, i % own, &x);
        if (!e.code) e = llama_embed(&stage, COMPUTE_BF16, ids + i % own * n, n, x);
        if (!e.code) e = gptq_windows_put_x(r->windows, stream, i % own);
    }
    llama_stage_clear(&stage);
    embed_rows_clear(&rows);
    free(ids);
    return comm_agree(s->c, e, "embedding the calibration text", NULL);
}

static gptq_windows_options windows_of(const gptq_settings *s) {
    return (gptq_windows_options){.cfg = s->job->cfg,
                                  .ids = s->ids,
                                  .count = s->n_windows,
                                  .length = s->length,
                                  .streams = s->asymmetric ? 2 : 1,
                                  .scratch = s->scratch};
}

/* Room for the sites of either stream. */
static const llama_sites *wider(const gptq_settings *s) {
    const int threads = gemm_threads();
    return s->asymmetric &&
                   llama_scratch_bytes(s->job->cfg, s->full, COMPUTE_BF16, s->length, threads) >
                       llama_scratch_bytes(s->job->cfg, s->sites, COMPUTE_BF16, s->length, threads)
               ? s->full
               : s->sites;
}

err gptq_run_create(const gptq_settings *s, const int64_t *layers, int64_t n, gptq_run **out) {
    gptq_run *r = calloc(1, sizeof *r);
    if (!r) abort();
    const gptq_windows_options o = windows_of(s);
    r->s = *s;
    err e = gptq_windows_create(s->c, &o, &r->windows);
    if (!e.code) e = embed(r);
    if (!e.code) e = gptq_source_create(s->c, s->job, layers, n, s->batches < 2, &r->source);
    if (!e.code)
        e = comm_agree(
            s->c, llama_scratch_create(s->job->cfg, wider(s), COMPUTE_BF16, s->length, &r->scratch),
            "buffers of the forward pass", NULL);
    r->moments = (gptq_moments){.c = s->c,
                                .windows = r->windows,
                                .hold_out = s->asymmetric && s->n_windows >= GPTQ_HOLD_OUT};
    if (e.code) gptq_run_destroy(&r);
    *out = r;
    return e;
}

void gptq_run_destroy(gptq_run **r) {
    if (!*r) return;
    gptq_windows_destroy(&(*r)->windows);
    gptq_source_destroy(&(*r)->source);
    gptq_moments_clear(&(*r)->moments);
    llama_scratch_destroy(&(*r)->scratch);
    free(*r);
    *r = NULL;
}

/* ---- one step ---- */

static err step_order(gptq_stack *k, const char *what, gptq_order **o) {
    gptq_run *r = k->r;
    double *diagonal;
    err e = comm_agree(r->s.c, MEM_NEW(&diagonal, k->cols, what), what, NULL);
    if (e.code) return e;
    e = gptq_moments_diagonal(&r->moments, k->cols, what, diagonal);
    if (!e.code)
        e = comm_agree(r->s.c, gptq_order_create(k->cols, diagonal, r->s.act_order, o), what, NULL);
    mem_free(diagonal);
    return e;
}

/* Name of the first tensor of a step, for messages. */
static void step_name(const gptq_run *r, int64_t layer, llama_step step, char name[96]) {
    llama_tensor t;
    llama_tensor_of(r->s.job->cfg, llama_linears[gptq_step_first(step)], layer, &t);
    memcpy(name, t.name, sizeof t.name);
}

/* More columns than tokens: the Hessian lacks directions, and damping stands in for them. */
static hessian_factor_options factor_of_step(const gptq_run *r, int64_t n) {
    hessian_factor_options o = r->s.factor;
    const int64_t tokens = r->s.n_distinct * r->s.length;
    if (tokens < n) o.damp *= (double)n / (double)tokens;
    return o;
}

/* A layer is read and fused in blocks of some MiB that come from the heap. Freed, they leave holes
 * that a factor or the rows, being larger, cannot use: holes go back to the system before each of
 * these is taken, or they would stay resident beside it, in no plan. */
static err quantize_stack(gptq_stack *k, llama_stage *stage, llama_stage *full,
                          const quantize_sink *sink, gptq_layer_report *report) {
    gptq_run *r = k->r;
    gptq_order *o = NULL;
    hessian_factor *factor = NULL;
    char name[96];
    double alpha = full ? r->s.alpha : 0;
    const hessian_factor_options opts = factor_of_step(r, k->cols);
    step_name(r, stage->first_layer, k->step, name);
    err e = gptq_stack_take(k, full);
    if (!e.code) e = step_order(k, name, &o);
    mem_give_back();
    if (!e.code) e = hessian_factor_create(&r->moments, o, &opts, name, &factor);
    if (!e.code && alpha > 0) e = gptq_stack_cross(k);
    gptq_moments_drop(&r->moments);
    mem_give_back();
    if (!e.code && full)
        e = gptq_stack_round_best(k, o, factor, full, alpha, &alpha);
    else if (!e.code)
        e = gptq_stack_round(k, o, factor, 0);
    if (!e.code) gptq_stack_report(k, factor, alpha, report);
    hessian_factor_destroy(&factor);
    gptq_order_destroy(&o);
    if (!e.code) e = gptq_stack_use(k, &stage->layers[0]);
    return e.code ? e : gptq_stack_hand_over(k, stage->first_layer, sink);
}

/* Each linear goes when the streams have been through it: beside a factor none stands but those
 * that are being rounded. */
static void drop_linears(llama_stage *stage, int step) {
    const int first = gptq_step_first((llama_step)step);
    for (int i = 0; i < gptq_step_count((llama_step)step); i++)
        wmat_clear(llama_layer_linear(&stage->layers[0], first + i));
}

/* What the inputs look like, told by the first rank. */
static err take_sites(gptq_run *r, int64_t layer, int stream, llama_step step,
                      gptq_layer_report *report) {
    err e = err_none();
    if (!r->s.tell_sites) return e;
    if (comm_rank(r->s.c) == 0)
        e = gptq_sites_take(r->windows, stream, r->s.job->cfg, r->s.job->rotations, layer, step,
                            &report->sites[step]);
    return comm_agree(r->s.c, e, "activations", NULL);
}

/* A step takes about as long as its input is wide, so its channels are what progress counts: a
 * layer of a large model may take minutes, most of them in its last step. */
static void tell_progress(const gptq_run *r, int64_t layer, llama_step step) {
    const llama_config *cfg = r->s.job->cfg;
    int64_t each = 0, done = 0;
    for (llama_step k = STEP_QKV; k < STEP_COUNT; k++) {
        each += llama_step_width(cfg, k);
        if (k <= step) done = each;
    }
    log_progress("gptq, input channels", layer * each + done, cfg->layers * each);
}

static err do_step(gptq_run *r, llama_step step, llama_stage *stage, llama_stage *full,
                   const quantize_sink *sink, bool go_on, gptq_layer_report *report) {
    const double start = clock_now_s();
    gptq_stack k = {.r = NULL};
    err e = step_inputs(r, stage, GPTQ_QUANTIZED, step);
    if (!e.code && full) e = step_inputs(r, full, GPTQ_FULL, step);
    if (step == STEP_O || step == STEP_DOWN) { /* these made the inputs at hand */
        drop_linears(stage, step - 1);
        if (full) drop_linears(full, step - 1);
    }
    if (!e.code)
        e = take_sites(r, stage->first_layer, full ? GPTQ_FULL : GPTQ_QUANTIZED, step, report);
    if (!e.code) e = gptq_stack_init(r, step, &k);
    if (!e.code) e = gptq_stack_init_cross(&k);
    if (!e.code) e = quantize_stack(&k, stage, full, sink, report);
    gptq_stack_clear(&k);
    if (!e.code && go_on && (step == STEP_O || step == STEP_DOWN)) {
        e = step_outputs(r, stage, GPTQ_QUANTIZED, step);
        if (!e.code && full) e = step_outputs(r, full, GPTQ_FULL, step);
        drop_linears(stage, step);
        if (full) drop_linears(full, step);
    }
    report->step_s[step] = clock_now_s() - start;
    if (!e.code) tell_progress(r, stage->first_layer, step);
    return e;
}

/* ---- one layer ---- */

static err hand_over_vectors(const gptq_run *r, int64_t layer, llama_layer *l,
                             const quantize_sink *sink) {
    llama_tensor t;
    err e = err_none();
    for (int k = 0; k < LLAMA_VECTORS && !e.code; k++) {
        const float *v = *llama_layer_vector(l, k);
        if (v && llama_tensor_of(r->s.job->cfg, llama_vectors[k], layer, &t))
            e = sink->plain(sink->arg, &t, 0, t.rows, v);
    }
    return e;
}

/* The stream of full precision begins where the quantized one is. */
static err begin_anew(gptq_run *r) {
    err e = err_none();
    for (int64_t i = 0; i < gptq_windows_own(r->windows) && !e.code; i++) {
        float *from, *to;
        e = gptq_windows_get_x(r->windows, GPTQ_QUANTIZED, i, &from);
        if (!e.code) e = gptq_windows_get_x(r->windows, GPTQ_FULL, i, &to);
        if (e.code) break;
        memcpy(to, from, (size_t)(r->s.length * r->s.job->cfg->hidden) * sizeof *to);
        e = gptq_windows_put_x(r->windows, GPTQ_FULL, i);
    }
    return comm_agree(r->s.c, e, "activations", NULL);
}

err gptq_run_layer(gptq_run *r, int64_t layer, const quantize_sink *sink, bool last,
                   gptq_layer_report *report) {
    llama_stage stage = {.cfg = NULL}, full = {.cfg = NULL};
    const llama_config *cfg = r->s.job->cfg;
    const bool two = r->s.asymmetric;
    *report = (gptq_layer_report){.source_sha256 = ""};
    err e = llama_stage_init(&stage, cfg, layer, 1);
    if (!e.code && two) e = llama_stage_init(&full, cfg, layer, 1);
    e = comm_agree(r->s.c, e, "a layer", NULL);
    if (!e.code && two && r->s.from_layer) e = begin_anew(r);
    if (!e.code) e = gptq_source_next(r->source, layer, &stage.layers[0], report->source_sha256);
    if (!e.code) {
        memcpy(report->spreads, gptq_source_spreads(r->source), sizeof report->spreads);
        if (two) e = gptq_layer_copy_vectors(cfg, &stage.layers[0], &full.layers[0]);
        if (!e.code && sink) e = hand_over_vectors(r, layer, &stage.layers[0], sink);
        e = comm_agree(r->s.c, e, "a layer", NULL);
    }
    for (llama_step step = STEP_QKV; step < STEP_COUNT && !e.code; step++)
        e = do_step(r, step, &stage, two ? &full : NULL, sink, !last || step < STEP_DOWN, report);
    if (stage.cfg) llama_stage_clear(&stage);
    if (full.cfg) llama_stage_clear(&full);
    return e;
}

static err pass_stream(gptq_run *r, const llama_stage *stage, int stream) {
    const llama_sites *sites = stream == GPTQ_FULL ? r->s.full : r->s.sites;
    err e = err_none();
    for (int64_t i = 0; i < gptq_windows_own(r->windows) && !e.code; i++) {
        float *x;
        e = gptq_windows_get_x(r->windows, stream, i, &x);
        if (!e.code) e = llama_layers_forward(stage, sites, r->s.length, x, r->scratch);
        if (!e.code) e = gptq_windows_put_x(r->windows, stream, i);
    }
    return comm_agree(r->s.c, e, "activations", NULL);
}

/* The weights of full precision of a finished layer, fused again. */
static err load_full(gptq_run *r, int64_t layer, llama_stage *full) {
    char unused[SHA256_HEX];
    err e = comm_agree(r->s.c, llama_stage_init(full, r->s.job->cfg, layer, 1), "a layer", NULL);
    if (!e.code) e = gptq_source_next(r->source, layer, &full->layers[0], unused);
    for (llama_step step = STEP_QKV; step < STEP_COUNT && !e.code; step++) {
        gptq_stack k = {.r = NULL};
        e = gptq_stack_init(r, step, &k);
        if (!e.code) e = gptq_stack_take(&k, full);
        gptq_stack_clear(&k);
    }
    return e;
}

static err load_vector(const gptq_run *r, llama_role role, int64_t layer, const gptq_saved *saved,
                       float **to) {
    llama_tensor t;
    if (!llama_tensor_of(r->s.job->cfg, role, layer, &t)) return err_none();
    err e = MEM_NEW(to, t.rows, t.name);
    return e.code ? e : saved->vector(saved->arg, &t, *to);
}

static err load_saved(const gptq_run *r, int64_t layer, const gptq_saved *saved, llama_layer *to) {
    err e = err_none();
    for (int k = 0; k < LLAMA_VECTORS && !e.code; k++)
        e = load_vector(r, llama_vectors[k], layer, saved, llama_layer_vector(to, k));
    for (int k = 0; k < LLAMA_LINEARS && !e.code; k++) {
        llama_tensor t;
        qmatrix *q = NULL;
        llama_tensor_of(r->s.job->cfg, llama_linears[k], layer, &t);
        e = qmatrix_create(t.rows, t.cols, &r->s.job->how, &q);
        if (!e.code) e = saved->codes(saved->arg, &t, q);
        if (!e.code) e = gptq_stack_values(q, llama_layer_linear(to, k));
        qmatrix_destroy(&q);
    }
    return e;
}

err gptq_run_pass(gptq_run *r, int64_t layer, const gptq_saved *saved) {
    llama_stage stage = {.cfg = NULL}, full = {.cfg = NULL};
    err e = llama_stage_init(&stage, r->s.job->cfg, layer, 1);
    if (!e.code) e = load_saved(r, layer, saved, &stage.layers[0]);
    e = comm_agree(r->s.c, e, "a finished layer", NULL);
    if (!e.code) e = pass_stream(r, &stage, GPTQ_QUANTIZED);
    const bool both = r->s.asymmetric && !r->s.from_layer;
    if (stage.cfg) llama_stage_clear(&stage);
    if (!e.code && both) e = load_full(r, layer, &full);
    if (!e.code && both) e = pass_stream(r, &full, GPTQ_FULL);
    if (full.cfg) llama_stage_clear(&full);
    return e;
}

/* ---- the plan ---- */

static uint64_t most(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

/* The moment that takes most, of those of a layer: sums of maxima would be of no moment. */
static void offer(gptq_bytes *best, gptq_bytes m) {
    m.scratch_file = best->scratch_file;
    if (gptq_bytes_total(&m) > gptq_bytes_total(best)) *best = m;
}

uint64_t gptq_bytes_total(const gptq_bytes *b) {
    return b->activations + b->weights + b->sums + b->factor + b->rows;
}

static uint64_t bf16_bytes(const gptq_stack *k) {
    return (uint64_t)(k->rows * k->cols) * sizeof(bf16);
}

/* Of a step of one rank. later: the reader, and fused linears of later steps, beside all of it. */
static void offer_step(const gptq_settings *s, int ranks, int rank, const gptq_stack *k,
                       uint64_t later, uint64_t fused, gptq_bytes *best) {
    const gptq_options how = {
        .how = s->job->how, .block = s->factor.block, .energy = !s->asymmetric};
    const uint64_t own = (uint64_t)(k->own_n * k->cols) *
                         (sizeof(float) + (gptq_stack_corrects(s) ? sizeof(double) : 0)),
                   codes = qmatrix_bytes(k->rows, k->cols, &s->job->how) +
                           (uint64_t)k->rows * (sizeof(gptq_loss) + sizeof(qerror)),
                   full = s->asymmetric ? bf16_bytes(k) : 0,
                   rounding =
                       gptq_rows_bytes(&how, size_min(k->own_n, gptq_stack_batch(s, ranks, k)),
                                       k->cols, gptq_stack_tries(s), gptq_stack_corrects(s)),
                   tries = s->asymmetric ? gptq_stack_tries_bytes(s, k) : 0,
                   trial = s->asymmetric ? gptq_stack_trial_bytes(s, k) : 0,
                   factor = hessian_factor_bytes(&s->factor, k->cols, rank);
    gptq_bytes m = {.activations = best->activations};
    m.weights = later + full;
    m.rows = own + codes;
    gptq_bytes rounded = m, used = m;
    m.rows += gptq_stack_all_bytes(s, ranks, k);
    gptq_bytes taken = m, solved = m, crossed;
    taken.weights += fused;
    solved.factor = factor;
    solved.sums = gptq_moments_bytes(k->cols, s->length, !s->scratch);
    crossed = solved;
    solved.factor += hessian_factor_scratch_bytes(&s->factor, k->cols, rank);
    crossed.rows += gptq_stack_cross_bytes(s, ranks, rank, k);
    rounded.factor = factor;
    rounded.rows += tries + most(rounding, trial);
    used.rows += codes - own; /* and as it is stored, on its way to a file */
    used.weights += bf16_bytes(k);
    offer(best, taken);
    offer(best, solved);
    offer(best, crossed);
    offer(best, rounded);
    offer(best, used);
}

gptq_bytes gptq_run_bytes(const gptq_settings *s, int ranks, int rank) {
    const llama_config *cfg = s->job->cfg;
    const gptq_windows_options o = windows_of(s);
    gptq_source_sizes from;
    gptq_source_bytes(s->job, ranks, rank, s->batches < 2, &from);
    gptq_bytes b = {.activations =
                        gptq_windows_bytes(&o, ranks, rank) +
                        llama_scratch_bytes(cfg, wider(s), COMPUTE_BF16, s->length, gemm_threads()),
                    .scratch_file = gptq_windows_file_bytes(&o, ranks, rank)};
    /* A sample of the inputs stands where the factor will. */
    const uint64_t sites = rank == 0 && s->tell_sites ? gptq_sites_bytes(cfg) : 0;
    uint64_t later = from.reader, largest = 0;
    for (llama_step step = STEP_COUNT; step-- > STEP_QKV; later += from.fused[step]) {
        gptq_stack k;
        gptq_stack_shape(s, ranks, rank, step, &k);
        offer_step(s, ranks, rank, &k, later, from.fused[step], &b);
        largest = most(largest, qmatrix_bytes(k.rows, k.cols, &s->job->how));
        gptq_bytes asked = {.activations = b.activations, .factor = sites};
        asked.weights = later + from.fused[step];
        offer(&b, asked);
        if (step != STEP_O && step != STEP_DOWN) continue;
        gptq_stack made; /* by these linears, which then go */
        gptq_stack_shape(s, ranks, rank, step - 1, &made);
        asked.factor = 0;
        asked.weights += bf16_bytes(&made) * (s->asymmetric ? 2 : 1);
        offer(&b, asked);
    }
    /* All linears of this rank are fused; or a finished layer is passed. */
    gptq_bytes fusing = {.activations = b.activations, .weights = later + from.fusion};
    gptq_bytes passing = {.activations = b.activations,
                          .weights = from.reader + (uint64_t)llama_layer_params(cfg) * sizeof(bf16),
                          .rows = largest};
    offer(&b, fusing);
    offer(&b, passing);
    return b;
}

int64_t gptq_run_most_batches(const gptq_settings *s, int ranks) {
    return gptq_stack_most_batches(s, ranks);
}
