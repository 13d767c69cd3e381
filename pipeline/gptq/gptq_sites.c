/* Rows are taken evenly from all windows, turned back in place, and told of both times. */
#include "pipeline/gptq/gptq_sites.h"

#include "base/mem.h"
#include "base/size.h"

#include <math.h>

/* Tokens of a sample, and of how many layers, spread over the depth, a covariance is made: it takes
 * 2 width^3 operations, and all of this is to cost a run no more than a hundredth. */
enum { TOKENS = 512, NARROW = 256, MIDDLE = 1024, WIDE = 4096, SOME = 8, FEW = 3 };

static bool with_covariance(const llama_config *cfg, int64_t layer, int64_t width) {
    if (width <= NARROW) return true;
    if (width > WIDE) return false;
    const int64_t layers = width <= MIDDLE ? SOME : FEW;
    for (int64_t k = 0; k < layers; k++)
        if (layer == k * (cfg->layers - 1) / (layers - 1)) return true;
    return false;
}

static int64_t sample_rows(const llama_config *cfg, int64_t layer, int64_t width) {
    return with_covariance(cfg, layer, width) ? size_max(TOKENS, 2 * width) : TOKENS;
}

uint64_t gptq_sites_bytes(const llama_config *cfg) {
    uint64_t most = 0;
    for (llama_step step = STEP_QKV; step < STEP_COUNT; step++) {
        const int64_t width = llama_step_width(cfg, step);
        const uint64_t bytes = (uint64_t)(sample_rows(cfg, 0, width) * width) * sizeof(float) +
                               (with_covariance(cfg, 0, width) ? site_log_det_bytes(width) : 0);
        most = bytes > most ? bytes : most;
    }
    return most;
}

/* Windows begin at different tokens, for the first of a window is unlike all others and would come
 * too often. *n: the rows taken. */
static err gather(gptq_windows *w, int stream, int64_t rows, int64_t width, float *x, int64_t *n) {
    const int64_t own = gptq_windows_own(w), length = gptq_windows_get_options(w)->length,
                  quota = size_min(length, size_ceil_div(rows, own)), stride = length / quota;
    err e = err_none();
    *n = 0;
    for (int64_t i = 0; i < own && !e.code; i++) {
        bf16 *in;
        e = gptq_windows_get_input(w, stream, i, &in);
        for (int64_t k = 0; k < quota && *n < rows && !e.code; k++, ++*n) {
            const bf16 *from = in + (i % stride + k * stride) * width;
            half_array_from_bf16(from, width, x + *n * width);
        }
    }
    return e;
}

static void times(const scale_vector *s, int64_t first, int64_t n, float *x, int64_t rows,
                  int64_t width) {
    for (int64_t t = 0; s && t < rows; t++) scale_times_f32(s->s32 + first, n, x + t * width);
}

/* x R S^-1 back to x. */
static void turn_back_stream(const rotation *R1, const scale_vector *s, float *x, int64_t rows,
                             int64_t width) {
    times(s, 0, width, x, rows, width);
    rotation_apply_f32(R1, x, rows, width, true);
}

/* x S^-1 R2 back to x, head by head. */
static err turn_back_heads(const llama_config *cfg, rotation_set *set, int64_t layer, float *x,
                           int64_t rows, int64_t width) {
    const scale_vector *s = scale_set_get(rotation_set_scales(set), SCALE_VO, layer);
    err e = rotation_set_prepare_r2(set, layer);
    for (int64_t h = 0; h < cfg->heads && !e.code; h++) {
        const int64_t kv = h / (cfg->heads / cfg->kv_heads), d = cfg->head_dim;
        rotation_apply_f32(rotation_set_r2(set, layer, kv), x + h * d, rows, width, true);
        times(s, kv * d, d, x + h * d, rows, width);
    }
    return e;
}

static err turn_back(const llama_config *cfg, rotation_set *set, int64_t layer, llama_step step,
                     float *x, int64_t rows, int64_t width) {
    if (!set) return err_none();
    const scale_set *scales = rotation_set_scales(set);
    switch (step) {
    case STEP_O:
        return turn_back_heads(cfg, set, layer, x, rows, width);
    case STEP_DOWN:
        rotation_apply_f32(rotation_set_r4(set), x, rows, width, true);
        times(scale_set_get(scales, SCALE_UD, layer), 0, width, x, rows, width);
        return err_none();
    default:
        turn_back_stream(rotation_set_r1(set),
                         scale_set_get(scales, step == STEP_QKV ? SCALE_ATTN : SCALE_MLP, layer), x,
                         rows, width);
        return err_none();
    }
}

/* Rotations leave volumes alone; each channel that is divided by a scale shrinks them by it. */
static double log_scales(const llama_config *cfg, rotation_set *set, int64_t layer,
                         llama_step step) {
    static const scale_kind kinds[STEP_COUNT] = {SCALE_ATTN, SCALE_VO, SCALE_MLP, SCALE_UD};
    const scale_vector *s =
        set ? scale_set_get(rotation_set_scales(set), kinds[step], layer) : NULL;
    const int64_t times_each = step == STEP_O ? cfg->heads / cfg->kv_heads : 1;
    double sum = 0;
    for (int64_t j = 0; s && j < s->n; j++) sum -= (double)times_each * log(s->s[j]);
    return sum;
}

/* The first tokens of the sample. */
static void draw(const float *x, int64_t width, double rms, const site_map *m, uint8_t *to) {
    for (int i = 0; i < m->rows; i++)
        for (int j = 0; j < m->cols; j++) {
            double most = 0;
            for (int64_t k = j * width / m->cols; k < (j + 1) * width / m->cols; k++)
                most = fmax(most, fabs((double)x[i * width + k]));
            const double level = most > 0 ? SITE_MAP_ONE + rint(16 * log2(most / rms)) : 0;
            to[i * m->cols + j] = (uint8_t)fmin(fmax(level, 0), 255);
        }
}

err gptq_sites_take(gptq_windows *w, int stream, const llama_config *cfg, rotation_set *set,
                    int64_t layer, llama_step step, gptq_site *out) {
    const int64_t width = llama_step_width(cfg, step), rows = sample_rows(cfg, layer, width);
    void *x = NULL;
    int64_t n;
    *out = (gptq_site){.before = {.width = width}, .after = {.width = width}, .log_det = NAN};
    if (!gptq_windows_own(w)) return err_none();
    if (mem_alloc(rows * width, sizeof(float), "sample of a site", &x).code) return err_none();
    err e = gather(w, stream, rows, width, x, &n);
    if (!e.code) site_stats_add(&out->after, x, n);
    if (!e.code && layer == cfg->layers / 2)
        out->map = (site_map){.rows = (int)size_min(n, SITE_MAP_ROWS),
                              .cols = (int)size_min(width, SITE_MAP_COLS)};
    if (!e.code) draw(x, width, site_rms(&out->after), &out->map, out->map.after);
    if (!e.code) e = turn_back(cfg, set, layer, step, x, n, width);
    if (!e.code) site_stats_add(&out->before, x, n);
    if (!e.code) draw(x, width, site_rms(&out->before), &out->map, out->map.before);
    out->there = !e.code;
    out->log_scales = log_scales(cfg, set, layer, step);
    if (!e.code && with_covariance(cfg, layer, width) &&
        site_log_det(x, n, width, &out->log_det).code)
        out->log_det = NAN; /* no memory: a number less in a report */
    mem_free(x);
    return e;
}
