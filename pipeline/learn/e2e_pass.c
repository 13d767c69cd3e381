/* An interpreter of schedule operations: receive, run the layers on a slice forward or backward,
 * send on; gradients of a layer, window and slice are one unit of the exact sum. */
#include "pipeline/learn/e2e_pass.h"

#include "base/gemm.h"
#include "base/mem.h"
#include "base/size.h"
#include "model/sites.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A window in flight. Rows of x are the residual stream of a slice on its way forward, then the
 * gradient of the same rows on its way back. */
typedef struct slot {
    char *x;             /* owned; real [window, hidden] */
    char *inputs;        /* owned; the same, what the stage was given; recompute only */
    llama_saved **saved; /* [layers]; owned, but with recompute all slots have the same */
    comm_request **sent; /* [slices]: from rows of x */
} slot;

struct e2e_pass {
    e2e_setting s;
    int rank, last; /* stage */
    int64_t n_layers, hidden, slices, n_slots, windows;
    bool recompute;
    size_t row_bytes;
    slot *slots;
    char *spare; /* real [slice, hidden]; recompute only */
    llama_work *work;
    llama_teacher *teacher; /* [windows]; last stage, where the objective needs one */
    void *unit_r1, *unit_r2, *unit_scales;
    int64_t scale_at[SCALE_KINDS + 1]; /* in unit_scales; the last: its entries */
    int32_t *ids;                      /* [slice] */
    double *loss;                      /* [windows, slices]; last stage */
    /* of the pass that runs */
    const llama_sites *sites;
    const e2e_window *w;
    double weight;
    int64_t step;
    const e2e_result *out;
    err e;
};

static llama_pass_shape shape_of_rank(const e2e_setting *s) {
    llama_pass_shape shape = s->shape;
    shape.head = comm_rank(s->stages) == comm_size(s->stages) - 1;
    shape.top_k = shape.head ? e2e_objective_kept(s->objective, s->top_k) : 0;
    return shape;
}

uint64_t e2e_pass_bytes(const llama_config *cfg, const llama_sites *sites,
                        const llama_pass_shape *shape, int64_t n_layers, int64_t k, bool recompute,
                        int64_t teacher_windows) {
    const uint64_t real = llama_real_bytes(shape->compute), n = (uint64_t)cfg->hidden;
    const uint64_t stream = (uint64_t)shape->window * n * real, in_flight = (uint64_t)k;
    const uint64_t n_saved = (uint64_t)n_layers * (recompute ? 1 : in_flight);
    uint64_t bytes = n_saved * llama_saved_bytes(cfg, sites, shape);
    bytes += llama_work_bytes(cfg, sites, shape, gemm_threads());
    bytes += in_flight * stream * (recompute ? 2 : 1) +
             (recompute ? (uint64_t)shape->slice * n * real : 0);
    if (shape->r1) bytes += n * n * real;
    const scale_sizes sizes = llama_scale_sizes(cfg);
    bytes += (uint64_t)scale_sizes_at(&sizes, shape->scales, SCALE_KINDS) * real;
    return bytes + (uint64_t)(teacher_windows * shape->window * shape->top_k) * 8;
}

static err create_slot(e2e_pass *p, int64_t i, const llama_sites *sites) {
    const llama_pass_shape shape = shape_of_rank(&p->s);
    const int64_t rows = shape.window;
    slot *s = &p->slots[i];
    err e = MEM_NEW(&s->x, rows * (int64_t)p->row_bytes, "residual stream");
    if (!e.code) e = MEM_NEW(&s->sent, p->slices, "messages");
    if (!e.code) e = MEM_NEW(&s->saved, p->n_layers, "saved activations");
    if (!e.code && p->recompute)
        e = MEM_NEW(&s->inputs, rows * (int64_t)p->row_bytes, "inputs of a stage");
    for (int64_t l = 0; l < p->n_layers && !e.code; l++) {
        if (p->recompute && i > 0)
            s->saved[l] = p->slots[0].saved[l];
        else
            e = llama_saved_create(p->s.stage->cfg, sites, &shape, &s->saved[l]);
    }
    return e;
}

static err create_teacher(e2e_pass *p) {
    const int64_t tokens = p->s.shape.window, k = p->s.top_k;
    err e = MEM_NEW(&p->teacher, p->windows, "teacher");
    for (int64_t i = 0; i < p->windows && !e.code; i++) {
        e = MEM_NEW(&p->teacher[i].token, tokens * k, "tokens of the teacher");
        if (!e.code) e = MEM_NEW(&p->teacher[i].log_p, tokens * k, "teacher");
    }
    return e;
}

