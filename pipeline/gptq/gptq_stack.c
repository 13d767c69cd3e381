/* The linears that share an input are stacked into one matrix of rows, which is cut over ranks in
 * units of 64 rows; each rank rounds its rows and codes are shared. For GPTAQ several strengths
 * are tried and compared on held-out windows. */
#include "pipeline/gptq/gptq_stack.h"

#include "base/gemm.h"
#include "base/mem.h"
#include "base/size.h"
#include "quant/pack.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

static int64_t linear_rows(const llama_config *cfg, int linear) {
    llama_tensor t;
    llama_tensor_of(cfg, llama_linears[linear], 0, &t);
    return t.rows;
}

/* First row of a rank: whole units, in rank order. */
static int64_t first_row(int64_t rows, int ranks, int rank) {
    const int64_t units = size_ceil_div(rows, GPTQ_UNIT_ROWS);
    return size_min(rows, units * rank / ranks * GPTQ_UNIT_ROWS);
}

void gptq_stack_shape(const gptq_settings *s, int ranks, int rank, llama_step step, gptq_stack *k) {
    *k = (gptq_stack){.step = step,
                      .first_linear = gptq_step_first(step),
                      .n_linears = gptq_step_count(step),
                      .cols = llama_step_width(s->job->cfg, step)};
    for (int i = 0; i < k->n_linears; i++) k->rows += linear_rows(s->job->cfg, k->first_linear + i);
    k->own0 = first_row(k->rows, ranks, rank);
    k->own_n = first_row(k->rows, ranks, rank + 1) - k->own0;
}

bool gptq_stack_corrects(const gptq_settings *s) {
    return s->asymmetric && s->alpha > 0;
}

static int64_t most_units(int ranks, const gptq_stack *k) {
    return size_ceil_div(size_ceil_div(k->rows, GPTQ_UNIT_ROWS), ranks);
}

int64_t gptq_stack_most_batches(const gptq_settings *s, int ranks) {
    int64_t most = 1;
    for (llama_step step = STEP_QKV; step < STEP_COUNT; step++) {
        gptq_stack k;
        gptq_stack_shape(s, ranks, 0, step, &k);
        most = size_max(most, most_units(ranks, &k));
    }
    return most;
}

int64_t gptq_stack_batch(const gptq_settings *s, int ranks, const gptq_stack *k) {
    return size_ceil_div(most_units(ranks, k), s->batches) * GPTQ_UNIT_ROWS;
}

static void drop_all_rows(gptq_stack *k) {
    mem_free(k->all);
    k->all = NULL;
}

static void drop_rows(gptq_stack *k) {
    drop_all_rows(k);
    mem_free(k->w);
    mem_free(k->cross);
    k->w = NULL;
    k->cross = NULL;
}

void gptq_stack_clear(gptq_stack *k) {
    drop_rows(k);
    mem_free(k->loss);
    mem_free(k->errors);
    qmatrix_destroy(&k->q);
}

err gptq_stack_init(gptq_run *r, llama_step step, gptq_stack *k) {
    gptq_stack_shape(&r->s, comm_size(r->s.c), comm_rank(r->s.c), step, k);
    k->r = r;
    err e = MEM_NEW(&k->w, k->own_n * k->cols, "rows of weights");
    if (!e.code) e = MEM_NEW(&k->loss, k->rows, "losses of rows");
    if (!e.code) e = MEM_NEW(&k->errors, k->rows, "errors of rows");
    if (!e.code) e = qmatrix_create(k->rows, k->cols, &r->s.job->how, &k->q);
    return comm_agree(r->s.c, e, "rows of weights", NULL);
}

err gptq_stack_init_cross(gptq_stack *k) {
    const comm *c = k->r->s.c;
    if (!gptq_stack_corrects(&k->r->s)) return err_none();
    err e = MEM_NEW(&k->cross, k->own_n * k->cols, "cross terms of rows");
    if (!e.code && comm_size(c) > 1)
        e = MEM_NEW_UNSET(&k->all, k->rows * k->cols, "weights of all rows");
    return comm_agree(c, e, "cross terms", NULL);
}

/* ---- weights ---- */

