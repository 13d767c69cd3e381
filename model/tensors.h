/* tensors - the list of weights that a config demands: names, roles, shapes, in one canonical
 * order. Not the weights themselves and not where they are (io/hf_checkpoint.h). Loading, layout of
 * the archive, memory plans and checks all walk this list, so they cannot disagree. */
#ifndef SPINSHARD_MODEL_TENSORS_H
#define SPINSHARD_MODEL_TENSORS_H

#include "model/config.h"

#include <stdbool.h>
#include <stdint.h>

/* Linears are [out, in] as in the checkpoint: y = x W^T. */
typedef enum llama_role {
    ROLE_EMBED,
    ROLE_ATTN_NORM,
    ROLE_Q,
    ROLE_K,
    ROLE_V,
    ROLE_O,
    ROLE_Q_BIAS,
    ROLE_K_BIAS,
    ROLE_V_BIAS,
    ROLE_O_BIAS,
    ROLE_Q_NORM,
    ROLE_K_NORM,
    ROLE_MLP_NORM,
    ROLE_GATE,
    ROLE_UP,
    ROLE_DOWN,
    ROLE_GATE_BIAS,
    ROLE_UP_BIAS,
    ROLE_DOWN_BIAS,
    ROLE_FINAL_NORM,
    ROLE_HEAD,
    ROLE_COUNT,
} llama_role;

typedef struct llama_tensor {
    char name[96]; /* "model.layers.0.self_attn.q_proj.weight" */
    llama_role role;
    int64_t layer;      /* -1 outside the layers */
    int64_t rows, cols; /* vectors: rows = length, cols = 1 */
    int n_dims;         /* 2, or 1 for vectors */
} llama_tensor;

/* Local. Number of tensors, and tensor i in canonical order: embedding; for each layer the order of
 * the roles above (absent biases left out); final norm; head (absent when tied). */
int64_t llama_tensor_count(const llama_config *cfg);
void llama_tensor_at(const llama_config *cfg, int64_t i, llama_tensor *out);

/* Local. The tensor of a role; layer is ignored outside the layers. False (and *out untouched)
 * where this config has none: biases, norms of heads, the head of a tied model. */
bool llama_tensor_of(const llama_config *cfg, llama_role role, int64_t layer, llama_tensor *out);

bool llama_role_in_layer(llama_role role);    /* local; true from ATTN_NORM to DOWN_BIAS */
bool llama_role_is_linear(llama_role role);   /* local; the seven q k v o gate up down */
const char *llama_role_name(llama_role role); /* local; "q_proj" */

/* The linears of a layer, in the order in which they are read, fused and rounded: q k v o gate up
 * down. */
enum { LLAMA_LINEARS = 7 };
extern const llama_role llama_linears[LLAMA_LINEARS];

/* The vectors of a layer: its norms before linears, in the order in which they are read; the biases
 * of the linears in the order of these; the norms of heads, [head_dim], which stand behind q and k.
 * Gains of the first are folded into the linears that follow; the others change with the outputs of
 * the linears before them. Whoever loads, copies, writes or frees vectors walks this list. */
enum {
    LLAMA_NORMS = 2,
    LLAMA_HEAD_NORMS_AT = LLAMA_NORMS + LLAMA_LINEARS,
    LLAMA_VECTORS = LLAMA_HEAD_NORMS_AT + 2
};
extern const llama_role llama_vectors[LLAMA_VECTORS];

/* Local. The bias role of one of the seven linears. */
llama_role llama_role_bias(llama_role linear);

/* Local. Parameters of the model; a tied head counts once. */
int64_t llama_params(const llama_config *cfg);
int64_t llama_layer_params(const llama_config *cfg); /* of one layer */

#endif
