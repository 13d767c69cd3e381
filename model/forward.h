/* forward - the LLaMA forward pass of a range of layers (a stage) on one process, with the sites
 * where activations and the KV cache are quantized.
 * Not a pipeline: no ranks, no files. eval sends x from one stage to the next (pipeline/).
 *
 * x is the residual stream [T, hidden]: float for COMPUTE_BF16 and COMPUTE_F32, double for
 * COMPUTE_F64 (llama_real_bytes). Norms, softmax, quantizers and sums are in that type; the factors
 * of products are rounded to bf16 in COMPUTE_BF16. Same bits for any number of threads, and for any
 * cut of the layers into stages. A window stands alone: position 0 is its first token. */
#ifndef SPINSHARD_MODEL_FORWARD_H
#define SPINSHARD_MODEL_FORWARD_H

#include "base/err.h"
#include "model/config.h"
#include "model/input_bits.h"
#include "model/tensors.h"
#include "model/wmat.h"
#include "quant/fake_quant.h"
#include "rotations/clip_set.h"
#include "rotations/rotation.h"
#include "rotations/scale_set.h"

#include <stdbool.h>
#include <stdint.h>

/* Weights of one layer as in the checkpoint. Vectors are owned (mem_free); NULL bias: none. */
typedef struct llama_layer {
    wmat q, k, v, o, gate, up, down;
    float *attn_norm, *mlp_norm; /* [hidden] */
    float *bq, *bk, *bv, *bo, *bgate, *bup, *bdown;
    float *q_norm, *k_norm; /* [head_dim]; NULL: queries and keys are not normalized */
} llama_layer;

/* Local. Where the layer holds a linear, an index into llama_linears (model/tensors.h); a vector,
 * an index into llama_vectors; the bias of a linear. */
wmat *llama_layer_linear(llama_layer *layer, int linear);
float **llama_layer_vector(llama_layer *layer, int vector);
float **llama_layer_bias(llama_layer *layer, int linear);

typedef struct llama_stage {
    const llama_config *cfg; /* borrowed */
    int64_t first_layer, n_layers;
    llama_layer *layers; /* owned; [n_layers] */
    wmat embed;          /* [vocab, hidden]; WMAT_NONE where not here */
    wmat head;           /* [vocab, hidden]; WMAT_NONE: not here, or tied (head_is_embed) */
    bool head_is_embed;
    float *final_norm; /* owned; NULL where not here */
} llama_stage;

/* Where and how activations are quantized, DESIGN.md 2.2: x -> x + (Q(xR) - xR) R^T.
 * All pointers are borrowed; a NULL rotation is the identity. In an archive whose weights hold R1,
 * R2 and the scales these are NULL. */
typedef struct llama_sites {
    aquant act;        /* attention, MLP and o_proj inputs; act.group divides the width of each */
    aquant kv;         /* keys after RoPE, values */
    int down_bits;     /* bits of the down_proj input; 0: those of act */
    input_eight eight; /* inputs of 8 bits where act.bits, or down_bits, are fewer */
    bool o_per_head; /* o_proj input without act.group: a range per head, zero not forced; else with
                        zero */
    const rotation *R1;        /* hidden */
    const rotation *const *R2; /* head_dim; [layers], or [layers * kv_heads] with r2_per_head; by
                                  the layer's number in the model; the array may be NULL */
    bool r2_per_head;
    const rotation *R3;              /* head_dim, keys */
    const rotation *const *R3_heads; /* [layers * kv_heads], in place of R3; NULL: R3 */
    const rotation *cache_rotation;  /* head_dim: keys, in place of R3, and values behind R2, as the
                                    runtime's cache rotates them (rotations/cache_rotation.h) */
    const rotation *R4;              /* intermediate */
    const scale_set *scales;         /* NULL: ones; also where the weights hold them */
    const double *cache_scales;      /* [layers, 2], of keys and values, in place of kv.cache_scale;
                                        NULL: that */
    const clip_set *clips;           /* in place of act.clip and kv.clip; NULL: those */
    bool r4_fused; /* down_proj already holds R4: its input is rotated for real, quantized or not */
} llama_sites;

/* Local. No quantization, no rotation. */
llama_sites llama_sites_none(void);

