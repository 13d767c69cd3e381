/* weight_scale - the gradient of scales through the rounding of weights: what a linear whose
 * rounded form stands in the loop (model/weight_site.h) adds to dL / d log s. Not of activations
 * (model/site_scale.h). Always through the range, as there.
 *
 * U = A^T diag(o) W diag(i) B diag(a) is rounded to Q = U + E, and W^ = diag(1/o) A Q diag(1/a) B^T
 * diag(1/i) is used. With G = dL/dW^, H = dL/dQ = A^T diag(1/o) G diag(1/i) B diag(1/a). Straight
 * through, dQ = dU + E dstep / step, where a step goes as the greatest |U| of its group (or as its
 * width): so dL/dU = H + P, P with c / U at the greatest, c = <H, E> over the group, and nothing
 * elsewhere. A scale of W's columns or rows enters U as its entries and W^ as one over them:
 *     dL / d log a_j = sum_r (H + P)_rj U_rj - H_rj Q_rj = sum_r P_rj U_rj - H_rj E_rj
 * the same for i with all four matrices rotated back by B^T, and over columns for o, rotated back
 * by A. Where A is none, a row's steps go with its scale and the sum is 0. */
#ifndef SPINSHARD_MODEL_WEIGHT_SCALE_H
#define SPINSHARD_MODEL_WEIGHT_SCALE_H

#include "model/forward.h"
#include "quant/rtn.h"

/* H, E, U and P of a linear, [rows, cols] fp32, all in the same basis. */
typedef struct weight_terms {
    float *H, *E, *U, *P;
    int64_t rows, cols;
} weight_terms;

/* Local, threaded. P from the other three, in the basis in which weights are rounded. */
void weight_terms_range(const wquant *how, const weight_terms *t);

/* Local, threaded. to[column] += the sum over rows of P U - H E. */
void weight_terms_columns(const weight_terms *t, double *to);

/* Local. to[i] += sign times the sum over columns of P U - H E, all four rotated back by A [d, d]:
 * for row i of the `d` rows from `first` on. */
void weight_terms_rotated_rows(const weight_terms *t, int64_t first, int64_t d, const float *A,
                               double sign, double *to);

/* What stands on a linear: which scales, on which side, times or over them. */
typedef struct weight_scales {
    scale_kind out, in, after; /* SCALE_KINDS: none; after R1, the others before the rotations */
    scale_way out_way;         /* of out; all others are times */
    int64_t share;             /* heads of a KV head */
} weight_scales;

/* Local. Of a linear, an index into llama_linears. */
weight_scales weight_scales_of(const llama_config *c, int linear);
/* Local. The scales of a layer; NULL: ones, also of SCALE_KINDS. Entries of them that stand
 * together: a head, or all. */
const scale_vector *weight_scale_at(const llama_sites *s, scale_kind kind, int64_t layer);
int64_t weight_scale_part(const llama_config *c, scale_kind kind);

/* Local, threaded. The rows, or the columns, of m [rows, cols] times v or over v; NULL: ones. v
 * goes by parts of d: row or column h d + j takes v[h / share d + j]. */
void weight_scale_rows(const scale_vector *v, int64_t d, int64_t share, scale_way way, float *m,
                       int64_t rows, int64_t cols);
void weight_scale_columns(const scale_vector *v, int64_t d, int64_t share, scale_way way, float *m,
                          int64_t rows, int64_t cols);

#endif
