/* Every scale that the rounding could have chosen is computed again and compared with the stored
 * one; the header derives how far a code may then lie from its weight. */
#include "quant/rounding_bounds.h"

#include "quant/grid.h"
#include "quant/scale_search.h"

#include <math.h>
#include <stdlib.h>

/* Distance between neighbours of the stored type at s: relative, and the least absolute one. */
static float spacing_at(scale_type type, float s) {
    if (type == SCALE_BF16) return s * 0x1p-7f;
    if (type == SCALE_FP16) return fmaxf(s * 0x1p-10f, 0x1p-24f);
    return s * 0x1p-21f;
}

bool rounding_scale_fits(const wquant *how, const float *x, int64_t n, float scale, int zero) {
    const int candidates = how->search ? SCALE_SEARCH_CANDIDATES : 1;
    float lo, hi;
    scale_range(x, n, &lo, &hi);
    for (int k = 0; k < candidates; k++) {
        float s;
        int z;
        scale_of_range(how, lo, hi, (float)(1.0 - k / 100.0), &s, &z);
        if (fabsf(s - scale) <= spacing_at(how->scale_type, s) && abs(z - zero) <= 1) return true;
    }
    return false;
}

double rounding_most_steps(const wquant *how, const float *x, int64_t n, float scale) {
    float lo, hi;
    scale_range(x, n, &lo, &hi);
    const double levels = how->symmetric ? grid_middle(how->bits) - 1 : grid_top(how->bits);
    const double range = how->symmetric ? fmax((double)hi, -(double)lo) : (double)hi - (double)lo;
    const double steps = range / (double)scale; /* N s0 / s */
    const double rounded = how->search && !how->symmetric
                               ? 0.5 * (double)spacing_at(how->scale_type, scale) / (double)scale
                               : 0;
    return 0.5 + fmax(0, steps - levels) + levels * rounded + fmax(steps, levels) * 0x1p-21;
}