static err take_band(void *arg, int64_t row0, int64_t rows, const float *w) {
    gptq_stack *k = arg;
    const int64_t at = k->at + row0, a = size_max(at, k->own0),
                  b = size_min(at + rows, k->own0 + k->own_n);
    if (a < b)
        memcpy(k->w + (a - k->own0) * k->cols, w + (a - at) * k->cols,
               (size_t)((b - a) * k->cols) * sizeof *w);
    if (k->all) memcpy(k->all + at * k->cols, w, (size_t)(rows * k->cols) * sizeof *w);
    if (k->full) half_array_to_bf16(w, rows * k->cols, (bf16 *)k->full->data + row0 * k->cols);
    return err_none();
}

/* The rows of this rank; where there is a stream of full precision also the whole linears. */
err gptq_stack_take(gptq_stack *k, llama_stage *full) {
    err e = err_none();
    k->at = 0;
    for (int i = 0; i < k->n_linears && !e.code; i++) {
        const int linear = k->first_linear + i;
        const int64_t rows = linear_rows(k->r->s.job->cfg, linear);
        if (full) {
            k->full = llama_layer_linear(&full->layers[0], linear);
            e = wmat_init(k->full, WMAT_BF16, rows, k->cols, "weights in bf16");
            e = comm_agree(k->r->s.c, e, "weights in bf16", NULL);
        }
        if (!e.code) e = gptq_source_share(k->r->source, linear, take_band, k);
        k->at += rows;
    }
    return e;
}

