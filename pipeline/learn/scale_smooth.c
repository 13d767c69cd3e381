/* Largest magnitudes per channel of activations are collected by a hook over the capture, those of
 * weights by a pass over the columns. */
#include "pipeline/learn/scale_smooth.h"

#include "base/mem.h"
#include "base/peak.h"
#include "base/size.h"
#include "pipeline/learn/scale_closed.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

enum { ROWS = 16, COLUMNS = 512 }; /* of a piece of weights */
#define LEAST 1e-5                 /* as in the published code */

struct scale_peaks {
    llama_config cfg;
    int64_t first, n, each; /* each: channels of a layer */
    uint32_t kinds;
    int64_t at[SCALE_KINDS]; /* where a kind's channels begin in a layer's */
    float *peaks;            /* [n, each] */
};

static hook_place place_of(scale_kind kind) {
    static const hook_place places[] = {[SCALE_ATTN] = HOOK_ATTN_IN,
                                        [SCALE_MLP] = HOOK_MLP_IN,
                                        [SCALE_VO] = HOOK_O_IN,
                                        [SCALE_QK] = HOOK_PLACES,
                                        [SCALE_UD] = HOOK_DOWN_IN};
    return places[kind];
}

static int64_t width_of(const llama_config *c, scale_kind kind) {
    if (kind == SCALE_UD) return c->intermediate;
    if (kind == SCALE_VO) return c->heads * c->head_dim;
    return kind == SCALE_QK ? 0 : c->hidden;
}

static int64_t lay_out(const llama_config *cfg, uint32_t kinds, int64_t *at) {
    int64_t total = 0;
    for (int k = 0; k < SCALE_KINDS; k++) {
        at[k] = total;
        if (kinds >> k & 1u) total += width_of(cfg, (scale_kind)k);
    }
    return total;
}

uint64_t scale_peaks_bytes(const llama_config *cfg, int64_t n, uint32_t kinds) {
    int64_t at[SCALE_KINDS];
    return (uint64_t)(n * lay_out(cfg, kinds, at)) * sizeof(float);
}

err scale_peaks_create(const llama_config *cfg, int64_t first, int64_t n, uint32_t kinds,
                       scale_peaks **out) {
    *out = NULL;
    scale_peaks *p;
    err e = MEM_NEW(&p, 1, "largest activations");
    if (e.code) return e;
    *p = (scale_peaks){.cfg = *cfg, .first = first, .n = n, .kinds = kinds};
    p->each = lay_out(cfg, kinds, p->at);
    e = MEM_NEW(&p->peaks, n * p->each, "largest activations");
    if (e.code) {
        mem_free(p);
        return e;
    }
    *out = p;
    return e;
}

void scale_peaks_destroy(scale_peaks **p) {
    if (!*p) return;
    mem_free((*p)->peaks);
    mem_free(*p);
    *p = NULL;
}

static float *peaks_at(const scale_peaks *p, scale_kind kind, int64_t layer) {
    return p->peaks + (layer - p->first) * p->each + p->at[kind];
}

static err take(void *ctx, int64_t layer, hook_place place, int64_t t0, int64_t n_tokens,
                int64_t width, const float *x, const float *g) {
    scale_peaks *p = ctx;
    (void)t0, (void)g;
    for (int k = 0; k < SCALE_KINDS; k++) {
        if (!(p->kinds >> k & 1u) || place_of((scale_kind)k) != place) continue;
        float *peaks = peaks_at(p, (scale_kind)k, layer);
        for (int64_t t = 0; t < n_tokens; t++)
            for (int64_t j = 0; j < width; j++) {
                const float size = fabsf(x[t * width + j]);
                if (peak_above(size, peaks[j])) peaks[j] = size;
            }
        for (int64_t j = 0; j < width; j++)
            if (!isfinite(peaks[j]))
                return err_make(ERR_NUMERICS, "activations of the calibration text",
                                "check the model and the text",
                                "layer %" PRId64 ", channel %" PRId64 " is not a number", layer, j);
    }
    return err_none();
}

