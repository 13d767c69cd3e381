/* As many tokens of each window, evenly, and not the same ones of each. */
#include "pipeline/learn/site_rows.h"

#include "base/half.h"
#include "base/mem.h"
#include "base/size.h"

/* Rows of a site: with the buffers of their hooks these add less than 2 % to what the capture holds
 * of a small model, and less of a large one, whose weights grow with the square of the width. A
 * covariance takes 2 d rows of d channels: where these are few, and else in the layer that is
 * drawn. */
enum { ROWS = 32, NARROW_ROWS = 64, NARROW = 256, MIDDLE = 1024 };

struct site_rows {
    const llama_config *cfg;
    int64_t first, n, windows, length;
    const int64_t *now;        /* number of the window that is passing */
    bf16 **x;                  /* [n, STEP_COUNT] rows */
    const llama_stage *behind; /* whose gains are applied first; NULL: none */
};

static bool with_covariance(const llama_config *cfg, int64_t layer, int64_t width) {
    return width <= NARROW || (width <= MIDDLE && layer == cfg->layers / 2);
}

static int64_t most_rows(const llama_config *cfg, int64_t layer, int64_t width) {
    if (width <= NARROW) return size_max(NARROW_ROWS, 2 * width);
    return with_covariance(cfg, layer, width) ? 2 * width : ROWS;
}

/* Of each window, and of all. */
static int64_t quota(const site_rows *p, int64_t layer, int64_t width) {
    return size_min(p->length, size_max(1, most_rows(p->cfg, layer, width) / p->windows));
}
static int64_t count(const site_rows *p, int64_t layer, int64_t width) {
    return size_min(most_rows(p->cfg, layer, width), quota(p, layer, width) * p->windows);
}

uint64_t site_rows_bytes(const llama_config *cfg, int64_t first, int64_t n) {
    uint64_t sum = 0;
    for (int64_t layer = first; layer < first + n; layer++)
        for (llama_step s = STEP_QKV; s < STEP_COUNT; s++) {
            const int64_t width = llama_step_width(cfg, s);
            sum += (uint64_t)(most_rows(cfg, layer, width) * width) * sizeof(bf16);
        }
    return sum;
}

err site_rows_create(const llama_config *cfg, int64_t first, int64_t n, int64_t windows,
                     int64_t length, site_rows **out) {
    site_rows *p;
    *out = NULL;
    err e = MEM_NEW(&p, 1, "inputs for the report");
    if (e.code) return e;
    *p = (site_rows){.cfg = cfg, .first = first, .n = n, .windows = windows, .length = length};
    e = MEM_NEW(&p->x, n * STEP_COUNT, "inputs for the report");
    for (int64_t i = 0; i < n * STEP_COUNT && !e.code; i++) {
        const int64_t width = llama_step_width(cfg, (llama_step)(i % STEP_COUNT));
        e = MEM_NEW(&p->x[i], count(p, first + i / STEP_COUNT, width) * width,
                    "inputs for the report");
    }
    if (e.code) site_rows_destroy(&p);
    *out = p;
    return e;
}

void site_rows_destroy(site_rows **out) {
    site_rows *p = *out;
    if (!p) return;
    for (int64_t i = 0; p->x && i < p->n * STEP_COUNT; i++) mem_free(p->x[i]);
    mem_free(p->x);
    mem_free(p);
    *out = NULL;
}

/* The gain that rows of a step are taken behind, or NULL. */
static const float *gain_of(const site_rows *p, llama_step step, int64_t layer) {
    if (!p->behind || (step != STEP_QKV && step != STEP_GATE_UP)) return NULL;
    const llama_layer *l = &p->behind->layers[layer - p->behind->first_layer];
    return step == STEP_QKV ? l->attn_norm : l->mlp_norm;
}

static void keep(const float *gain, const float *x, int64_t width, bf16 *to) {
    if (!gain) half_array_to_bf16(x, width, to);
    for (int64_t j = 0; gain && j < width; j++) to[j] = half_to_bf16(x[j] * gain[j]);
}

static const hook_place places[STEP_COUNT] = {HOOK_ATTN_IN, HOOK_O_IN, HOOK_MLP_IN, HOOK_DOWN_IN};

/* Tokens first + k stride of the window, k < quota; its rows follow those of the windows before. */
static err take(void *ctx, int64_t layer, hook_place place, int64_t t0, int64_t n_tokens,
                int64_t width, const float *x, const float *g) {
    site_rows *p = ctx;
    (void)g;
    for (llama_step s = STEP_QKV; s < STEP_COUNT; s++) {
        if (places[s] != place) continue;
        bf16 *rows = p->x[(layer - p->first) * STEP_COUNT + s];
        const int64_t of_window = quota(p, layer, width), stride = p->length / of_window,
                      room = count(p, layer, width);
        for (int64_t k = 0; k < of_window; k++) {
            const int64_t t = *p->now % stride + k * stride - t0, at = *p->now * of_window + k;
            if (t >= 0 && t < n_tokens && at < room)
                keep(gain_of(p, s, layer), x + t * width, width, rows + at * width);
        }
    }
    return err_none();
}

llama_hook site_rows_hook(site_rows *p, const int64_t *window) {
    uint32_t wanted = 0;
    p->now = window;
    for (int s = 0; s < STEP_COUNT; s++) wanted |= 1u << places[s];
    return (llama_hook){.places = wanted, .take = take, .ctx = p};
}

void site_rows_behind(site_rows *p, const llama_stage *stage) {
    p->behind = stage;
}

int site_rows_pieces(const site_rows *p, int64_t layer, byte_piece out[STEP_COUNT]) {
    for (llama_step s = STEP_QKV; s < STEP_COUNT; s++) {
        const int64_t width = llama_step_width(p->cfg, s);
        out[s] = (byte_piece){p->x[(layer - p->first) * STEP_COUNT + s],
                              (uint64_t)(count(p, layer, width) * width) * sizeof(bf16)};
    }
    return STEP_COUNT;
}

uint64_t site_rows_saved_bytes(const llama_config *cfg, int64_t first, int64_t n, int64_t windows,
                               int64_t length) {
    const site_rows p = {.cfg = cfg, .windows = windows, .length = length};
    uint64_t sum = 0;
    for (int64_t i = 0; i < n * STEP_COUNT; i++) {
        const int64_t width = llama_step_width(cfg, (llama_step)(i % STEP_COUNT));
        sum += (uint64_t)(count(&p, first + i / STEP_COUNT, width) * width) * sizeof(bf16);
    }
    return sum;
}

err site_rows_look(const site_rows *p, rotation_set *set, int64_t layer, llama_step step,
                   site_look *out) {
    const int64_t width = llama_step_width(p->cfg, step), rows = count(p, layer, width);
    float *x = NULL;
    *out = (site_look){.there = false};
    if (MEM_NEW(&x, rows * width, "inputs for the report").code) return err_none();
    half_array_from_bf16(p->x[(layer - p->first) * STEP_COUNT + step], rows * width, x);
    err e = site_look_take(p->cfg, set, layer, step, SITE_BEFORE,
                           with_covariance(p->cfg, layer, width), x, rows, out);
    mem_free(x);
    return e;
}
