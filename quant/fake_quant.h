/* fake_quant - activations to a grid of b bits and back: the value that a b-bit number would give.
 * Scales are dynamic, one per row (token, head of a token, or group of its entries). Not for
 * weights (quant/rtn.h), but the rounding rule is the same one, quant_code in quant/grid.h. Used by
 * every quantization site.
 */
#ifndef SPINSHARD_QUANT_FAKE_QUANT_H
#define SPINSHARD_QUANT_FAKE_QUANT_H

#include <stdbool.h>
#include <stdint.h>

/* How a row becomes numbers of few bits. */
typedef enum aquant_rule {
    AQUANT_GRID,       /* the grid of quant/grid.h */
    AQUANT_CACHE_INT4, /* the 4-bit cache of vLLM, fake_quant_real.c; `symmetric` and `clip` do not
                          count, and include_zero is false for it */
    AQUANT_FP8,        /* E4M3 (OCP FP8: 4 bits of exponent, bias 7, 3 of significand; 448 is the
                          largest) of x / cache_scale, ties to even, what is larger held at 448;
                          `bits` is 8, `symmetric` and `clip` do not count */
} aquant_rule;

typedef struct aquant {
    aquant_rule rule;
    int bits;       /* 2..8; 16 and more: off */
    bool symmetric; /* codes -2^(b-1) .. 2^(b-1) - 1, no zero point */
    float clip[2];  /* shrinks the low and the high end of the range; 1 is no clipping. A range that
                       holds 0, and a symmetric one, is shrunk about 0, another about its middle:
                       with an offset [1, 2] times 0.9 would be shifted, not shrunk. */
    bool compressed_tensors_scale; /* symmetric scale max/7.5 (4 bits), max/127.5 (8), not max/7 */
    float cache_scale;             /* AQUANT_FP8: fixed, not taken from the row */
    int64_t group; /* entries that share a range; 0: all of the row, or of the head, that the site
                      gives. For those who cut rows: fake_quant_rows takes its rows whole. */
} aquant;

static inline bool aquant_on(const aquant *q) {
    return q->bits < 16;
}

/* Local. out[i, :] = fake quantized x[i, :] for `rows` rows of n, both with row stride `stride`;
 * out may be x. include_zero: the range of an asymmetric row always holds 0. Not threaded: callers
 * deal out rows. A row's result depends on the row alone. docs/CONVENTIONS.md,
 * "Quantizer". */
void fake_quant_rows(const aquant *q, bool include_zero, const float *x, int64_t rows, int64_t n,
                     int64_t stride, float *out);

/* Local. As fake_quant_rows, with range, scale and quotient in double and the same tie rule. For
 * tests. */
void fake_quant_rows_f64(const aquant *q, bool include_zero, const double *x, int64_t rows,
                         int64_t n, int64_t stride, double *out);

#endif