/* A linear of the stack; borrows. */
static qmatrix view_of(const gptq_stack *k, int i) {
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
err gptq_stack_values(const qmatrix *q, wmat *to) {
    enum { ROWS = 64 };
    float *wide;
    err e = wmat_init(to, WMAT_BF16, q->rows, q->cols, "quantized weights in bf16");
    if (!e.code) e = MEM_NEW(&wide, ROWS * q->cols, "rows of values");
    if (e.code) return e;
    for (int64_t row = 0; row < q->rows; row += ROWS) {
        const int64_t n = size_min(ROWS, q->rows - row);
        qmatrix_dequantize_rows(q, row, n, wide);
        half_array_to_bf16(wide, n * q->cols, (bf16 *)to->data + row * q->cols);
    }
    mem_free(wide);
    return e;
}

err gptq_stack_use(gptq_stack *k, llama_layer *layer) {
    err e = err_none();
    drop_rows(k);
    for (int i = 0; i < k->n_linears && !e.code; i++) {
        const qmatrix v = view_of(k, i);
        wmat *slot = llama_layer_linear(layer, k->first_linear + i);
        wmat_clear(slot);
        e = gptq_stack_values(&v, slot);
    }
    return comm_agree(k->r->s.c, e, "quantized weights", NULL);
}

/* Rows of codes that are packed at a time, a megabyte of them or one. */
static int64_t packed_rows(const qmatrix *q) {
    return size_min(q->rows, size_max(1, (1 << 20) / q->cols));
}

/* Codes of rows [row, row + n) of one rank to all, packed as in the archive. */
static void share_packed(const comm *c, qmatrix *q, int64_t row, int64_t n, int root,
                         int32_t *packed) {
    const int64_t words = pack_words(q->cols, q->bits), most = packed_rows(q), end = row + n;
    for (; row < end; row += most) {
        const int64_t rows = size_min(most, end - row);
        uint8_t *codes = q->codes + row * q->cols;
        if (comm_rank(c) == root) pack_rows(codes, rows, q->cols, q->bits, packed);
        comm_bcast(c, packed, (uint64_t)(rows * words) * sizeof *packed, root);
        if (comm_rank(c) != root) unpack_rows(packed, rows, q->cols, q->bits, codes);
    }
}

/* Codes, scales and losses of every rank's rows to all. */
static err share_codes(gptq_stack *k) {
    const comm *c = k->r->s.c;
    qmatrix *q = k->q;
    int32_t *packed;
    if (comm_size(c) == 1) return err_none();
    err e = MEM_NEW(&packed, packed_rows(q) * pack_words(q->cols, q->bits), "packed codes");
    e = comm_agree(c, e, "sharing codes", NULL);
    for (int rank = 0; rank < comm_size(c) && !e.code; rank++) {
        const int64_t a = first_row(k->rows, comm_size(c), rank),
                      n = first_row(k->rows, comm_size(c), rank + 1) - a;
        if (!n) continue;
        share_packed(c, q, a, n, rank, packed);
        comm_bcast(c, q->scales + a * q->n_groups, (uint64_t)(n * q->n_groups) * sizeof(float),
                   rank);
        if (q->zeros) comm_bcast(c, q->zeros + a * q->n_groups, (uint64_t)(n * q->n_groups), rank);
        comm_bcast(c, k->loss + a, (uint64_t)n * sizeof *k->loss, rank);
        comm_bcast(c, k->errors + a, (uint64_t)n * sizeof *k->errors, rank);
    }
    mem_free(packed);
    return e;
}

static int64_t own_columns(const gptq_stack *k, int ranks, int rank) {
    return gptq_moments_column(k->cols, ranks, rank + 1) -
           gptq_moments_column(k->cols, ranks, rank);
}

static int64_t most_columns(const gptq_stack *k, int ranks) {
    const int64_t units = size_ceil_div(k->cols, GPTQ_CROSS_COLS);
    return size_min(k->cols, size_ceil_div(units, ranks) * GPTQ_CROSS_COLS);
}

uint64_t gptq_stack_all_bytes(const gptq_settings *s, int ranks, const gptq_stack *k) {
    return gptq_stack_corrects(s) && ranks > 1 ? (uint64_t)(k->rows * k->cols) * sizeof(float) : 0;
}

uint64_t gptq_stack_cross_bytes(const gptq_settings *s, int ranks, int rank, const gptq_stack *k) {
    if (!gptq_stack_corrects(s)) return 0;
    const int64_t dealt = k->rows * own_columns(k, ranks, rank) + k->own_n * most_columns(k, ranks);
    return gptq_cross_bytes(gptq_moments_panel_rows(k->cols)) +
           (ranks > 1 ? (uint64_t)dealt * sizeof(double) : 0);
}

/* W C of all rows, `mine`, is at hand for this rank's columns; each rank gets its rows of it. */
static err deal_cross(gptq_stack *k, const double *mine) {
    const comm *c = k->r->s.c;
    const int ranks = comm_size(c), me = comm_rank(c);
    const int64_t cols = own_columns(k, ranks, me);
    double *came;
    err e = MEM_NEW(&came, k->own_n * most_columns(k, ranks), "cross terms of rows");
    e = comm_agree(c, e, "cross terms", NULL);
    for (int i = 0; i < ranks && !e.code; i++) {
        const int to = (me + i) % ranks, from = (me + ranks - i) % ranks;
        const int64_t first = first_row(k->rows, ranks, to),
                      rows = first_row(k->rows, ranks, to + 1) - first,
                      width = own_columns(k, ranks, from);
        const double *out = mine + first * cols, *in = i ? came : out;
        comm_request *sent = NULL;
        if (i) {
            sent = comm_isend(c, out, (uint64_t)(rows * cols) * sizeof *out, to, TAG_ROWS);
            comm_recv(c, came, (uint64_t)(k->own_n * width) * sizeof *came, from, TAG_ROWS);
        }
        double *at = k->cross + gptq_moments_column(k->cols, ranks, from);
        for (int64_t row = 0; row < k->own_n; row++)
            memcpy(at + row * k->cols, in + row * width, (size_t)width * sizeof *in);
        comm_wait(&sent);
    }
    mem_free(came);
    return e;
}

/* Columns of C are dealt to ranks, so that none of it goes to all; the products with them then go
 * to the ranks of their rows. */
err gptq_stack_cross(gptq_stack *k) {
    gptq_moments *m = &k->r->moments;
    const comm *c = k->r->s.c;
    const int64_t n = k->cols, step = gptq_moments_panel_rows(n),
                  cols = own_columns(k, comm_size(c), comm_rank(c));
    const double to_real = ldexp(m->factor, m->exponent);
    const float *w = k->all ? k->all : k->w;
    double *mine = k->cross;
    err e = k->all ? MEM_NEW(&mine, k->rows * cols, "cross terms of columns") : err_none();
    e = comm_agree(c, e, "cross terms", NULL);
    for (int64_t first = 0; first < n && !e.code; first += step) {
        const int64_t rows = size_min(step, n - first);
        int64_t *v;
        e = gptq_moments_cross(m, first, rows, &v);
        if (e.code) break;
        double *c_panel = (double *)(void *)v; /* in place */
        for (int64_t i = 0; i < rows * cols; i++) c_panel[i] = (double)v[i] * to_real;
        e = gptq_cross_add(w, k->rows, n, first, rows, c_panel, cols, mine);
        e = comm_agree(c, e, "cross terms", NULL);
    }
    drop_all_rows(k);
    if (mine == k->cross) return e;
    if (!e.code) e = deal_cross(k, mine);
    mem_free(mine);
    return e;
}

/* Of the codes against the fused weights. */
static err row_errors(gptq_stack *k) {
    float *v;
    err e = MEM_NEW(&v, k->cols, "values of a row");
    for (int64_t i = 0; i < k->own_n && !e.code; i++) {
        qerror *sum = &k->errors[k->own0 + i];
        qmatrix_dequantize_rows(k->q, k->own0 + i, 1, v);
        *sum = (qerror){.max_error = 0};
        for (int64_t j = 0; j < k->cols; j++) {
            const double w = (double)k->w[i * k->cols + j], d = (double)v[j] - w;
            sum->sum_sq_error += d * d;
            sum->sum_sq_weight += w * w;
            sum->max_error = fmax(sum->max_error, fabs(d));
        }
    }
    mem_free(v);
    return e;
}

/* Codes of this rank's rows by each strength, from row0 of their matrices on. The ranks go through
 * the panels together, as often as any of them has parts of its rows. */
static err round_rows(gptq_stack *k, const gptq_order *o, hessian_factor *factor, int64_t row0,
                      const gptq_try *tries, int n) {
    const gptq_settings *s = &k->r->s;
    const int64_t batch = gptq_stack_batch(s, comm_size(s->c), k),
                  most = most_units(comm_size(s->c), k) * GPTQ_UNIT_ROWS;
    const gptq_options opts = {
        .how = s->job->how, .block = s->factor.block, .energy = !s->asymmetric};
    err e = err_none();
    for (int64_t i = 0; i < most && !e.code; i += batch) {
        const int64_t row = size_min(i, k->own_n), at = row * k->cols;
        gptq_try part[GPTQ_MAX_TRIES];
        for (int t = 0; t < n; t++)
            part[t] = (gptq_try){tries[t].alpha, tries[t].q, tries[t].loss + row};
        e = gptq_rows(&opts, o, hessian_factor_damping(factor)->lambda,
                      hessian_factor_panels(factor), k->w + at, k->cross ? k->cross + at : NULL,
                      size_min(batch, k->own_n - row), row0 + row, part, n);
        e = comm_agree(s->c, e, "rounding rows", NULL);
    }
    return e;
}

/* This rank's rows are rounded: what all must know of them. */
static err share_rounded(gptq_stack *k) {
    err e = comm_agree(k->r->s.c, row_errors(k), "errors of rows", NULL);
    return e.code ? e : share_codes(k);
}

err gptq_stack_round(gptq_stack *k, const gptq_order *o, hessian_factor *factor, double alpha) {
    const gptq_try one = {alpha, k->q, k->loss + k->own0};
    err e = round_rows(k, o, factor, k->own0, &one, 1);
    return e.code ? e : share_rounded(k);
}

void gptq_stack_report(const gptq_stack *k, const hessian_factor *factor, double alpha,
                       gptq_layer_report *report) {
    int64_t at = 0;
    qerror_add(k->errors, k->rows, &report->error);
    for (int i = 0; i < k->n_linears; i++) {
        gptq_linear_report *l = &report->linears[k->first_linear + i];
        const int64_t rows = linear_rows(k->r->s.job->cfg, k->first_linear + i);
        *l = (gptq_linear_report){.damping = *hessian_factor_damping(factor), .alpha = alpha};
        gptq_report_add(k->loss + at, rows, &l->loss);
        l->measured = k->measured;
        if (k->measured) {
            l->loss.rtn = k->nearest.error[i];
            l->loss.chosen = k->chosen.error[i];
            l->loss.energy = k->chosen.energy[i];
        }
        at += rows;
    }
}

err gptq_stack_hand_over(const gptq_stack *k, int64_t layer, const quantize_sink *sink) {
    err e = err_none();
    for (int i = 0; i < k->n_linears && sink && !e.code; i++) {
        const qmatrix v = view_of(k, i);
        llama_tensor t;
        llama_tensor_of(k->r->s.job->cfg, llama_linears[k->first_linear + i], layer, &t);
        e = sink->quantized(sink->arg, &t, &v);
    }
    return comm_agree(k->r->s.c, e, "keeping codes", NULL);
}

/* ---- the strength of GPTAQ's term ---- */

/* Windows whose outputs are compared. */
static bool compares(const gptq_moments *m, int64_t number) {
    return !m->hold_out || !gptq_moments_takes(m, number);
}

/* Of one window: |X_full W^T - X~ Q^T|^2 and |X_full W^T|^2 of each linear, two numbers apart. */
static err window_outputs(gptq_stack *k, llama_stage *full, const wmat *codes, int64_t i, float *y,
                          double *sums, int64_t apart) {
    const int64_t length = k->r->s.length;
    bf16 *x, *x_full;
    err e = gptq_windows_get_input(k->r->windows, GPTQ_QUANTIZED, i, &x);
    if (!e.code) e = gptq_windows_get_input(k->r->windows, GPTQ_FULL, i, &x_full);
    for (int l = 0; l < k->n_linears && !e.code; l++) {
        const wmat *w = llama_layer_linear(&full->layers[0], k->first_linear + l);
        const int64_t n = length * w->rows;
        float *y_full = y + n;
        double error = 0, energy = 0;
        wmat_product(&codes[l], COMPUTE_BF16, x, length, GEMM_SET, y, NULL, 0);
        wmat_product(w, COMPUTE_BF16, x_full, length, GEMM_SET, y_full, NULL, 0);
        for (int64_t j = 0; j < n; j++) {
            const double d = (double)y[j] - (double)y_full[j];
            error += d * d;
            energy += (double)y_full[j] * (double)y_full[j];
        }
        if (!isfinite(error) || !isfinite(energy))
            return err_make(ERR_NUMERICS, k->r->moments.what,
                            "look at the calibration text and the weights",
                            "outputs of calibration window %" PRId64 " are not finite",
                            gptq_windows_number(k->r->windows, i));
        sums[2 * l * apart] = error;
        sums[(2 * l + 1) * apart] = energy;
    }
    return e;
}

/* Each window is known to one rank, zero bits elsewhere: so sums are taken in the order of the
 * windows. */
static err outputs_of(gptq_stack *k, llama_stage *full, const wmat *codes, gptq_outputs *out) {
    const gptq_settings *s = &k->r->s;
    const int64_t n = s->n_windows;
    void *sums = NULL; /* doubles, summed over ranks as their bits */
    float *y = NULL;
    int64_t widest = 0;
    for (int l = 0; l < k->n_linears; l++) widest = size_max(widest, codes[l].rows);
    err e = mem_alloc(2 * k->n_linears * n, sizeof(double), "errors of windows", &sums);
    if (!e.code) e = MEM_NEW(&y, 2 * s->length * widest, "outputs");
    for (int64_t i = 0; i < gptq_windows_own(k->r->windows) && !e.code; i++) {
        const int64_t number = gptq_windows_number(k->r->windows, i);
        if (compares(&k->r->moments, number))
            e = window_outputs(k, full, codes, i, y, (double *)sums + number, n);
    }
    e = comm_agree(s->c, e, "outputs of windows", NULL);
    if (!e.code) comm_sum_i64(s->c, sums, 2 * k->n_linears * n);
    *out = (gptq_outputs){.error = {0}};
    const double *of = sums;
    for (int l = 0; l < k->n_linears && !e.code; l++, of += 2 * n)
        for (int64_t i = 0; i < n; i++) {
            out->error[l] += of[i];
            out->energy[l] += of[n + i];
        }
    mem_free(sums);
    mem_free(y);
    return e;
}

uint64_t gptq_stack_trial_bytes(const gptq_settings *s, const gptq_stack *k) {
    int64_t widest = 0;
    for (int l = 0; l < k->n_linears; l++)
        widest = size_max(widest, linear_rows(s->job->cfg, k->first_linear + l));
    return (uint64_t)(k->rows * k->cols) * sizeof(bf16) +
           2 * (uint64_t)(s->length * widest) * sizeof(float) +
           2 * (uint64_t)(k->n_linears * s->n_windows) * sizeof(double);
}

/* By the codes at hand. */
static err measure(gptq_stack *k, llama_stage *full, gptq_outputs *out) {
    wmat codes[LLAMA_LINEARS] = {{.kind = WMAT_NONE}};
    err e = err_none();
    for (int l = 0; l < k->n_linears && !e.code; l++) {
        const qmatrix v = view_of(k, l);
        e = gptq_stack_values(&v, &codes[l]);
    }
    e = comm_agree(k->r->s.c, e, "quantized weights", NULL);
    if (!e.code) e = outputs_of(k, full, codes, out);
    for (int l = 0; l < k->n_linears; l++) wmat_clear(&codes[l]);
    return e;
}

static double total_error(const gptq_stack *k, const gptq_outputs *o) {
    double sum = 0;
    for (int l = 0; l < k->n_linears; l++) sum += o->error[l];
    return sum;
}

int gptq_stack_tries(const gptq_settings *s) {
    return gptq_stack_corrects(s) && s->n_windows >= GPTQ_HOLD_OUT ? GPTQ_MAX_TRIES : 1;
}

uint64_t gptq_stack_tries_bytes(const gptq_settings *s, const gptq_stack *k) {
    const int64_t rows = size_max(1, k->own_n);
    return (uint64_t)gptq_stack_tries(s) *
           (qmatrix_bytes(rows, k->cols, &s->job->how) + (uint64_t)rows * sizeof(gptq_loss));
}

static void tries_destroy(gptq_try *tries, int n) {
    for (int i = 0; i < n; i++) {
        qmatrix_destroy(&tries[i].q);
        mem_free(tries[i].loss);
    }
}

static err tries_create(const gptq_stack *k, const double *alpha, int n, gptq_try *tries) {
    const int64_t rows = size_max(1, k->own_n);
    err e = err_none();
    for (int i = 0; i < n; i++) tries[i] = (gptq_try){.alpha = alpha[i]};
    for (int i = 0; i < n && !e.code; i++) {
        e = qmatrix_create(rows, k->cols, &k->r->s.job->how, &tries[i].q);
        if (!e.code) e = MEM_NEW(&tries[i].loss, rows, "losses of rows");
    }
    return comm_agree(k->r->s.c, e, "rows by several strengths", NULL);
}

/* Codes of a strength become those of the stack, on every rank. */
static err take_try(gptq_stack *k, const gptq_try *t) {
    qmatrix_copy_rows(t->q, 0, k->own_n, k->own0, k->q);
    memcpy(k->loss + k->own0, t->loss, (size_t)k->own_n * sizeof *k->loss);
    return share_rounded(k);
}

/* The one that leaves least error, the first of equals; the codes at hand are then the last one's.
 */
static err compare(gptq_stack *k, llama_stage *full, const gptq_try *tries, int n, int *best) {
    double least = INFINITY;
    err e = err_none();
    *best = n - 1;
    for (int i = 0; i < n && !e.code; i++) {
        gptq_outputs found;
        e = take_try(k, &tries[i]);
        if (!e.code) e = measure(k, full, &found);
        if (e.code) break;
        const double error = total_error(k, &found);
        if (!(error < least)) continue;
        least = error;
        *best = i;
        k->chosen = found;
    }
    return e;
}

err gptq_stack_round_best(gptq_stack *k, const gptq_order *o, hessian_factor *factor,
                          llama_stage *full, double first, double *alpha) {
    const double several[GPTQ_MAX_TRIES] = {0, first / 2, first};
    const int n = k->r->moments.hold_out && first > 0 ? GPTQ_MAX_TRIES : 1;
    gptq_try tries[GPTQ_MAX_TRIES];
    int best = 0;
    rtn_quantize_rows(&k->r->s.job->how, k->w, k->own_n, k->cols, k->own0, k->q);
    err e = share_codes(k);
    if (!e.code) e = measure(k, full, &k->nearest);
    if (e.code) return e;
    e = tries_create(k, n > 1 ? several : &first, n, tries);
    if (!e.code) e = round_rows(k, o, factor, 0, tries, n);
    if (!e.code) e = compare(k, full, tries, n, &best);
    if (!e.code && best < n - 1) e = take_try(k, &tries[best]);
    *alpha = tries[best].alpha;
    k->measured = !e.code;
    tries_destroy(tries, n);
    return e;
}
