/* site_stats - what the inputs of quantized linears look like, for people: how far they reach above
 * their root mean square, how heavy their tails are, and how much of the box that a quantizer would
 * lay around them they use. Nothing of an archive depends on it. Not the objective that rotations
 * are learned by (pipeline/learn/range_step.h). Taken where inputs pass anyway, before and after
 * rotations (pipeline/site_look.h). */
#ifndef SPINSHARD_MODEL_SITE_STATS_H
#define SPINSHARD_MODEL_SITE_STATS_H

#include "base/err.h"

#include <stdint.h>

/* A row is an outlier token where its largest entry is above so many times its own rms; of a row of
 * n equal normal numbers the largest is near sqrt(2 ln n), 4 of 4096. */
enum { SITE_OUTLIER = 10 };

/* Bins of |x|: by the exponent of the float and one bit of its mantissa, so half of an octave each.
 * Bin b begins at site_bin_from(b). */
enum { SITE_BINS = 512 };
double site_bin_from(int bin); /* local */

typedef struct site_stats {
    int64_t rows, width;
    double sum[5];   /* of x^0 .. x^4 over all entries */
    double most;     /* largest |x| */
    double peaks;    /* sum over rows of their largest |x| over their rms */
    int64_t outlier; /* rows */
    int64_t bins[SITE_BINS];
} site_stats;

/* Local, threaded. Add rows x [rows, width] to *s, which begins as {.width = width}. */
void site_stats_add(site_stats *s, const float *x, int64_t rows);

/* One row, for whoever has rows one by one, from several threads; adding them in their order gives
 * all of *s but its bins. Local. */
typedef struct site_row {
    double sum[5], most; /* as in site_stats */
} site_row;
site_row site_row_of(const float *x, int64_t width);
void site_stats_add_row(site_stats *s, const site_row *row);

double site_rms(const site_stats *s); /* local */
double
site_kurtosis(const site_stats *s); /* local; E (x - mean)^4 / variance^2: 3 of normal ones */

/* Local, threaded. log det of the covariance (over rows - 1) of x [rows, width]; NAN where it has
 * none: too few rows, or one channel is made of others; and where products would take more
 * memory than is allowed
 * (base/blas.h), since a report is no reason to end a run. Fails with ERR_NOFIT. */
err site_log_det(const float *x, int64_t rows, int64_t width, double *out);
uint64_t site_log_det_bytes(int64_t width); /* local; of its buffers */

/* Local. log QSUR / d of d channels: QSUR is the volume of the ellipsoid that holds 99 % of a
 * normal distribution of that covariance, over that of the cube of edge 2 `most` (OSTQuant,
 * section 3.1): V = pi^(d/2) / Gamma(d/2 + 1) q^(d/2) det^(1/2),  q the 99 % point of chi^2 of d
 * degrees. */
double site_log_qsur(int64_t d, double log_det, double most);

/* Local. The point that a chi^2 variable of d degrees does not exceed with that probability. */
double site_chi2_point(int64_t d, double probability);

#endif
