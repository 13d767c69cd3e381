/* adam - Adam's step on the entries of a vector, each by itself (Kingma and Ba, 1412.6980): for the
 * logarithms of scales. Not for rotations, which have one second moment a matrix
 * (rotations/optimizer.h). */
#ifndef SPINSHARD_PIPELINE_LEARN_ADAM_H
#define SPINSHARD_PIPELINE_LEARN_ADAM_H

#include <math.h>
#include <stdint.h>

#define ADAM_KEEP_FIRST  0.9
#define ADAM_KEEP_SECOND 0.999

/* Local. Step number `step`, from 1 on, of x [n] down g; m and v are its moments, zeros before the
 * first. A gradient that is always 0 moves nothing. */
static inline void adam_step(double rate, int64_t step, int64_t n, const double *g, double *m,
                             double *v, double *x) {
    const double least = 1e-8;
    double power1 = 1, power2 = 1;
    for (int64_t i = 0; i < step; i++) {
        power1 *= ADAM_KEEP_FIRST;
        power2 *= ADAM_KEEP_SECOND;
    }
    for (int64_t j = 0; j < n; j++) {
        m[j] = ADAM_KEEP_FIRST * m[j] + (1 - ADAM_KEEP_FIRST) * g[j];
        v[j] = ADAM_KEEP_SECOND * v[j] + (1 - ADAM_KEEP_SECOND) * g[j] * g[j];
        x[j] -= rate * (m[j] / (1 - power1)) / (sqrt(v[j] / (1 - power2)) + least);
    }
}

#endif
