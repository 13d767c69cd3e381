/* As many windows as stages are in flight: forward of all, then the loss and backward of all in
 * reverse. A block runs forward again from its saved input before its backward. */
#include "pipeline/learn/capture_run.h"

#include "base/gemm.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/size.h"
#include "model/capture.h"
#include "model/objective.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* As many windows are on their way at once as there are stages: forward of all, then backward of
 * all in reverse, so that no stage waits for a whole round trip. Blocks are computed again from
 * their inputs, and the saved activations stand in one place, which is what keeps a window in
 * flight small. */
typedef struct capture {
    const comm *c;
    const llama_stage *stage;
    compute_type compute;
    const embed_rows *rows;
    const eval_windows *w;
    row_pool *pool;
    const capture_hooks *also;
    int in_flight;
    llama_layers **layers; /* [in_flight] */
    void **x;              /* [in_flight] residual stream, then its gradient */
    comm_request **sent;   /* [in_flight] */
    llama_work *work;
    int32_t *next;  /* token that follows each row */
    double *nll;    /* [windows] */
    int64_t done;   /* of this rank, in passes through a layer: one forward, two in the backward */
    int64_t window; /* the one whose rows are hooked */
    int64_t
        bad_layer; /* of that window: whose gradient was the first that is not finite; -1 none */
} capture;

static llama_pass_shape shape_of(const llama_config *cfg, compute_type compute, int64_t length,
                                 bool head) {
    (void)cfg;
    return (llama_pass_shape){.compute = compute, .window = length, .slice = length, .head = head};
}

uint64_t capture_bytes(const llama_config *cfg, compute_type compute, int64_t n_layers,
                       int64_t length, int stages, bool head) {
    llama_pass_shape shape = shape_of(cfg, compute, length, head);
    const uint64_t stream = (uint64_t)(length * cfg->hidden) * llama_real_bytes(compute);
    return llama_layers_bytes(cfg, NULL, &shape, n_layers, true) +
           (uint64_t)(stages - 1) * llama_layers_beside_bytes(cfg, &shape, n_layers) +
           (uint64_t)stages * stream + llama_work_bytes(cfg, NULL, &shape, gemm_threads());
}

/* Rows of window w become tokens [w quota, (w + 1) quota) of the pool: an even spread that depends
 * on the numbers of windows and tokens alone. Windows begin at different tokens: a model's outlier
 * of all is the first token of a window, and a pool in which each window had its own would be
 * learned from too many of them (docs/DECISIONS.md). */
static void pool_rows(capture *k, int64_t layer, hook_place place, int64_t n_tokens, const float *x,
                      const float *g) {
    int64_t quota = size_max(1, k->pool->tokens / k->w->n), at = k->window * quota;
    if (at >= k->pool->tokens) return;
    int64_t stride = size_max(1, k->w->length / quota), used = size_min(n_tokens, quota * stride);
    const int64_t first = k->window % stride;
    static const struct {
        hook_place place;
        pool_kind kind;
        int site;
    } places[] = {{HOOK_ATTN_IN, POOL_R1, 0},
                  {HOOK_MLP_IN, POOL_R1, 1},
                  {HOOK_VALUE, POOL_VALUE, 0},
                  {HOOK_O_IN, POOL_O, 0}};
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++)
        if (places[i].place == place)
            row_pool_put(k->pool, places[i].kind, layer, places[i].site, at, used, first, stride, x,
                         g);
}

static bool finite_rows(const float *g, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(g[i])) return false;
    return true;
}

/* A window of a large model takes minutes, so layers are what is counted. */
static void tell_progress(capture *k, int64_t passes) {
    k->done += passes;
    log_progress("capture, layers", k->done, 3 * k->stage->n_layers * k->w->n);
}

