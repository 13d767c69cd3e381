#include "pipeline/gptq_layer.h"

#include "base/clock.h"
#include "base/gemm.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/size.h"
#include "pipeline/load_stage.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const compute_type COMPUTE = COMPUTE_BF16;

struct gptq_run {
    gptq_settings s;
    gptq_windows *windows;
    gptq_source *source;
    gptq_moments moments;
    llama_scratch *scratch;
};

/* The linears of a step one below the other: they share their inputs, so they are one matrix. */
typedef struct stack {
    gptq_run *r;
    llama_step step;
    int first_linear, n_linears;
    int64_t rows, cols;
    int64_t own0, own_n; /* rows of this rank */
    float *w;            /* owned; [own_n, cols] */
    double *cross;       /* owned; [own_n, cols] or NULL */
    qmatrix *q;          /* owned; [rows, cols] */
    gptq_loss *loss;     /* owned; [rows] */
    qerror *errors;      /* owned; [rows] */
    int64_t at;          /* first row of the linear whose bands come */
    wmat *full;          /* of that linear in the stream of full precision; NULL: none */
} stack;

static int64_t linear_rows(const llama_config *cfg, int linear) {
    llama_tensor t;
    llama_tensor_of(cfg, gptq_role(linear), 0, &t);
    return t.rows;
}

/* First row of a rank: whole units, in rank order. */
static int64_t first_row(int64_t rows, int ranks, int rank) {
    const int64_t units = size_ceil_div(rows, GPTQ_UNIT_ROWS);
    return size_min(rows, units * rank / ranks * GPTQ_UNIT_ROWS);
}

static void stack_shape(const gptq_settings *s, int ranks, int rank, llama_step step, stack *k) {
    *k = (stack){.step = step,
                 .first_linear = gptq_step_first(step),
                 .n_linears = gptq_step_count(step),
                 .cols = llama_step_width(s->job->cfg, step)};
    for (int i = 0; i < k->n_linears; i++) k->rows += linear_rows(s->job->cfg, k->first_linear + i);
    k->own0 = first_row(k->rows, ranks, rank);
    k->own_n = first_row(k->rows, ranks, rank + 1) - k->own0;
}

static void stack_clear(stack *k) {
    mem_free(k->w);
    mem_free(k->cross);
    mem_free(k->loss);
    mem_free(k->errors);
    qmatrix_destroy(&k->q);
}

static err stack_init(gptq_run *r, llama_step step, stack *k) {
    void *p = NULL;
    stack_shape(&r->s, comm_size(r->s.c), comm_rank(r->s.c), step, k);
    k->r = r;
    err e = mem_alloc(k->own_n * k->cols, sizeof(float), "rows of weights", &p);
    k->w = p;
    p = NULL;
    if (!e.code && r->s.asymmetric)
        e = mem_alloc(k->own_n * k->cols, sizeof(double), "cross terms of rows", &p);
    k->cross = p;
    p = NULL;
    if (!e.code) e = mem_alloc(k->rows, sizeof(gptq_loss), "losses of rows", &p);
    k->loss = p;
    p = NULL;
    if (!e.code) e = mem_alloc(k->rows, sizeof(qerror), "errors of rows", &p);
    k->errors = p;
    if (!e.code) e = qmatrix_create(k->rows, k->cols, &r->s.job->how, &k->q);
    return comm_agree(r->s.c, e, "rows of weights", NULL);
}

/* ---- weights ---- */

static err take_band(void *arg, int64_t row0, int64_t rows, const float *w) {
    stack *k = arg;
    const int64_t at = k->at + row0, a = size_max(at, k->own0),
                  b = size_min(at + rows, k->own0 + k->own_n);
    if (a < b)
        memcpy(k->w + (a - k->own0) * k->cols, w + (a - at) * k->cols,
               (size_t)((b - a) * k->cols) * sizeof *w);
    if (k->full) half_array_to_bf16(w, rows * k->cols, (bf16 *)k->full->data + row0 * k->cols);
    return err_none();
}