static err create_buffers(e2e_pass *p, const llama_sites *sites) {
    const llama_pass_shape shape = shape_of_rank(&p->s);
    const size_t real = llama_real_bytes(shape.compute);
    err e = MEM_NEW(&p->slots, p->n_slots, "windows in flight");
    for (int64_t i = 0; i < p->n_slots && !e.code; i++) e = create_slot(p, i, sites);
    if (!e.code && p->recompute)
        e = MEM_NEW(&p->spare, shape.slice * (int64_t)p->row_bytes, "slice");
    if (!e.code) e = llama_work_create(p->s.stage->cfg, sites, &shape, &p->work);
    if (!e.code && shape.top_k) e = create_teacher(p);
    if (!e.code && shape.r1)
        e = mem_alloc(p->hidden * p->hidden, real, "gradient of R1", &p->unit_r1);
    if (!e.code && shape.r2) e = mem_alloc(p->s.r2_entries, real, "gradient of R2", &p->unit_r2);
    if (!e.code && shape.scales)
        e = mem_alloc(p->scale_at[SCALE_KINDS], real, "gradient of scales", &p->unit_scales);
    if (!e.code) e = MEM_NEW(&p->ids, shape.slice, "tokens");
    if (!e.code) e = MEM_NEW(&p->loss, p->windows * p->slices, "losses");
    return e;
}

err e2e_pass_create(const e2e_setting *s, const llama_sites *sites, e2e_pass **out) {
    const schedule_shape *order = schedule_get_shape(s->order);
    *out = NULL;
    e2e_pass *p;
    err e = MEM_NEW(&p, 1, "pass");
    if (e.code) return e;
    *p = (e2e_pass){.s = *s,
                    .rank = comm_rank(s->stages),
                    .last = comm_size(s->stages) - 1,
                    .n_layers = s->stage->n_layers,
                    .hidden = s->stage->cfg->hidden,
                    .slices = order->slices,
                    .windows = order->windows,
                    .recompute = order->recompute};
    const scale_sizes sizes = llama_scale_sizes(s->stage->cfg);
    for (int k = 0; k <= SCALE_KINDS; k++)
        p->scale_at[k] = scale_sizes_at(&sizes, s->shape.scales, k);
    p->n_slots = schedule_in_flight(s->order, p->rank);
    p->row_bytes = (size_t)p->hidden * llama_real_bytes(s->shape.compute);
    e = create_buffers(p, sites);
    if (e.code) e2e_pass_destroy(&p);
    *out = p;
    return e;
}

static void clear_slot(e2e_pass *p, int64_t i) {
    slot *s = &p->slots[i];
    const bool owner = !p->recompute || i == 0;
    for (int64_t l = 0; owner && s->saved && l < p->n_layers; l++)
        llama_saved_destroy(&s->saved[l]);
    mem_free(s->saved);
    mem_free(s->sent);
    mem_free(s->inputs);
    mem_free(s->x);
}

void e2e_pass_destroy(e2e_pass **pass) {
    e2e_pass *p = *pass;
    if (!p) return;
    for (int64_t i = 0; p->slots && i < p->n_slots; i++) clear_slot(p, i);
    for (int64_t i = 0; p->teacher && i < p->windows; i++) {
        mem_free(p->teacher[i].token);
        mem_free(p->teacher[i].log_p);
    }
    llama_work_destroy(&p->work);
    void *const all[] = {p->slots,   p->spare,       p->teacher, p->unit_r1,
                         p->unit_r2, p->unit_scales, p->ids,     p->loss};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) mem_free(all[i]);
    mem_free(p);
    *pass = NULL;
}

/* Numbers that stop being finite. */

static bool finite_reals(const void *x, int64_t n, compute_type compute) {
    bool bad = false;
    if (compute == COMPUTE_F64) {
        const double *v = x;
        for (int64_t i = 0; i < n; i++) bad |= !isfinite(v[i]);
    } else {
        const float *v = x;
        for (int64_t i = 0; i < n; i++) bad |= !isfinite(v[i]);
    }
    return !bad;
}

static err not_finite(const e2e_pass *p, const char *what, int64_t layer, int64_t window) {
    char where[64] = "loss";
    if (layer >= 0) snprintf(where, sizeof where, "layer %" PRId64, layer);
    return err_make(ERR_NUMERICS, where,
                    "the state before this step is kept; use smaller rates, or other text",
                    "%s not finite at step %" PRId64 ", sequence %" PRId64, what, p->step + 1,
                    p->w[window].number);
}

/* One slice. */

typedef struct piece {
    int64_t window, t0, n;
    slot *at;
    comm_request **sent;
    char *x; /* its rows */
    uint64_t bytes;
} piece;

