/* weight_site_internal - weights in the loop as their two files share them: their life and W^
 * (weight_site.c), and the gradients through them (weight_site_backward.c). Nobody else includes
 * it.
 */
#ifndef SPINSHARD_MODEL_WEIGHT_SITE_INTERNAL_H
#define SPINSHARD_MODEL_WEIGHT_SITE_INTERNAL_H

#include "model/weight_scale.h"
#include "model/weight_site.h"

/* A layer as it is used: matrices owned, biases and gains borrowed. */
typedef struct weight_layer {
    wmat moved[LLAMA_LINEARS]; /* D, in the order of llama_linears */
} weight_layer;

struct weight_site {
    const llama_stage *from;
    llama_stage used; /* W^; embedding, head and vectors are those of `from` */
    weight_layer *d;  /* [n_layers] */
    wquant how;
    compute_type compute; /* of products with D */
    llama_pass_shape shape;
    const llama_sites *sites; /* of the pass at hand */
    float *ones;              /* [hidden] */
    /* of a refresh */
    float *plain, *rotated, *other; /* [largest matrix] */
    float *R1;                      /* [hidden, hidden] */
    double *row;                    /* [hidden] of a rotation */
    /* of a slice */
    float *g_out;          /* [slice, hidden] gradient of o's or down's outputs */
    float *g_v;            /* [slice, kv_heads head_dim] */
    float *g_in;           /* [slice, hidden] sum of g D of the readers so far */
    float *x, *y;          /* [slice, widest] */
    void *factors;         /* [slice, widest] */
    void *tiles;           /* of products */
    uint64_t thread_bytes; /* of tiles, a thread */
    void *panel, *rows;    /* of a site */
    float *M1, *M2;        /* [hidden, hidden], [kv_heads, head_dim, head_dim] (dL/dR) R^T */
    float *dense;          /* [head_dim, head_dim] an R2 */
    /* of scales; NULL where none are learned */
    scale_sizes sizes;
    float *g_saved; /* [slice, outputs]: gradients of the readers until their x comes */
    float *fourth;  /* [largest matrix] */
    double *dS;     /* [scale_sizes_at of shape.scales] */
    double *one;    /* [widest]: of a linear */
};

enum { Q, K, V, O, GATE, UP, DOWN };

/* Local. The widest input of a linear. */
int64_t weight_site_widest(const llama_config *c);

/* Local. R2 of a KV head; NULL: there is none. */
const rotation *weight_site_r2(const llama_sites *s, const llama_config *c, int64_t layer,
                               int64_t kv_head);

/* Local. R as fp32 [n, n]. */
void weight_site_dense(const weight_site *w, const rotation *R, int64_t n, float *out);

/* Local, threaded. Rows of linear k times B, or with GEMM_T times B^T. */
void weight_site_rotate_inputs(const llama_sites *s, const llama_config *c, int64_t layer, int k,
                               float *w, int64_t rows, gemm_op op);

/* Local, threaded. m [rows, cols] of linear k, in the checkpoint's basis, to the basis in which
 * weights are rounded: in m, or in spare; returns which. SCALE_OVER: as a gradient goes, with all
 * scales inverted. */
float *weight_site_to_rounded(const weight_site *w, const llama_sites *s, int64_t layer, int k,
                              scale_way way, float *m, float *spare, int64_t rows, int64_t cols);

/* Local. The gain of the norm that is in no linear; NULL: it is folded into what reads the norm. */
const float *weight_site_gain_left(const weight_site *w, int64_t layer, scale_kind norm);

/* Local. Linear k of the i-th layer of the stage as the checkpoint has it, times the gain that is
 * folded into it, in fp32. */
void weight_site_plain(const weight_site *w, const llama_sites *s, int64_t i, int k, float *out);

#endif
