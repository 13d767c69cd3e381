/* rtn - weights to codes and scales by rounding to nearest, and back. Holds the quantized matrix.
 * Not the bit strings of the archive (pack.h) and not the choice of the scale by search
 * (scale_search.h, called from here). On the way: fused weight -> INT4 codes + scales.
 *
 * A scale is rounded to its stored type before codes are taken, so the archive holds exactly what
 * was measured. A scale that would round to 0 becomes the smallest positive number of the type, one
 * that would overflow its largest finite number: the codes are then saturated or coarse, never
 * undefined. Asymmetric ranges include 0. A group of zeros gets scale 1. */
#ifndef SPINSHARD_QUANT_RTN_H
#define SPINSHARD_QUANT_RTN_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

typedef enum scale_type { SCALE_BF16, SCALE_FP16, SCALE_F32 } scale_type;

/* How to quantize weights; a value one fills in. */
typedef struct wquant {
    int bits;      /* 2..8 */
    int64_t group; /* inputs per scale; 0: one scale a row (channel) */
    bool symmetric;
    bool search; /* shrunk ranges by scale_search.h instead of the full range */
    scale_type scale_type;
} wquant;

/* A quantized matrix [rows, cols]; owns its arrays. Value of an element: (code - zero) * scale. */
typedef struct qmatrix {
    int64_t rows, cols;
    int64_t group;    /* inputs per scale; cols for channel */
    int64_t n_groups; /* cols / group */
    int bits;
    bool symmetric;
    scale_type scale_type;
    uint8_t *codes; /* [rows, cols] offset form 0..2^b - 1; symmetric: q + 2^(b-1) */
    float *scales;  /* [rows, n_groups], each exactly a number of scale_type */
    uint8_t *zeros; /* [rows, n_groups] 0..2^b - 1; NULL if symmetric */
} qmatrix;

/* Error of a quantized matrix against its source; sums are per row first, then over rows in order.
 */
typedef struct qerror {
    double sum_sq_error;  /* sum of (value - w)^2 */
    double sum_sq_weight; /* sum of w^2 */
    double max_error;     /* largest |value - w| */
} qerror;

/* Local. Bits, group and shape fit together? Fails with ERR_USAGE naming the sizes. */
err wquant_check(const wquant *how, int64_t rows, int64_t cols);

/* Local. The group that wquant.group means for inputs of length cols. */
int64_t wquant_group(const wquant *how, int64_t cols);

/* Local. Bytes of the arrays of a quantized matrix; 0 where the sizes overflow. */
uint64_t qmatrix_bytes(int64_t rows, int64_t cols, const wquant *how);

/* Local. An empty matrix of the right sizes; caller owns *out (qmatrix_destroy).
 * Fails with ERR_USAGE (a group that does not divide cols, bits) and ERR_NOFIT. */
err qmatrix_create(int64_t rows, int64_t cols, const wquant *how, qmatrix **out);
void qmatrix_destroy(qmatrix **q); /* local; NULL is fine; sets NULL */

/* Local. Quantize w [rows, cols], finite, into rows [row0, row0 + rows) of q. Rows are shared out
 * to OpenMP threads; the bits depend on the row alone. `how` must be the one q was created with. */
void rtn_quantize_rows(const wquant *how, const float *w, int64_t rows, int64_t cols, int64_t row0,
                       qmatrix *q);

/* Local. Codes, scales and zero points of rows [row, row + rows) of a matrix to rows from `to` on
 * of another that was made with the same wquant and has as many columns. */
void qmatrix_copy_rows(const qmatrix *q, int64_t row, int64_t rows, int64_t to, qmatrix *other);

/* Local. Values of rows [row0, row0 + rows) in fp32: (code - zero) * scale. out [rows, cols]. */
void qmatrix_dequantize_rows(const qmatrix *q, int64_t row0, int64_t rows, float *out);

/* Local. The error of one row against w [cols]; and of n of them [n] into *sum, in their order. */
qerror qmatrix_row_error(const qmatrix *q, const float *w, int64_t row);
void qerror_add(const qerror *rows, int64_t n, qerror *sum);

/* Local. s as the nearest number of the type (half to even), held to its positive finite numbers.
 */
float scale_round(float s, scale_type type);
float scale_most(scale_type type); /* local: the largest of them */

#endif
