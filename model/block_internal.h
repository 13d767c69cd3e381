/* block_internal - the buffers of a forward pass, shared by the parts of one block and by
 * forward.c. Nobody else includes it. */
#ifndef SPINSHARD_MODEL_BLOCK_INTERNAL_H
#define SPINSHARD_MODEL_BLOCK_INTERNAL_H

#include "model/attention.h"
#include "model/forward.h"
#include "model/site.h"

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

/* Local, threaded. One layer, x [n_tokens, hidden] in place; `layer` is its number in the model. */
void block_forward_f32(const llama_layer *l, int64_t layer, const llama_sites *sites,
                       int64_t n_tokens, float *x, llama_scratch *s);
void block_forward_f64(const llama_layer *l, int64_t layer, const llama_sites *sites,
                       int64_t n_tokens, double *x, llama_scratch *s);

/* Local, threaded. The input of the linears of a step as factors [n_tokens, width], from x as it is
 * before the step: borrowed, until the scratch is used again. */
const void *block_step_input_f32(const llama_layer *l, int64_t layer, const llama_sites *sites,
                                 llama_step step, int64_t n_tokens, const float *x,
                                 llama_scratch *s);
const void *block_step_input_f64(const llama_layer *l, int64_t layer, const llama_sites *sites,
                                 llama_step step, int64_t n_tokens, const double *x,
                                 llama_scratch *s);

/* Local, threaded. x += o_proj (STEP_O) or down_proj (STEP_DOWN) of such an input. */
void block_step_add_f32(const llama_layer *l, llama_step step, int64_t n_tokens,
                        const void *factors, float *x, llama_scratch *s);
void block_step_add_f64(const llama_layer *l, llama_step step, int64_t n_tokens,
                        const void *factors, double *x, llama_scratch *s);

/* Local, threaded. The down_proj input of s->input (gate, up, SiLU, site), as factors. */
const void *mlp_mid_f32(const llama_layer *l, int64_t layer, const llama_sites *sites,
                        int64_t n_tokens, llama_scratch *s);
const void *mlp_mid_f64(const llama_layer *l, int64_t layer, const llama_sites *sites,
                        int64_t n_tokens, llama_scratch *s);

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
