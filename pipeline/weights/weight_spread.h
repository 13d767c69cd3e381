/* weight_spread - how the entries of a linear are spread, and how well they would round: as the
 * checkpoint has it and as it is quantized, with gains, scales and rotations folded in. For people;
 * nothing of an archive depends on it. Not the inputs of linears (pipeline/site_look.h). Taken by
 * fused_tensor, where both sides pass anyway. */
#ifndef SPINSHARD_PIPELINE_WEIGHTS_WEIGHT_SPREAD_H
#define SPINSHARD_PIPELINE_WEIGHTS_WEIGHT_SPREAD_H

#include "model/site_stats.h"
#include "quant/rtn.h"

#include <stdbool.h>

/* NAN where a number does not exist: the first two of a constant matrix.
 *
 * A whole row has no ellipsoid, since most linears have no more rows than columns, so log_qsur is
 * log QSUR / d (model/site_stats.h) of pieces of d consecutive inputs: d is the largest power of
 * two up to SPREAD_PIECE that divides a row, the cube is that of the largest entry of the matrix.
 * nearest_error is |Q(w) - w| / |w| with full ranges, whatever searches the archive's scales or
 * moves its codes: so both sides are rounded by one rule and tell what the rotations did. These two
 * are of a sample of the rows, which keeps their cost below that of rounding once. */
typedef struct spread {
    double kurtosis, max_over_rms; /* of all entries; kurtosis is 3 of normal ones */
    double log_qsur, nearest_error;
} spread;
enum { SPREAD_PIECE = 16 };

/* Local. How many rows of a matrix are sampled: one in sixteen, but 16 to 128; and whether `row` is
 * one of them, which is then *at. */
int64_t spread_rows(int64_t rows);
bool spread_samples(int64_t rows, int64_t row, int64_t *at);

/* Local, threaded. From all rows of a matrix [rows] of cols entries each, and its sampled rows
 * [spread_rows(rows), cols] in fp32. how: as the linear is rounded; NULL or 16 bits: it is not.
 * Fails with ERR_NOFIT, ERR_USAGE (a group that does not divide cols). */
err spread_of(const site_row *all, int64_t rows, int64_t cols, const float *sample,
              const wquant *how, spread *out);

/* Local. Bytes of the sample and of what spread_of allocates, at most. */
uint64_t spread_bytes(int64_t rows, int64_t cols);

#endif