/* Local. Bytes of an element of x. */
size_t llama_real_bytes(compute_type compute);

/* Local. An empty stage: layers allocated with everything WMAT_NONE and NULL. cfg is borrowed.
 * Caller fills, prepares each matrix (wmat_prepare, or for tests and benches llama_stage_prepare
 * all at once), and frees with llama_stage_clear. Fails with ERR_NOFIT. */
err llama_stage_init(llama_stage *s, const llama_config *cfg, int64_t first_layer,
                     int64_t n_layers);
err llama_stage_prepare(llama_stage *s, compute_type compute);
void llama_stage_clear(llama_stage *s);

/* Local. Buffers of a forward pass of at most max_tokens, for any stage of cfg; sites may be NULL.
 * gemm_threads() is taken at creation. Caller owns *out. Fails with ERR_NOFIT. */
typedef struct llama_scratch llama_scratch;
err llama_scratch_create(const llama_config *cfg, const llama_sites *sites, compute_type compute,
                         int64_t max_tokens, llama_scratch **out);
void llama_scratch_destroy(llama_scratch **s); /* local; NULL is fine; sets NULL */
/* Local. The bytes that llama_scratch_create takes. */
uint64_t llama_scratch_bytes(const llama_config *cfg, const llama_sites *sites,
                             compute_type compute, int64_t max_tokens, int threads);

/* Local. Several sequences one after the other in the passes that follow: positions [T] of their
 * tokens, 0 at the first of each, rising by one; borrowed while it is set. NULL: one window. Tokens
 * of a sequence see that sequence alone. For passes without gradient. */
void llama_scratch_pack(llama_scratch *s, const int32_t *positions);

/* Local. x [T, hidden] = rows of the embedding, times embed_scale of the config. An id outside the
 * vocabulary is ERR_INPUT. */
err llama_embed(const llama_stage *s, compute_type compute, const int32_t *ids, int64_t n_tokens,
                void *x);

/* Local, threaded. x [T, hidden] through the layers of the stage, in place. sites may be NULL.
 * n_tokens over the scratch's max_tokens is ERR_BUG. */
err llama_layers_forward(const llama_stage *s, const llama_sites *sites, int64_t n_tokens, void *x,
                         llama_scratch *scratch);

/* The four inputs that the linears of a layer share, in the order in which they come about. */
typedef enum llama_step { STEP_QKV, STEP_O, STEP_GATE_UP, STEP_DOWN, STEP_COUNT } llama_step;
int64_t llama_step_width(const llama_config *cfg, llama_step step); /* local */

/* Local, threaded. One layer in pieces, for callers that change its weights in between (GPTQ): the
 * input of the linears of a step, as factors [n_tokens, width] (bf16, float or double), into `to`.
 * x is the residual stream at the layer's input for STEP_QKV and STEP_O, and with o_proj added for
 * the other two; it stays as it is. STEP_O needs the weights of q, k, v, STEP_DOWN those of gate
 * and up. */
err llama_step_input(const llama_stage *s, int64_t layer, const llama_sites *sites, llama_step step,
                     int64_t n_tokens, const void *x, llama_scratch *scratch, void *to);
/* Local, threaded. x += o_proj (STEP_O) or down_proj (STEP_DOWN) of that input. All four together
 * are llama_layers_forward of the layer, bit for bit. */
err llama_step_add(const llama_stage *s, int64_t layer, llama_step step, int64_t n_tokens,
                   const void *factors, void *x, llama_scratch *scratch);

/* Local, threaded. Final norm, head and cross entropy: *nll_sum = the sum over t = 0 .. T-2 of
 * -log p(ids[t+1] | ids[0..t]) in nats; nll [T-1] each of them, or NULL. The logits are made in
 * slices. x is left as it is. */
err llama_head_nll(const llama_stage *s, int64_t n_tokens, const void *x, const int32_t *ids,
                   llama_scratch *scratch, double *nll_sum, double *nll);

/* Local, threaded. Logits [n_rows, vocab] of n_rows rows of x, as doubles. */
err llama_head_logits(const llama_stage *s, int64_t n_rows, const void *x, llama_scratch *scratch,
                      double *logits);

#endif
