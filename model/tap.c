/* Rows of the backward as floats for whoever listens. */
#include "model/backward_internal.h"

bool tap_wants(const llama_tap *tap, tap_place place) {
    return tap && (tap->places >> place & 1u);
}

err tap_tell(const llama_tap *tap, int64_t layer, tap_place place, int64_t t0, int64_t n_tokens,
             int64_t width, const void *x, const void *g, llama_work *w) {
    const int64_t count = n_tokens * width;
    const float *g32 = g, *x32 = NULL;
    if (w->shape.compute == COMPUTE_F64) {
        for (int64_t j = 0; j < count; j++) w->tap_g[j] = (float)((const double *)g)[j];
        for (int64_t j = 0; x && j < count; j++) w->tap_x[j] = (float)((const double *)x)[j];
        g32 = w->tap_g;
    } else if (x) {
        site_widen_f32(x, count, w->shape.compute, w->tap_x);
    }
    if (x) x32 = w->tap_x;
    return tap->take(tap->ctx, layer, place, t0, n_tokens, width, x32, g32);
}
