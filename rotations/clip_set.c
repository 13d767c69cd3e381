/* One array, by layer and then by place. */
#include "rotations/clip_set.h"

#include "base/mem.h"

#include <inttypes.h>

struct clip_set {
    int64_t layers;
    double *ends; /* [layers, CLIP_PLACES, 2] */
};

err clip_set_create(int64_t layers, clip_set **out) {
    *out = NULL;
    clip_set *s;
    err e = MEM_NEW(&s, 1, "clips");
    if (e.code) return e;
    *s = (clip_set){.layers = layers};
    e = MEM_NEW(&s->ends, layers * CLIP_PLACES * 2, "clips");
    if (e.code) {
        clip_set_destroy(&s);
        return e;
    }
    for (int64_t i = 0; i < layers * CLIP_PLACES * 2; i++) s->ends[i] = 1;
    *out = s;
    return e;
}

void clip_set_destroy(clip_set **s) {
    if (!*s) return;
    mem_free((*s)->ends);
    mem_free(*s);
    *s = NULL;
}

err clip_set_put(clip_set *s, clip_place place, int64_t layer, const double ends[2]) {
    for (int i = 0; i < 2; i++)
        if (!(ends[i] >= CLIP_LEAST && ends[i] <= CLIP_MOST))
            return err_make(ERR_INPUT, "clips", NULL,
                            "layer %" PRId64 ", %s: %g is not in %g .. %g", layer,
                            clip_place_name(place), ends[i], CLIP_LEAST, CLIP_MOST);
    double *to = s->ends + (layer * CLIP_PLACES + (int)place) * 2;
    to[0] = ends[0];
    to[1] = ends[1];
    return err_none();
}

const double *clip_set_get(const clip_set *s, clip_place place, int64_t layer) {
    return s ? s->ends + (layer * CLIP_PLACES + (int)place) * 2 : NULL;
}

const char *clip_place_name(clip_place place) {
    static const char *const names[CLIP_PLACES] = {"attn", "mlp", "o", "down", "k", "v"};
    return names[place];
}