static piece piece_of(e2e_pass *p, int64_t window, int64_t slice) {
    const int64_t t0 = slice * p->s.shape.slice,
                  n = size_min(p->s.shape.slice, p->s.shape.window - t0);
    slot *at = &p->slots[window % p->n_slots];
    return (piece){.window = window,
                   .t0 = t0,
                   .n = n,
                   .at = at,
                   .sent = &at->sent[slice],
                   .x = at->x + (size_t)t0 * p->row_bytes,
                   .bytes = (uint64_t)n * p->row_bytes};
}

/* The weights that learning goes through; the teacher's are s.stage. */
static const llama_stage *student(const e2e_pass *p) {
    return p->s.weights ? weight_site_stage(p->s.weights) : p->s.stage;
}

/* x of a slice through the layers of the stage. */
static void layers_forward(e2e_pass *p, const piece *c, const llama_sites *sites, char *x) {
    const llama_stage *stage = sites ? student(p) : p->s.stage;
    for (int64_t l = 0; l < p->n_layers && !p->e.code; l++) {
        p->e = llama_block_forward_save(stage, stage->first_layer + l, sites, c->t0, c->n, x,
                                        c->at->saved[l], p->work);
        if (!p->e.code && !finite_reals(x, c->n * p->hidden, p->s.shape.compute))
            p->e = not_finite(p, "activations are", stage->first_layer + l, c->window);
    }
}

/* Rows of a slice: embedded here, or from the stage before. */
static void receive_forward(e2e_pass *p, const piece *c) {
    comm_wait(c->sent);
    if (p->rank > 0) {
        comm_recv(p->s.stages, c->x, c->bytes, p->rank - 1, TAG_ACTIVATIONS);
        return;
    }
    const int32_t *ids = p->w[c->window].ids + c->t0;
    if (p->e.code) return;
    for (int64_t t = 0; t < c->n; t++) p->ids[t] = p->s.rows ? p->s.rows->row[ids[t]] : ids[t];
    p->e = llama_embed(p->s.stage, p->s.shape.compute, p->ids, c->n, c->x);
}

/* After an error zeros go on: what is wrong here is not to be found wrong there again. */
static void send_on(e2e_pass *p, const piece *c, int to, comm_tag tag) {
    if (p->e.code) memset(c->x, 0, c->bytes);
    *c->sent = comm_isend(p->s.stages, c->x, c->bytes, to, tag);
}

static llama_teacher teacher_at(const e2e_pass *p, const piece *c) {
    const llama_teacher *t = &p->teacher[c->window];
    return (llama_teacher){.token = t->token + c->t0 * p->s.top_k,
                           .log_p = t->log_p + c->t0 * p->s.top_k};
}

/* Loss of a slice; its rows become the gradient. */
static void head(e2e_pass *p, const piece *c, int64_t slice) {
    double sum = 0;
    const e2e_objective *o = p->s.objective;
    const llama_teacher teacher =
        o->needs_teacher ? teacher_at(p, c) : (llama_teacher){.token = NULL};
    for (int64_t t = 0; t < c->n; t++)
        p->ids[t] = c->t0 + t + 1 < p->s.shape.window ? p->w[c->window].ids[c->t0 + t + 1] : -1;
    const objective_rows rows = {.n = c->n,
                                 .x = c->x,
                                 .next = p->ids,
                                 .teacher = o->needs_teacher ? &teacher : NULL,
                                 .weight = p->weight,
                                 .dx = c->x};
    p->e = llama_objective_backward(o->kind, p->s.stage, &rows, &sum, NULL, p->work);
    if (!p->e.code && !isfinite(sum)) p->e = not_finite(p, "the loss is", -1, c->window);
    p->loss[c->window * p->slices + slice] = sum;
}

/* After an error a rank still passes buffers on: one that left would hang the others. */
static void op_forward(e2e_pass *p, const schedule_op *op) {
    const piece c = piece_of(p, op->window, op->slice);
    receive_forward(p, &c);
    if (p->recompute && !p->e.code)
        memcpy(c.at->inputs + (size_t)c.t0 * p->row_bytes, c.x, c.bytes);
    layers_forward(p, &c, p->sites, c.x);
    if (p->rank < p->last)
        send_on(p, &c, p->rank + 1, TAG_ACTIVATIONS);
    else if (!p->e.code)
        head(p, &c, op->slice);
}

static void op_again(e2e_pass *p, const schedule_op *op) {
    const piece c = piece_of(p, op->window, op->slice);
    if (p->e.code) return;
    memcpy(p->spare, c.at->inputs + (size_t)c.t0 * p->row_bytes, c.bytes);
    layers_forward(p, &c, p->sites, p->spare);
}

