/* Each site has a heap of m + 1 slots with the lowest priority on top; a row that beats it takes
 * its slot. */
#include "pipeline/learn/noise_rows.h"

#include "base/mem.h"
#include "base/rng.h"
#include "base/size.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A row that stays. */
typedef struct slot {
    double priority, size;
    int64_t token, at; /* `at`: the row where its entries are until the draw is finished */
} slot;

typedef struct draw {
    int64_t n, width;
    slot *heap; /* [room], lowest priority first; after the end by token, the lowest one left out */
    bf16 *x, *g;    /* [room, width] */
    double *weight; /* [room] */
} draw;

struct noise_rows {
    int64_t first, n, window, room; /* room: rows + 1 */
    const int64_t *now;             /* number of the window that is passing */
    uint32_t places;
    draw *draws;               /* [n, CLIP_PLACES] */
    double *size;              /* [window] of the rows that are offered */
    const llama_stage *behind; /* whose gains are applied first; NULL: none */
};

hook_place noise_hook_place(clip_place place) {
    static const hook_place hooks[CLIP_PLACES] = {HOOK_ATTN_IN, HOOK_MLP_IN, HOOK_O_IN,
                                                  HOOK_DOWN_IN, HOOK_KEY,    HOOK_VALUE};
    return hooks[place];
}

int64_t noise_width(const llama_config *cfg, clip_place place) {
    switch (place) {
    case CLIP_O:
        return cfg->heads * cfg->head_dim;
    case CLIP_DOWN:
        return cfg->intermediate;
    case CLIP_KEY:
    case CLIP_VALUE:
        return cfg->kv_heads * cfg->head_dim;
    default:
        return cfg->hidden;
    }
}

static bool asked(uint32_t places, int place) {
    return places >> place & 1u;
}

uint64_t noise_rows_bytes(const llama_config *cfg, int64_t n, uint32_t places, int64_t rows) {
    uint64_t each = 0;
    for (int k = 0; k < CLIP_PLACES; k++)
        if (asked(places, k))
            each += 2 * sizeof(bf16) * (uint64_t)noise_width(cfg, (clip_place)k) + sizeof(slot) +
                    sizeof(double);
    return (uint64_t)n * (uint64_t)(rows + 1) * each;
}

static err draw_init(draw *d, int64_t room, int64_t width) {
    *d = (draw){.width = width};
    err e = MEM_NEW(&d->x, room * width, "rows of quantizers");
    if (!e.code) e = MEM_NEW(&d->g, room * width, "their gradients");
    if (!e.code) e = MEM_NEW(&d->heap, room, "rows of quantizers");
    if (!e.code) e = MEM_NEW(&d->weight, room, "rows of quantizers");
    return e;
}

err noise_rows_create(const llama_config *cfg, int64_t first, int64_t n, uint32_t places,
                      int64_t window, int64_t rows, noise_rows **out) {
    *out = NULL;
    noise_rows *p;
    err e = MEM_NEW(&p, 1, "rows of quantizers");
    if (e.code) return e;
    *p = (noise_rows){.first = first, .n = n, .window = window, .room = rows + 1, .places = places};
    e = MEM_NEW(&p->draws, n * CLIP_PLACES, "rows of quantizers");
    if (!e.code) e = MEM_NEW(&p->size, window, "rows of quantizers");
    for (int64_t i = 0; i < n * CLIP_PLACES && !e.code; i++)
        if (asked(places, (int)(i % CLIP_PLACES)))
            e = draw_init(&p->draws[i], p->room, noise_width(cfg, (clip_place)(i % CLIP_PLACES)));
    if (e.code) noise_rows_destroy(&p);
    *out = p;
    return e;
}

void noise_rows_destroy(noise_rows **out) {
    noise_rows *p = *out;
    if (!p) return;
    for (int64_t i = 0; p->draws && i < p->n * CLIP_PLACES; i++) {
        draw *d = &p->draws[i];
        void *all[] = {d->x, d->g, d->heap, d->weight};
        for (int k = 0; k < 4; k++) mem_free(all[k]);
    }
    mem_free(p->draws);
    mem_free(p->size);
    mem_free(p);
    *out = NULL;
}

