/* backward - one block of LLaMA forward, saving what its backward needs, and backward: the
 * gradient of x and of the rotations R1 and R2. Weights are frozen: no gradient of a weight is ever
 * formed. Not a loss (model/objective.h), not a schedule: the pipeline decides which layer, window
 * and slice comes when. Stands at "block forward with quantization sites -> loss -> gradient of R
 * at each site".
 *
 * A window of `window` tokens goes through a block whole or in slices of consecutive tokens:
 * forward from the first slice to the last, backward from the last to the first. The saved
 * activations of a block and window carries keys, values and their gradients from slice to slice.
 * Bits depend on the cut into slices (sums of gradients are taken slice by slice), and on nothing
 * else: not on threads, not on whether they were saved or made again by a second forward from the
 * same x.
 *
 * Site x -> x^ = x + e R^T with e = Q(xR) - xR, DESIGN.md 2.2. With g = dL/dx^:
 *     detached   dL/dx = g            dL/dR += g^T e   (without S R, S symmetric, which is not
 *                                                       seen on the orthogonal group)
 *     through    dL/dx = g + du R^T   dL/dR += g^T e + x^T du
 * du has two non-zeros per range: b c at the greatest and -a c at the least, (a, b) the clips of
 * the two ends, c = <g, x^ - x> / ((2^b - 1) scale); an end held at 0 has none; symmetric: sign(u)
 * c times the end's clip at the argmax of |u| clipped, over 2^(b-1) - 1. Scales before or after R
 * change both as site_backward_real.c derives; their own gradient, always through the range, is in
 * model/site_scale.h. R3 and R4 are fixed and have no gradient of their own. */
#ifndef SPINSHARD_MODEL_BACKWARD_H
#define SPINSHARD_MODEL_BACKWARD_H

#include "model/forward.h"

/* What passes are to be made; a plain value, the same for llama_saved and llama_work. "Real" below
 * is float for COMPUTE_BF16 and COMPUTE_F32, double for COMPUTE_F64. */
typedef struct llama_pass_shape {
    compute_type compute;
    int64_t window;  /* tokens of a window at most */
    int64_t slice;   /* tokens of one call at most; window where it is not cut */
    bool through;    /* gradient through the range of the quantizer */
    bool r1, r2;     /* gradients of these are wanted */
    uint32_t scales; /* bit 1 << scale_kind: and of these, where their sites quantize */
    bool head;       /* the final norm and the head are here: room for losses (work only) */
    int64_t top_k;   /* of kl-top; 0: cross entropy only (work only) */
} llama_pass_shape;

/* What the forward of one block saves of one window for its backward. */
typedef struct llama_saved llama_saved;

/* Local. For one block of cfg under these sites (NULL: none; bits and clips may change later, what
 * acts may not). Caller owns *out. Fails with ERR_NOFIT. */
err llama_saved_create(const llama_config *cfg, const llama_sites *sites,
                       const llama_pass_shape *shape, llama_saved **out);
void llama_saved_destroy(llama_saved **s); /* local; NULL is fine; sets NULL */
uint64_t llama_saved_bytes(const llama_config *cfg, const llama_sites *sites,
                           const llama_pass_shape *shape); /* local; what create takes */

/* Buffers of the passes, for any block of cfg, one call at a time. */
typedef struct llama_work llama_work;

/* Local. gemm_threads() is taken at creation. Caller owns *out. Fails with ERR_NOFIT. */
err llama_work_create(const llama_config *cfg, const llama_sites *sites,
                      const llama_pass_shape *shape, llama_work **out);
void llama_work_destroy(llama_work **w); /* local; NULL is fine; sets NULL */
/* Local. What create takes and llama_work_put_r1 keeps. */
uint64_t llama_work_bytes(const llama_config *cfg, const llama_sites *sites,
                          const llama_pass_shape *shape, int threads);

/* Local. The form of R1 that products of work's type take is made from sites->R1: once after each
 * change of R1, before the first forward. Not needed where R1 is not used. Fails with ERR_NOFIT. */
err llama_work_put_r1(llama_work *w, const rotation *R1);

/* Local, threaded. Layer number `layer` of the model (one of the stage), x [n_tokens, hidden] real
 * = tokens t0 .. t0 + n_tokens of the window, in place. In COMPUTE_F32 and COMPUTE_F64 the same
 * bits as llama_layers_forward where the window is one slice; in COMPUTE_BF16 a dense R1 turns in
 * bf16. ERR_BUG: no room, a slice out of turn, r4_fused sites. */
err llama_block_forward_save(const llama_stage *stage, int64_t layer, const llama_sites *sites,
                             int64_t t0, int64_t n_tokens, void *x, llama_saved *saved,
                             llama_work *work);

/* Where gradients of rotations and scales are added to, real, row-major; NULL: not wanted. */
typedef struct rotation_grads {
    void *R1; /* [hidden, hidden] */
    void *R2; /* of this layer: [head_dim, head_dim], or [kv_heads, head_dim, head_dim] with
                 r2_per_head */
    void *scales[SCALE_KINDS]; /* of this layer: dL / d log s of each channel, as scale_vector; only
                                  kinds of the pass's shape that the sites have */
} rotation_grads;

/* Places of a block where rows can be looked at during backward. */
typedef enum hook_place {
    HOOK_ATTN_IN, /* rms(x), before the gain [hidden] */
    HOOK_MLP_IN,  /* the same before gate and up [hidden] */
    HOOK_KEY,     /* keys after RoPE [kv_heads * head_dim] */
    HOOK_VALUE,   /* values [kv_heads * head_dim] */
    HOOK_O_IN,    /* o_proj input [heads * head_dim] */
    HOOK_DOWN_IN, /* down_proj input [intermediate] */
    /* outputs of products, for the weight side: x is NULL */
    HOOK_QUERY_OUT, /* q_proj output, before RoPE [heads * head_dim] */
    HOOK_KEY_OUT,   /* k_proj output, before RoPE [kv_heads * head_dim] */
    HOOK_VALUE_OUT, /* v_proj output, before its site [kv_heads * head_dim] */
    HOOK_O_OUT,     /* residual stream after attention [hidden] */
    HOOK_GATE_OUT,  /* [intermediate] */
    HOOK_UP_OUT,    /* [intermediate] */
    HOOK_DOWN_OUT,  /* residual stream after the block [hidden] */
    HOOK_PLACES
} hook_place;

/* Called on the calling thread, in the order down to attention, with the rows of the slice: x
 * [n_tokens, width] the input of the site (rounded to bf16 in COMPUTE_BF16), g = dL/dx^ of the
 * same shape; borrowed until it returns. An error ends the backward. */
typedef struct llama_hook {
    uint32_t places; /* bit 1 << place: wanted */
    err (*take)(void *ctx, int64_t layer, hook_place place, int64_t t0, int64_t n_tokens,
                int64_t width, const float *x, const float *g);
    void *ctx;
} llama_hook;

/* Local, threaded. dx [n_tokens, hidden] real: in dL/d output of the slice, out dL/d input. The
 * forward of all slices of the window is done, the backward of all later slices too. sites as in
 * the forward. Adds to grads (NULL: none wanted). hook may be NULL. */
err llama_block_backward(const llama_stage *stage, int64_t layer, const llama_sites *sites,
                         int64_t t0, int64_t n_tokens, void *dx, llama_saved *saved,
                         const rotation_grads *grads, const llama_hook *hook, llama_work *work);

#endif