/* Where a unit's gradients go. */
static rotation_grads unit_of(const e2e_pass *p) {
    rotation_grads g = {.R1 = p->unit_r1, .R2 = p->unit_r2};
    const size_t real = llama_real_bytes(p->s.shape.compute);
    for (int k = 0; k < SCALE_KINDS; k++)
        if (p->s.shape.scales >> k & 1u)
            g.scales[k] = (char *)p->unit_scales + (size_t)p->scale_at[k] * real;
    return g;
}

static void layer_backward(e2e_pass *p, const piece *c, int64_t l) {
    const llama_stage *stage = student(p);
    const compute_type compute = p->s.shape.compute;
    weight_site *weights = p->s.weights;
    const llama_hook hook =
        weights ? weight_site_hook(weights, p->sites) : (llama_hook){.places = 0};
    fixed_sum *R1 = p->out->R1, *R2 = p->out->R2, *S = p->out->scales;
    const int64_t each = p->scale_at[SCALE_KINDS];
    const rotation_grads grads = unit_of(p);
    p->e = llama_block_backward(stage, stage->first_layer + l, p->sites, c->t0, c->n, c->x,
                                c->at->saved[l], &grads, weights ? &hook : NULL, p->work);
    if (p->e.code) return;
    if (weights) weight_site_add(weights, stage->first_layer + l, &grads);
    if (R1) fixed_sum_add(R1, 0, R1->n, compute, p->unit_r1);
    if (R2) fixed_sum_add(R2, l * p->s.r2_entries, p->s.r2_entries, compute, p->unit_r2);
    if (S) fixed_sum_add(S, l * each, each, compute, p->unit_scales);
    if ((R1 && R1->not_finite) || (R2 && R2->not_finite) || (S && S->not_finite) ||
        !finite_reals(c->x, c->n * p->hidden, compute))
        p->e = not_finite(p, "gradients are", stage->first_layer + l, c->window);
}

static void op_backward(e2e_pass *p, const schedule_op *op) {
    const piece c = piece_of(p, op->window, op->slice);
    comm_wait(c.sent);
    if (p->rank < p->last) comm_recv(p->s.stages, c.x, c.bytes, p->rank + 1, TAG_GRADIENTS);
    for (int64_t l = p->n_layers - 1; l >= 0 && !p->e.code; l--) layer_backward(p, &c, l);
    if (p->rank > 0) send_on(p, &c, p->rank - 1, TAG_GRADIENTS);
}

/* Full precision: what the teacher thinks likely, before the student runs. */
static void run_teacher(e2e_pass *p) {
    for (int64_t w = 0; w < p->windows; w++) {
        for (int64_t slice = 0; slice < p->slices; slice++) {
            const piece c = piece_of(p, w, slice);
            receive_forward(p, &c);
            layers_forward(p, &c, NULL, c.x);
            if (p->rank < p->last) {
                send_on(p, &c, p->rank + 1, TAG_ACTIVATIONS);
            } else if (!p->e.code) {
                llama_teacher t = teacher_at(p, &c);
                p->e = llama_teacher_save(p->s.stage, c.n, c.x, &t, p->work);
            }
        }
    }
}

err e2e_pass_run(e2e_pass *p, const llama_sites *sites, const e2e_window *windows, double weight,
                 int64_t step, const e2e_result *out) {
    int64_t n;
    const schedule_op *ops = schedule_ops(p->s.order, p->rank, &n);
    p->sites = sites;
    p->w = windows;
    p->weight = weight;
    p->step = step;
    p->out = out;
    p->e = llama_work_put_r1(p->work, sites->R1);
    if (p->s.objective->needs_teacher) run_teacher(p);
    for (int64_t i = 0; i < n; i++) {
        if (ops[i].kind == OP_FORWARD) op_forward(p, &ops[i]);
        if (ops[i].kind == OP_AGAIN) op_again(p, &ops[i]);
        if (ops[i].kind == OP_BACKWARD) op_backward(p, &ops[i]);
    }
    for (int64_t i = 0; i < p->n_slots; i++)
        for (int64_t t = 0; t < p->slices; t++) comm_wait(&p->slots[i].sent[t]);
    for (int64_t w = 0; p->rank == p->last && w < p->windows && !p->e.code; w++) {
        out->loss[w] = 0; /* slices in their order */
        for (int64_t t = 0; t < p->slices; t++) out->loss[w] += p->loss[w * p->slices + t];
    }
    return p->e;
}