/* Equal priorities go by token, so that no order of arrival matters. */
static bool below(const slot *a, const slot *b) {
    return a->priority != b->priority ? a->priority < b->priority : a->token > b->token;
}

static void swap(slot *a, slot *b) {
    const slot c = *a;
    *a = *b;
    *b = c;
}

static void sift_up(slot *h, int64_t i) {
    for (; i > 0 && below(&h[i], &h[(i - 1) / 2]); i = (i - 1) / 2) swap(&h[i], &h[(i - 1) / 2]);
}

static void sift_down(slot *h, int64_t n) {
    for (int64_t i = 0;;) {
        int64_t least = i;
        for (int64_t c = 2 * i + 1; c < n && c <= 2 * i + 2; c++)
            if (below(&h[c], &h[least])) least = c;
        if (least == i) return;
        swap(&h[i], &h[least]);
        i = least;
    }
}

/* Where the entries of a row go, or -1: it does not stay. */
static int64_t offer(draw *d, int64_t room, slot s) {
    if (d->n < room) {
        s.at = d->n;
        d->heap[d->n] = s;
        sift_up(d->heap, d->n++);
        return s.at;
    }
    if (!below(&d->heap[0], &s)) return -1;
    s.at = d->heap[0].at;
    d->heap[0] = s;
    sift_down(d->heap, room);
    return s.at;
}

/* (|g|^2)^(3/4) of each row; square roots are rounded the same everywhere, powers are not. */
static void sizes_of(const float *g, int64_t rows, int64_t width, double *size) {
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < rows; t++) {
        double sum = 0;
        for (int64_t j = 0; j < width; j++)
            sum += (double)g[t * width + j] * (double)g[t * width + j];
        size[t] = sqrt(sum * sqrt(sum));
    }
}

/* The gain that a row of this place is taken behind, or NULL. */
static const float *gain_of(const noise_rows *p, int place, int64_t layer) {
    if (!p->behind || (place != CLIP_ATTN && place != CLIP_MLP)) return NULL;
    const llama_layer *l = &p->behind->layers[layer - p->behind->first_layer];
    return place == CLIP_ATTN ? l->attn_norm : l->mlp_norm;
}

static void keep_row(const draw *d, int64_t at, const float *gain, const float *x, const float *g) {
    const int64_t n = d->width;
    if (!gain) {
        half_array_to_bf16(x, n, d->x + at * n);
        half_array_to_bf16(g, n, d->g + at * n);
        return;
    }
    for (int64_t j = 0; j < n; j++) {
        d->x[at * n + j] = half_to_bf16(x[j] * gain[j]);
        d->g[at * n + j] = half_to_bf16(gain[j] != 0 ? g[j] / gain[j] : 0);
    }
}

static void take_rows(noise_rows *p, int place, int64_t layer, int64_t t0, int64_t n_tokens,
                      int64_t width, const float *x, const float *g) {
    draw *d = &p->draws[(layer - p->first) * CLIP_PLACES + place];
    sizes_of(g, n_tokens, width, p->size);
    for (int64_t t = 0; t < n_tokens; t++) {
        const int64_t token = *p->now * p->window + t0 + t;
        const uint64_t index = ((uint64_t)(layer * CLIP_PLACES + place) << 40) + (uint64_t)token;
        if (!(p->size[t] > 0)) continue; /* the loss does not feel it */
        const double u = 1 - rng_uniform(0, RNG_NOISE_ROWS, index);
        const int64_t at = offer(
            d, p->room, (slot){.priority = p->size[t] / u, .size = p->size[t], .token = token});
        if (at < 0) continue;
        keep_row(d, at, gain_of(p, place, layer), x + t * width, g + t * width);
    }
}

static err take(void *ctx, int64_t layer, hook_place place, int64_t t0, int64_t n_tokens,
                int64_t width, const float *x, const float *g) {
    noise_rows *p = ctx;
    for (int k = 0; k < CLIP_PLACES; k++)
        if (asked(p->places, k) && noise_hook_place((clip_place)k) == place)
            take_rows(p, k, layer, t0, n_tokens, width, x, g);
    return err_none();
}

