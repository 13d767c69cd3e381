/* Which quantizers are the identity and which are plain (no rotation, no scale); applying them is
 * in site_real.c. */
#include "model/site.h"

bool site_is_identity(const site *s) {
    if (!s->R) return true;
    const int64_t segments = s->n / s->segment;
    for (int64_t i = 0; i < segments; i += s->share) {
        const rotation *r = s->R[i / s->share];
        if (r && rotation_get_kind(r) != ROTATION_IDENTITY) return false;
    }
    return true;
}

bool site_behind_gain(const site *s) {
    return !s->after && !(s->R && s->R[0]);
}

bool site_is_plain(const site *s) {
    return !s->before && !s->after && !s->then && site_is_identity(s);
}

bool site_acts(const site *s) {
    return aquant_on(&s->quant) || (s->rotated && !site_is_identity(s));
}