/* The rows of this rank; where there is a stream of full precision also the whole linears. */
static err take_weights(stack *k, llama_stage *full) {
    err e = err_none();
    k->at = 0;
    for (int i = 0; i < k->n_linears && !e.code; i++) {
        const int linear = k->first_linear + i;
        const int64_t rows = linear_rows(k->r->s.job->cfg, linear);
        if (full) {
            k->full = gptq_layer_linear(&full->layers[0], linear);
            e = wmat_init(k->full, WMAT_BF16, rows, k->cols, "weights in bf16");
            e = comm_agree(k->r->s.c, e, "weights in bf16", NULL);
        }
        if (!e.code) e = gptq_source_share(k->r->source, linear, take_band, k);
        k->at += rows;
    }
    return e;
}

/* A linear of the stack; borrows. */
static qmatrix view_of(const stack *k, int i) {
    qmatrix v = *k->q;
    int64_t at = 0;
    for (int j = 0; j < i; j++) at += linear_rows(k->r->s.job->cfg, k->first_linear + j);
    v.rows = linear_rows(k->r->s.job->cfg, k->first_linear + i);
    v.codes += at * v.cols;
    v.scales += at * v.n_groups;
    if (v.zeros) v.zeros += at * v.n_groups;
    return v;
}

/* The values of the codes, as products take them. */
static err dequantize(const qmatrix *q, wmat *to) {
    enum { ROWS = 64 };
    void *wide;
    err e = wmat_init(to, WMAT_BF16, q->rows, q->cols, "quantized weights in bf16");
    if (!e.code) e = mem_alloc(ROWS * q->cols, sizeof(float), "rows of values", &wide);
    if (e.code) return e;
    for (int64_t row = 0; row < q->rows; row += ROWS) {
        const int64_t n = size_min(ROWS, q->rows - row);
        qmatrix_dequantize_rows(q, row, n, wide);
        half_array_to_bf16(wide, n * q->cols, (bf16 *)to->data + row * q->cols);
    }
    mem_free(wide);
    return e;
}

