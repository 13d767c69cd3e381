/* Rows are taken evenly from all windows. */
#include "pipeline/gptq/gptq_sites.h"

#include "base/mem.h"
#include "base/size.h"

/* Tokens of a sample, and of how many layers, spread over the depth, a covariance is made: it takes
 * 2 width^3 operations, and all of this is to cost a run no more than a hundredth. */
enum { TOKENS = 512, NARROW = 256, MIDDLE = 1024, WIDE = 4096, SOME = 6, FEW = 2 };

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

err gptq_sites_take(gptq_windows *w, int stream, const llama_config *cfg, rotation_set *set,
                    int64_t layer, llama_step step, site_look *out) {
    const int64_t width = llama_step_width(cfg, step), rows = sample_rows(cfg, layer, width);
    float *x = NULL;
    int64_t n;
    *out = (site_look){.there = false};
    if (!gptq_windows_own(w)) return err_none();
    if (MEM_NEW(&x, rows * width, "sample of a site").code) return err_none();
    err e = gather(w, stream, rows, width, x, &n);
    if (!e.code)
        e = site_look_take(cfg, set, layer, step, SITE_AFTER, with_covariance(cfg, layer, width), x,
                           n, out);
    mem_free(x);
    return e;
}