llama_hook scale_peaks_hook(scale_peaks *p) {
    uint32_t places = 0;
    for (int k = 0; k < SCALE_KINDS; k++)
        if (p->kinds >> k & 1u) places |= 1u << place_of((scale_kind)k);
    return (llama_hook){.places = places, .take = take, .ctx = p};
}

byte_piece scale_peaks_piece(const scale_peaks *p, int64_t layer) {
    return (byte_piece){p->peaks + (layer - p->first) * p->each,
                        (uint64_t)p->each * sizeof *p->peaks};
}

/* peaks[j] = the larger of it and max_i |w_ij|. */
static void add_columns(const wmat *w, double *peaks) {
#pragma omp parallel for schedule(dynamic)
    for (int64_t c = 0; c < w->cols; c += COLUMNS) {
        float piece[ROWS * COLUMNS];
        const int64_t n = size_min(COLUMNS, w->cols - c);
        for (int64_t r = 0; r < w->rows; r += ROWS) {
            const int64_t rows = size_min(ROWS, w->rows - r);
            wmat_expand_f32(w, r, rows, c, n, piece, n);
            for (int64_t i = 0; i < rows * n; i++)
                peaks[c + i % n] = fmax(peaks[c + i % n], fabs((double)piece[i]));
        }
    }
}

/* Columns of what reads the site; q, k, v and gate, up together, with their norm's gain. */
static void weight_peaks(scale_kind kind, const llama_layer *w, int64_t width, double *peaks) {
    const wmat *readers[][3] = {[SCALE_ATTN] = {&w->q, &w->k, &w->v},
                                [SCALE_MLP] = {&w->gate, &w->up, NULL},
                                [SCALE_VO] = {&w->o, NULL, NULL},
                                [SCALE_QK] = {NULL, NULL, NULL},
                                [SCALE_UD] = {&w->down, NULL, NULL}};
    const float *gain = kind == SCALE_ATTN ? w->attn_norm : kind == SCALE_MLP ? w->mlp_norm : NULL;
    for (int i = 0; i < 3; i++)
        if (readers[kind][i]) add_columns(readers[kind][i], peaks);
    for (int64_t j = 0; j < width && gain; j++) peaks[j] *= fabs((double)gain[j]);
}

/* Query heads of a KV head share its scales. */
static int64_t scale_of(const llama_config *c, scale_kind kind, int64_t j) {
    const int64_t d = c->head_dim;
    return kind == SCALE_VO ? j / d / (c->heads / c->kv_heads) * d + j % d : j;
}

static void share(const llama_config *c, scale_kind kind, int64_t width, double *v) {
    for (int64_t j = 0; j < width; j++) {
        const int64_t to = scale_of(c, kind, j); /* never behind j */
        const bool first = kind != SCALE_VO || j / c->head_dim % (c->heads / c->kv_heads) == 0;
        v[to] = first ? v[j] : fmax(v[to], v[j]);
    }
}

err scale_smooth(const scale_peaks *p, scale_kind kind, int64_t layer, const llama_layer *weights,
                 double alpha, double *s) {
    const llama_config *c = &p->cfg;
    const int64_t width = width_of(c, kind);
    const int64_t n = kind == SCALE_VO ? c->kv_heads * c->head_dim : width;
    const float *x = peaks_at(p, kind, layer);
    double *buffer;
    err e = MEM_NEW(&buffer, 2 * width, "scales");
    if (e.code) return e;
    double *wx = buffer, *ww = wx + width;
    for (int64_t j = 0; j < width; j++) wx[j] = (double)x[j];
    weight_peaks(kind, weights, width, ww);
    share(c, kind, width, wx);
    share(c, kind, width, ww);
    for (int64_t j = 0; j < n; j++)
        s[j] = pow(fmax(wx[j], LEAST), alpha) / pow(fmax(ww[j], LEAST), 1 - alpha);
    mem_free(buffer);
    scale_settle(s, n);
    return e;
}
