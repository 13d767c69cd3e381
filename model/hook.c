/* Rows of the backward as floats for whoever listens. */
#include "model/backward_internal.h"

bool hook_wants(const llama_hook *hook, hook_place place) {
    return hook && (hook->places >> place & 1u);
}

err hook_tell(const llama_hook *hook, int64_t layer, hook_place place, int64_t t0, int64_t n_tokens,
              int64_t width, const void *x, const void *g, llama_work *w) {
    const int64_t count = n_tokens * width;
    const float *g32 = g, *x32 = NULL;
    if (w->shape.compute == COMPUTE_F64) {
        for (int64_t j = 0; j < count; j++) w->hook_g[j] = (float)((const double *)g)[j];
        for (int64_t j = 0; x && j < count; j++) w->hook_x[j] = (float)((const double *)x)[j];
        g32 = w->hook_g;
    } else if (x) {
        site_widen_f32(x, count, w->shape.compute, w->hook_x);
    }
    if (x) x32 = w->hook_x;
    return hook->take(hook->ctx, layer, place, t0, n_tokens, width, x32, g32);
}
