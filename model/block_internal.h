/* block_internal - one block of a pass, as its parts (block_real.c, mlp_real.c), forward.c and
 * backward.c share it, and the buffers of a forward pass. Nobody else includes it. */
#ifndef SPINSHARD_MODEL_BLOCK_INTERNAL_H
#define SPINSHARD_MODEL_BLOCK_INTERNAL_H

#include "base/gemm.h"
#include "model/attention.h"
#include "model/backward.h"
#include "model/site_backward.h"

/* "Real" is float or double, "factor" what products take: bf16, float or double. T is max_tokens.
 * The wide_ buffers are the factor buffers themselves where both types are one. */
struct llama_scratch {
    llama_config cfg;
    compute_type compute;
    int64_t max_tokens;
    int threads;
    bool input_sites, down_site; /* what there is room for */
    void *block;                 /* owned: one allocation, the rest points into it */
    void *cos_t, *sin_t;         /* real [T, head_dim / 2] */
    void *input;      /* factor [T, max(hidden, heads head_dim)]: into q k v, o, gate up, head */
    void *wide_input; /* real, the same before its rounding */
    void *q, *k, *v;  /* real [T, heads head_dim], [T, kv_heads head_dim]; q then holds the
                         output of attention */
    void *q_heads, *k_heads, *v_heads; /* factor, by KV head, see attention.h */
    void *mid;                         /* factor [T, intermediate]: into down */
    void *wide_mid;                    /* real, the same before its rounding */
    double *nll_max, *nll_sum;         /* double [T, head chunks] */
    double *target, *nll;              /* [T] */
    const int32_t *positions;          /* borrowed; [T] of packed sequences; NULL: one window */
    site_scratch site;
    void *per_thread; /* thread_bytes for each thread */
    uint64_t thread_bytes;
};

/* Local. The part of the calling thread, after the tile scratch of wmat_tile. */
void *scratch_of_thread(const llama_scratch *s);
void *scratch_tile_of_thread(const llama_scratch *s);

enum { HEAD_CHUNK = 2048 }; /* vocabulary rows whose softmax sums are taken together */

/* One layer over consecutive tokens of a window, and the buffers for it: those of a forward pass
 * (llama_scratch), or of a pass that learns (llama_work). All is borrowed. */
typedef struct block_pass {
    const llama_config *cfg;
    const llama_layer *weights;
    int64_t layer; /* its number in the model */
    const llama_sites *sites;
    compute_type compute;
    int64_t t0, n_tokens;     /* tokens t0 .. t0 + n_tokens of the window, T below */
    int64_t room;             /* tokens from one head's factors to the next's */
    const int32_t *positions; /* [T] of packed sequences, with t0 = 0; NULL: those of the window */
    void *cos_t, *sin_t;      /* real [position, head_dim / 2] */
    void *input;              /* factor [T, max(hidden, heads head_dim)]: into q k v, o, gate up */
    void *wide_input;         /* real, the same before its rounding */
    void *q, *k, *v;          /* real [T, heads head_dim], [T, kv_heads head_dim] */
    void *attended;           /* real [T, heads head_dim]: output of attention; may be q */
    void *q_heads, *k_heads, *v_heads; /* factor, by KV head, see attention.h */
    void *mid;                         /* factor [T, intermediate]: into down */
    void *wide_mid;                    /* real, the same before its rounding; may be mid */
    void *per_thread;                  /* thread_bytes for each thread */
    uint64_t thread_bytes;
    site_scratch site;        /* without work */
    llama_work *work;         /* of a pass that learns; else NULL */
    const llama_saved *saved; /* what of it is not NULL is filled for the backward */
} block_pass;

/* Local. A part for products, and behind it one for reals, of the calling thread. */
static inline void *block_thread_tile(const block_pass *p) {
    return (char *)p->per_thread + p->thread_bytes * (uint64_t)gemm_thread();
}
static inline void *block_thread_reals(const block_pass *p) {
    return (char *)block_thread_tile(p) + wmat_tile_scratch_bytes(p->compute);
}

/* Local, threaded. x [T, hidden] through the layer, in place. */
void block_forward_f32(const block_pass *p, float *x);
void block_forward_f64(const block_pass *p, double *x);

/* Local, threaded. The input of the linears of a step as factors [T, width], from x as it is before
 * the step: borrowed, until the buffers are used again. */
const void *block_step_input_f32(const block_pass *p, llama_step step, const float *x);
const void *block_step_input_f64(const block_pass *p, llama_step step, const double *x);

/* Local, threaded. x += o_proj (STEP_O) or down_proj (STEP_DOWN) of such an input. */
void block_step_add_f32(const block_pass *p, llama_step step, const void *factors, float *x);
void block_step_add_f64(const block_pass *p, llama_step step, const void *factors, double *x);

/* Local, threaded. The down_proj input of p->input (gate, up, SiLU, site), as factors. */
const void *mlp_mid_f32(const block_pass *p);
const void *mlp_mid_f64(const block_pass *p);

/* Local, threaded. Rows x [T, at->n] through a site; what `saved` has room for is saved. factors: x
 * as factors, where the caller has them, or NULL. */
void block_site_f32(const block_pass *p, const site *at, float *x, const void *factors,
                    const site_saved *saved);
void block_site_f64(const block_pass *p, const site *at, double *x, const void *factors,
                    const site_saved *saved);

/* Local, threaded. As llama_head_nll and llama_head_logits. */
void loss_nll_f32(const wmat *head, const float *final_norm, int64_t n_tokens, const float *x,
                  const int32_t *ids, llama_scratch *s, double *nll);
void loss_nll_f64(const wmat *head, const float *final_norm, int64_t n_tokens, const double *x,
                  const int32_t *ids, llama_scratch *s, double *nll);
void loss_logits_f32(const wmat *head, const float *final_norm, int64_t n_rows, const float *x,
                     llama_scratch *s, double *logits);
void loss_logits_f64(const wmat *head, const float *final_norm, int64_t n_rows, const double *x,
                     llama_scratch *s, double *logits);

#endif
