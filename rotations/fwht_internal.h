/* fwht_internal - the plan of fwht.h and what makes its cores, shared by fwht.c and fwht_real.c.
 * Nobody else includes it. */
#ifndef SPINSHARD_ROTATIONS_FWHT_INTERNAL_H
#define SPINSHARD_ROTATIONS_FWHT_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>

/* H = Sylvester(n / c) x core(c); the core here is Paley's with a few Sylvester factors multiplied
 * in. */
struct fwht {
    int64_t n, c;
    float *core_f32[2]; /* the core and its transpose, in panels */
    double *core_f64[2];
};

/* Local. Numbers that a core [c, c] in panels takes. */
int64_t fwht_core_f32(int64_t c);
int64_t fwht_core_f64(int64_t c);

/* Local. The core [c, c] of 1 and -1, or its transpose, in panels: out [fwht_core(c)]. */
void fwht_fill_core_f32(const int8_t *core, int64_t c, bool transpose, float *out);
void fwht_fill_core_f64(const int8_t *core, int64_t c, bool transpose, double *out);

#endif