static err use_codes(const stack *k, llama_layer *layer) {
    err e = err_none();
    for (int i = 0; i < k->n_linears && !e.code; i++) {
        const qmatrix v = view_of(k, i);
        wmat *slot = gptq_layer_linear(layer, k->first_linear + i);
        wmat_clear(slot);
        e = dequantize(&v, slot);
    }
    return comm_agree(k->r->s.c, e, "quantized weights", NULL);
}

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
                            .compute = COMPUTE};
    if (!e.code && own) e = load_stage(&o, &stage);
    for (int64_t i = 0; i < own * n && !e.code; i++) ids[i] = rows.row[ids[i]];
    const int streams = s->asymmetric ? 2 : 1;
    for (int64_t i = 0; i < own * streams && !e.code; i++) {
        const int stream = (int)(i / own);
        float *x;
        e = gptq_windows_get_x(r->windows, stream, i % own, &x);
        if (!e.code) e = llama_embed(&stage, COMPUTE, ids + i % own * n, n, x);
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
                   llama_scratch_bytes(s->job->cfg, s->full, COMPUTE, s->length, threads) >
                       llama_scratch_bytes(s->job->cfg, s->sites, COMPUTE, s->length, threads)
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
    if (!e.code) e = gptq_source_create(s->c, s->job, layers, n, &r->source);
    if (!e.code)
        e = comm_agree(s->c,
                       llama_scratch_create(s->job->cfg, wider(s), COMPUTE, s->length, &r->scratch),
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

/* Codes, scales and losses of every rank's rows to all. */
static void share_codes(stack *k) {
    const comm *c = k->r->s.c;
    qmatrix *q = k->q;
    for (int rank = 0; rank < comm_size(c); rank++) {
        const int64_t a = first_row(k->rows, comm_size(c), rank),
                      n = first_row(k->rows, comm_size(c), rank + 1) - a;
        if (!n) continue;
        comm_bcast(c, q->codes + a * q->cols, (uint64_t)(n * q->cols), rank);
        comm_bcast(c, q->scales + a * q->n_groups, (uint64_t)(n * q->n_groups) * sizeof(float),
                   rank);
        if (q->zeros) comm_bcast(c, q->zeros + a * q->n_groups, (uint64_t)(n * q->n_groups), rank);
        comm_bcast(c, k->loss + a, (uint64_t)n * sizeof *k->loss, rank);
        comm_bcast(c, k->errors + a, (uint64_t)n * sizeof *k->errors, rank);
    }
}

static err add_cross(stack *k) {
    gptq_moments *m = &k->r->moments;
    const int64_t n = k->cols, step = gptq_moments_panel_rows(n);
    void *wide;
    err e = comm_agree(k->r->s.c, mem_alloc(step * n, sizeof(double), "cross terms", &wide),
                       "cross terms", NULL);
    if (e.code) return e;
    double *c_panel = wide;
    const double to_real = ldexp(m->factor, m->exponent);
    memset(k->cross, 0, (size_t)(k->own_n * n) * sizeof *k->cross);
    for (int64_t first = 0; first < n && !e.code; first += step) {
        const int64_t rows = size_min(step, n - first);
        int64_t *v;
        e = gptq_moments_cross(m, first, rows, &v);
        for (int64_t i = 0; i < rows * n && !e.code; i++) c_panel[i] = (double)v[i] * to_real;
        if (!e.code) e = gptq_cross_add(k->w, k->own_n, n, first, rows, c_panel, k->cross);
        e = comm_agree(k->r->s.c, e, "cross terms", NULL);
    }
    mem_free(wide);
    return e;
}

/* Of the codes against the fused weights. */
static err row_errors(stack *k) {
    void *p;
    err e = mem_alloc(k->cols, sizeof(float), "values of a row", &p);
    const float *v = p;
    for (int64_t i = 0; i < k->own_n && !e.code; i++) {
        qerror *sum = &k->errors[k->own0 + i];
        qmatrix_dequantize_rows(k->q, k->own0 + i, 1, p);
        *sum = (qerror){.max_error = 0};
        for (int64_t j = 0; j < k->cols; j++) {
            const double w = (double)k->w[i * k->cols + j], d = (double)v[j] - w;
            sum->sum_sq_error += d * d;
            sum->sum_sq_weight += w * w;
            sum->max_error = fmax(sum->max_error, fabs(d));
        }
    }
    mem_free(p);
    return e;
}

static void add_errors(const stack *k, qerror *sum) {
    for (int64_t i = 0; i < k->rows; i++) {
        sum->sum_sq_error += k->errors[i].sum_sq_error;
        sum->sum_sq_weight += k->errors[i].sum_sq_weight;
        sum->max_error = fmax(sum->max_error, k->errors[i].max_error);
    }
}

static err round_rows(stack *k, const gptq_order *o, gptq_solve *solve, double alpha) {
    const gptq_settings *s = &k->r->s;
    const gptq_options opts = {
        .how = s->job->how, .block = s->solve.block, .alpha = alpha, .energy = true};
    err e = gptq_rows(&opts, o, gptq_solve_damping(solve)->lambda, gptq_solve_panels(solve), k->w,
                      alpha > 0 ? k->cross : NULL, k->own_n, k->own0, k->q, k->loss + k->own0);
    e = comm_agree(s->c, e, "rounding rows", NULL);
    if (!e.code) e = comm_agree(s->c, row_errors(k), "errors of rows", NULL);
    if (!e.code) share_codes(k);
    return e;
}

static void fill_report(const stack *k, const gptq_solve *solve, double alpha,
                        gptq_layer_report *report) {
    int64_t at = 0;
    for (int i = 0; i < k->n_linears; i++) {
        gptq_linear_report *l = &report->linears[k->first_linear + i];
        const int64_t rows = linear_rows(k->r->s.job->cfg, k->first_linear + i);
        *l = (gptq_linear_report){.damping = *gptq_solve_damping(solve), .alpha = alpha};
        gptq_report_add(k->loss + at, rows, &l->loss);
        at += rows;
    }
}

static err hand_over(const stack *k, int64_t layer, const quantize_sink *sink) {
    err e = err_none();
    for (int i = 0; i < k->n_linears && sink && !e.code; i++) {
        const qmatrix v = view_of(k, i);
        llama_tensor t;
        llama_tensor_of(k->r->s.job->cfg, gptq_role(k->first_linear + i), layer, &t);
        e = sink->quantized(sink->arg, &t, &v);
    }
    return comm_agree(k->r->s.c, e, "keeping codes", NULL);
}

static err step_order(stack *k, const char *what, gptq_order **o) {
    gptq_run *r = k->r;
    void *diagonal;
    err e = comm_agree(r->s.c, mem_alloc(k->cols, sizeof(double), what, &diagonal), what, NULL);
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
    llama_tensor_of(r->s.job->cfg, gptq_role(gptq_step_first(step)), layer, &t);
    memcpy(name, t.name, sizeof t.name);
}

/* More columns than tokens: the Hessian lacks directions, and damping stands in for them. */
static gptq_solve_options solve_of(const gptq_run *r, int64_t n) {
    gptq_solve_options o = r->s.solve;
    const int64_t tokens = r->s.n_windows * r->s.length;
    if (tokens < n) o.damp *= (double)n / (double)tokens;
    return o;
}

static err quantize_stack(stack *k, llama_stage *stage, llama_stage *full,
                          const quantize_sink *sink, gptq_layer_report *report) {
    gptq_run *r = k->r;
    gptq_order *o = NULL;
    gptq_solve *solve = NULL;
    char name[96];
    const double alpha = full ? r->s.alpha : 0;
    const gptq_solve_options opts = solve_of(r, k->cols);
    step_name(r, stage->first_layer, k->step, name);
    err e = take_weights(k, full);
    if (!e.code) e = step_order(k, name, &o);
    if (!e.code) e = gptq_solve_create(&r->moments, o, &opts, name, &solve);
    if (!e.code && alpha > 0) e = add_cross(k);
    if (!e.code) e = round_rows(k, o, solve, alpha);
    if (!e.code) {
        add_errors(k, &report->error);
        fill_report(k, solve, alpha, report);
        e = use_codes(k, &stage->layers[0]);
    }
    if (!e.code) e = hand_over(k, stage->first_layer, sink);
    gptq_solve_destroy(&solve);
    gptq_order_destroy(&o);
    return e;
}

static err do_step(gptq_run *r, llama_step step, llama_stage *stage, llama_stage *full,
                   const quantize_sink *sink, bool go_on, gptq_layer_report *report) {
    const double start = clock_now_s();
    stack k = {.r = NULL};
    err e = stack_init(r, step, &k);
    if (!e.code) e = step_inputs(r, stage, GPTQ_QUANTIZED, step);
    if (!e.code && full) e = step_inputs(r, full, GPTQ_FULL, step);
    if (!e.code) e = quantize_stack(&k, stage, full, sink, report);
    stack_clear(&k);
    if (!e.code && go_on && (step == STEP_O || step == STEP_DOWN)) {
        e = step_outputs(r, stage, GPTQ_QUANTIZED, step);
        if (!e.code && full) e = step_outputs(r, full, GPTQ_FULL, step);
    }
    report->step_s[step] = clock_now_s() - start;
    return e;
}

/* ---- one layer ---- */

static err hand_over_vectors(const gptq_run *r, int64_t layer, llama_layer *l,
                             const quantize_sink *sink) {
    llama_tensor t;
    llama_tensor_of(r->s.job->cfg, ROLE_ATTN_NORM, layer, &t);
    err e = sink->plain(sink->arg, &t, 0, t.rows, l->attn_norm);
    llama_tensor_of(r->s.job->cfg, ROLE_MLP_NORM, layer, &t);
    if (!e.code) e = sink->plain(sink->arg, &t, 0, t.rows, l->mlp_norm);
    for (int k = 0; k < GPTQ_LINEARS && !e.code; k++) {
        const float *b = *gptq_layer_bias(l, k);
        if (b && llama_tensor_of(r->s.job->cfg, llama_role_bias(gptq_role(k)), layer, &t))
            e = sink->plain(sink->arg, &t, 0, t.rows, b);
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
        stack k = {.r = NULL};
        e = stack_init(r, step, &k);
        if (!e.code) e = take_weights(&k, full);
        stack_clear(&k);
    }
    return e;
}

static err load_vector(const gptq_run *r, llama_role role, int64_t layer, const gptq_kept *kept,
                       float **to) {
    llama_tensor t;
    void *p;
    if (!llama_tensor_of(r->s.job->cfg, role, layer, &t)) return err_none();
    err e = mem_alloc(t.rows, sizeof(float), t.name, &p);
    if (e.code) return e;
    *to = p;
    return kept->vector(kept->arg, &t, p);
}

static err load_kept(const gptq_run *r, int64_t layer, const gptq_kept *kept, llama_layer *to) {
    err e = load_vector(r, ROLE_ATTN_NORM, layer, kept, &to->attn_norm);
    if (!e.code) e = load_vector(r, ROLE_MLP_NORM, layer, kept, &to->mlp_norm);
    for (int k = 0; k < GPTQ_LINEARS && !e.code; k++) {
        llama_tensor t;
        qmatrix *q = NULL;
        llama_tensor_of(r->s.job->cfg, gptq_role(k), layer, &t);
        e = qmatrix_create(t.rows, t.cols, &r->s.job->how, &q);
        if (!e.code) e = kept->codes(kept->arg, &t, q);
        if (!e.code) e = dequantize(q, gptq_layer_linear(to, k));
        qmatrix_destroy(&q);
        if (!e.code)
            e = load_vector(r, llama_role_bias(gptq_role(k)), layer, kept, gptq_layer_bias(to, k));
    }
    return e;
}

err gptq_run_pass(gptq_run *r, int64_t layer, const gptq_kept *kept) {
    llama_stage stage = {.cfg = NULL}, full = {.cfg = NULL};
    err e = llama_stage_init(&stage, r->s.job->cfg, layer, 1);
    if (!e.code) e = load_kept(r, layer, kept, &stage.layers[0]);
    e = comm_agree(r->s.c, e, "a finished layer", NULL);
    if (!e.code) e = pass_stream(r, &stage, GPTQ_QUANTIZED);
    const bool both = r->s.asymmetric && !r->s.from_layer;
    if (!e.code && both) e = load_full(r, layer, &full);
    if (!e.code && both) e = pass_stream(r, &full, GPTQ_FULL);
    if (stage.cfg) llama_stage_clear(&stage);
    if (full.cfg) llama_stage_clear(&full);
    return e;
}

/* ---- the plan ---- */

static uint64_t most(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

gptq_bytes gptq_run_bytes(const gptq_settings *s, int ranks, int rank) {
    const llama_config *cfg = s->job->cfg;
    const gptq_windows_options o = windows_of(s);
    gptq_bytes b = {
        .activations = gptq_windows_bytes(&o, ranks, rank) +
                       llama_scratch_bytes(cfg, wider(s), COMPUTE, s->length, gemm_threads()),
        .weights = gptq_source_bytes(s->job, ranks, rank) +
                   (uint64_t)llama_layer_params(cfg) * sizeof(bf16) * (s->asymmetric ? 2 : 1),
        .scratch_file = gptq_windows_file_bytes(&o, ranks, rank)};
    for (llama_step step = STEP_QKV; step < STEP_COUNT; step++) {
        stack k;
        stack_shape(s, ranks, rank, step, &k);
        const gptq_options how = {.how = s->job->how, .block = s->solve.block, .energy = true};
        const uint64_t rows =
            (uint64_t)(k.own_n * k.cols) * (sizeof(float) + (s->asymmetric ? sizeof(double) : 0)) +
            qmatrix_bytes(k.rows, k.cols, &s->job->how) +
            gptq_rows_bytes(&how, k.own_n, k.cols, s->asymmetric);
        b.rows = most(b.rows, rows);
        b.sums = most(b.sums, gptq_moments_bytes(k.cols, s->length));
        b.factor = most(b.factor, gptq_solve_bytes(&s->solve, k.cols));
    }
    return b;
}