void noise_rows_behind(noise_rows *p, const llama_stage *stage) {
    p->behind = stage;
}

llama_hook noise_rows_hook(noise_rows *p, const int64_t *window) {
    uint32_t places = 0;
    p->now = window;
    for (int k = 0; k < CLIP_PLACES; k++)
        if (asked(p->places, k)) places |= 1u << noise_hook_place((clip_place)k);
    return (llama_hook){.places = places, .take = take, .ctx = p};
}

static int by_token(const void *a, const void *b) {
    const int64_t x = ((const slot *)a)->token, y = ((const slot *)b)->token;
    return x < y ? -1 : x > y;
}

/* Row i of v becomes what stood at row heap[i].at, a permutation of n rows, cycle by cycle. Only
 * reads the heap, so that it can be done to several arrays. */
static void order_rows(const slot *heap, int64_t n, bf16 *v, int64_t width) {
    const size_t bytes = (size_t)width * sizeof *v;
    bf16 *first = malloc(bytes);
    bool *done = calloc((size_t)n + 1, sizeof *done);
    if (!first || !done) abort();
    for (int64_t i = 0; i < n; i++) {
        if (done[i]) continue;
        int64_t to = i;
        memcpy(first, v + i * width, bytes);
        for (; heap[to].at != i; to = heap[to].at) {
            memcpy(v + to * width, v + heap[to].at * width, bytes);
            done[to] = true;
        }
        memcpy(v + to * width, first, bytes);
        done[to] = true;
    }
    free(first);
    free(done);
}

/* The lowest priority of a full heap is the threshold; its row goes, to the end and then to zeros:
 * what is kept of a draw must not tell the order in which the windows came. */
static void finish(draw *d, int64_t room) {
    const bool full = d->n == room;
    const double threshold = full ? d->heap[0].priority : 0;
    if (full) swap(&d->heap[0], &d->heap[--d->n]);
    qsort(d->heap, (size_t)d->n, sizeof *d->heap, by_token);
    order_rows(d->heap, d->n + full, d->x, d->width);
    order_rows(d->heap, d->n + full, d->g, d->width);
    for (int64_t i = 0; i < d->n; i++) d->weight[i] = fmax(1, threshold / d->heap[i].size);
    if (!full) return;
    memset(d->x + d->n * d->width, 0, (size_t)d->width * sizeof *d->x);
    memset(d->g + d->n * d->width, 0, (size_t)d->width * sizeof *d->g);
}

void noise_rows_finish(noise_rows *p) {
    for (int64_t i = 0; i < p->n * CLIP_PLACES; i++)
        if (p->draws[i].heap) finish(&p->draws[i], p->room);
}

noise_set noise_rows_get(const noise_rows *p, clip_place place, int64_t layer) {
    const draw *d = &p->draws[(layer - p->first) * CLIP_PLACES + (int)place];
    return (noise_set){.n = d->n, .width = d->width, .x = d->x, .g = d->g, .weight = d->weight};
}

int noise_rows_pieces(noise_rows *p, int64_t layer, byte_piece out[NOISE_ROWS_PIECES]) {
    int n = 0;
    for (int k = 0; k < CLIP_PLACES; k++) {
        draw *d = &p->draws[(layer - p->first) * CLIP_PLACES + k];
        const uint64_t rows = (uint64_t)p->room, row = (uint64_t)d->width * sizeof(bf16);
        if (!d->heap) continue;
        out[n++] = (byte_piece){&d->n, sizeof d->n};
        out[n++] = (byte_piece){d->x, rows * row};
        out[n++] = (byte_piece){d->g, rows * row};
        out[n++] = (byte_piece){d->weight, rows * sizeof(double)};
    }
    return n;
}

uint64_t noise_rows_saved_bytes(const llama_config *cfg, uint32_t places, int64_t rows) {
    uint64_t sum = 0;
    for (int k = 0; k < CLIP_PLACES; k++)
        if (asked(places, k))
            sum +=
                sizeof(int64_t) +
                (uint64_t)(rows + 1) *
                    (2 * sizeof(bf16) * (uint64_t)noise_width(cfg, (clip_place)k) + sizeof(double));
    return sum;
}
