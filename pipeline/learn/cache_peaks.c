/* Maxima do not depend on the order in which tokens come. */
#include "pipeline/learn/cache_peaks.h"

#include "base/mem.h"
#include "base/peak.h"

#include <math.h>

struct cache_peaks {
    int64_t first, each; /* each: of keys, and of values, in a layer */
    double *peaks;       /* [n, 2, each] */
};

int64_t cache_peaks_entries(const llama_config *cfg) {
    return 2 * cfg->kv_heads * cfg->head_dim;
}

uint64_t cache_peaks_bytes(const llama_config *cfg, int64_t n) {
    return (uint64_t)(n * cache_peaks_entries(cfg)) * sizeof(double);
}

err cache_peaks_create(const llama_config *cfg, int64_t first, int64_t n, cache_peaks **out) {
    *out = NULL;
    cache_peaks *p;
    err e = MEM_NEW(&p, 1, "largest keys and values");
    if (e.code) return e;
    *p = (cache_peaks){.first = first, .each = cfg->kv_heads * cfg->head_dim};
    e = MEM_NEW(&p->peaks, n * cache_peaks_entries(cfg), "largest keys and values");
    if (e.code) cache_peaks_destroy(&p);
    *out = p;
    return e;
}

void cache_peaks_destroy(cache_peaks **p) {
    if (!*p) return;
    mem_free((*p)->peaks);
    mem_free(*p);
    *p = NULL;
}

static err take(void *ctx, int64_t layer, hook_place place, int64_t t0, int64_t n_tokens,
                int64_t width, const float *x, const float *g) {
    const cache_peaks *p = ctx;
    double *peaks = p->peaks + (layer - p->first) * 2 * p->each + (place == HOOK_KEY ? 0 : p->each);
    (void)t0, (void)g;
    for (int64_t t = 0; t < n_tokens; t++)
        for (int64_t j = 0; j < width; j++) {
            const double size = fabs((double)x[t * width + j]);
            if (peak_above(size, peaks[j])) peaks[j] = size;
        }
    return err_none();
}

llama_hook cache_peaks_hook(cache_peaks *p) {
    return (llama_hook){.places = 1u << HOOK_KEY | 1u << HOOK_VALUE, .take = take, .ctx = p};
}

byte_piece cache_peaks_piece(const cache_peaks *p, int64_t layer) {
    return (byte_piece){p->peaks + (layer - p->first) * 2 * p->each,
                        (uint64_t)(2 * p->each) * sizeof *p->peaks};
}

const double *cache_peaks_get(const cache_peaks *p, int64_t layer) {
    return p->peaks + (layer - p->first) * 2 * p->each;
}

double cache_scale_of(const double *peaks, const double *S, int64_t heads, int64_t d,
                      bool rotated) {
    const double largest = 448; /* of E4M3 */
    double bound = 0;
    for (int64_t h = 0; h < heads; h++) {
        double sum = 0, most = 0;
        for (int64_t j = h * d; j < (h + 1) * d; j++) {
            const double a = peaks[j] / (S ? S[j] : 1);
            sum += a * a;
            if (peak_above(a, most)) most = a;
        }
        const double here = rotated ? sqrt(sum) : most;
        if (peak_above(here, bound)) bound = here;
    }
    return bound != 0 ? exp2(ceil(log2(bound / largest))) : 1;
}