static err take_rows(void *ctx, int64_t layer, hook_place place, int64_t t0, int64_t n_tokens,
                     int64_t width, const float *x, const float *g) {
    capture *k = ctx;
    err e = err_none();
    pool_rows(k, layer, place, n_tokens, x, g);
    if (k->bad_layer < 0 && place == HOOK_ATTN_IN && !finite_rows(g, n_tokens * width))
        k->bad_layer = layer - k->stage->first_layer;
    for (int i = 0; i < k->also->n && !e.code; i++) {
        const llama_hook *hook = &k->also->hooks[i];
        if (hook->places & 1u << place)
            e = hook->take(hook->ctx, layer, place, t0, n_tokens, width, x, g);
    }
    if (place == HOOK_ATTN_IN) tell_progress(k, 2); /* a layer's last */
    return e;
}

/* Places of the pool, and what the others want. */
static uint32_t places_of(const capture *k) {
    uint32_t places = 1u << HOOK_ATTN_IN | 1u << HOOK_MLP_IN | 1u << HOOK_VALUE | 1u << HOOK_O_IN;
    for (int i = 0; i < k->also->n; i++) places |= k->also->hooks[i].places;
    return places;
}

static err capture_init(capture *k) {
    const llama_config *cfg = k->stage->cfg;
    int size = comm_size(k->c);
    bool head = comm_rank(k->c) == size - 1;
    llama_pass_shape shape = shape_of(cfg, k->compute, k->w->length, head);
    k->in_flight = (int)size_min(size, k->w->n);
    k->layers = calloc((size_t)k->in_flight, sizeof *k->layers);
    k->x = calloc((size_t)k->in_flight, sizeof *k->x);
    k->sent = calloc((size_t)k->in_flight, sizeof *k->sent);
    k->nll = calloc((size_t)k->w->n, sizeof *k->nll);
    k->next = malloc((size_t)k->w->length * sizeof *k->next);
    if (!k->layers || !k->x || !k->sent || !k->next || !k->nll) abort();
    err e = llama_work_create(cfg, NULL, &shape, &k->work);
    for (int i = 0; i < k->in_flight && !e.code; i++) {
        e = i ? llama_layers_create_beside(k->layers[0], &k->layers[i])
              : llama_layers_create(cfg, NULL, &shape, k->stage->n_layers, true, &k->layers[0]);
        if (!e.code)
            e = mem_alloc(k->w->length * cfg->hidden, llama_real_bytes(k->compute),
                          "residual stream", &k->x[i]);
    }
    return e;
}

static void capture_clear(capture *k) {
    for (int i = k->in_flight - 1; i >= 0; i--) { /* the first has the room of all */
        comm_wait(&k->sent[i]);
        llama_layers_destroy(&k->layers[i]);
        mem_free(k->x[i]);
    }
    llama_work_destroy(&k->work);
    free(k->layers);
    free(k->x);
    free(k->sent);
    free(k->next);
    free(k->nll);
}

static uint64_t stream_bytes(const capture *k) {
    return (uint64_t)(k->w->length * k->stage->cfg->hidden) * llama_real_bytes(k->compute);
}

/* NaN and infinity are caught where they begin: what comes from another stage was told there. */
static err not_finite(const capture *k, int64_t window, const char *what, int64_t layer) {
    char at[48] = "at the head";
    if (layer >= 0) snprintf(at, sizeof at, "at layer %" PRId64, k->stage->first_layer + layer);
    return err_make(ERR_NUMERICS, "capturing activations",
                    "look at the weights there and at that text; other windows: calib.windows",
                    "%s is not finite %s, in calibration sequence %" PRId64 ", before step 1", what,
                    at, window);
}

/* After an error a rank still passes buffers on, as in eval_run. */
static void forward(capture *k, int64_t window, int slot, err *e) {
    int rank = comm_rank(k->c), size = comm_size(k->c);
    int64_t n = k->w->length;
    void *x = k->x[slot];
    comm_wait(&k->sent[slot]);
    if (rank == 0 && !e->code) {
        for (int64_t t = 0; t < n; t++) k->next[t] = k->rows->row[k->w->ids[window][t]];
        *e = llama_embed(k->stage, k->compute, k->next, n, x);
    }
    if (rank > 0) comm_recv(k->c, x, stream_bytes(k), rank - 1, TAG_ACTIVATIONS);
    const bool good = llama_layers_finite(k->layers[slot], n, x);
    if (!e->code) *e = llama_layers_save(k->layers[slot], k->stage, NULL, n, x, k->work);
    tell_progress(k, k->stage->n_layers);
    const int64_t bad = e->code ? -1 : llama_layers_first_bad(k->layers[slot], n, x);
    if (good && bad >= 0) *e = not_finite(k, window, "the residual stream", bad);
    if (rank + 1 < size)
        k->sent[slot] = comm_isend(k->c, x, stream_bytes(k), rank + 1, TAG_ACTIVATIONS);
}

static void backward(capture *k, int64_t window, int slot, err *e) {
    int rank = comm_rank(k->c), size = comm_size(k->c);
    int64_t n = k->w->length;
    void *x = k->x[slot];
    comm_wait(&k->sent[slot]);
    if (rank + 1 < size) {
        comm_recv(k->c, x, stream_bytes(k), rank + 1, TAG_GRADIENTS);
    } else if (!e->code) {
        for (int64_t t = 0; t < n; t++) k->next[t] = t + 1 < n ? k->w->ids[window][t + 1] : -1;
        *e = llama_ce_backward(k->stage, n, x, k->next, 1, x, &k->nll[window], NULL, k->work);
        if (!e->code && !isfinite(k->nll[window])) *e = not_finite(k, window, "the loss", -1);
        if (!e->code && !llama_layers_finite(k->layers[slot], n, x))
            *e = not_finite(k, window, "the gradient of the loss", -1);
    }
    k->bad_layer = llama_layers_finite(k->layers[slot], n, x) ? -1 : INT64_MAX;
    llama_hook hook = {.places = places_of(k), .take = take_rows, .ctx = k};
    k->window = window;
    if (k->also->window) *k->also->window = window;
    if (!e->code)
        *e = llama_layers_backward(k->layers[slot], k->stage, NULL, n, x, NULL, NULL, &hook,
                                   k->work);
    if (!e->code && k->bad_layer >= 0 && k->bad_layer < INT64_MAX)
        *e = not_finite(k, window, "the gradient", k->bad_layer);
    if (rank > 0) k->sent[slot] = comm_isend(k->c, x, stream_bytes(k), rank - 1, TAG_GRADIENTS);
}

err capture_run(const comm *c, const llama_stage *stage, compute_type compute,
                const embed_rows *rows, const eval_windows *w, row_pool *pool,
                const capture_hooks *also, const capture_between *between, double *nll) {
    const capture_hooks none = {.n = 0};
    capture k = {.c = c,
                 .stage = stage,
                 .compute = compute,
                 .rows = rows,
                 .w = w,
                 .pool = pool,
                 .also = also ? also : &none};
    err e = comm_agree(c, capture_init(&k), "preparing the capture", NULL);
    bool go_on = !e.code;
    if (go_on) tell_progress(&k, 0);
    for (int64_t first = 0; go_on && first < w->n; first += k.in_flight) {
        int n = (int)size_min(k.in_flight, w->n - first);
        for (int i = 0; i < n; i++) forward(&k, first + i, i, &e);
        for (int i = n - 1; i >= 0; i--) backward(&k, first + i, i, &e);
        const err stop =
            between->call ? between->call(between->ctx, c, first + n, w->n) : err_none();
        go_on = !stop.code; /* on all ranks alike, whatever e is on this one */
        if (!e.code) e = stop;
    }
    double sum = 0; /* in the order of windows, not in that of the waves */
    for (int64_t i = 0; i < w->n; i++) sum += k.nll[i];
    capture_clear(&k);
    e = comm_agree(c, e, "capturing activations", NULL);
    comm_bcast(c, &sum, sizeof sum, comm_size(c) - 1);
    if (nll) *nll = sum / ((double)w->n * (double)(w->length - 1));
    return e;
}
