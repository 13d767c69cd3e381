/* Names are printed from roles and layer numbers; index i is decoded to (layer, role), so the list
 * is never stored. */
#include "model/tensors.h"

#include <inttypes.h>
#include <stdio.h>

typedef enum bias_of { BIAS_NONE, BIAS_QKV, BIAS_O, BIAS_MLP } bias_of;

typedef struct role_info {
    const char *name;  /* the module, as in the checkpoint */
    const char *where; /* what stands before it; after "model.layers.N." inside a layer */
    bool linear;
    bias_of bias;
} role_info;

static const role_info ROLES[ROLE_COUNT] = {
    [ROLE_EMBED] = {"embed_tokens", "model.", false, BIAS_NONE},
    [ROLE_ATTN_NORM] = {"input_layernorm", "", false, BIAS_NONE},
    [ROLE_Q] = {"q_proj", "self_attn.", true, BIAS_NONE},
    [ROLE_K] = {"k_proj", "self_attn.", true, BIAS_NONE},
    [ROLE_V] = {"v_proj", "self_attn.", true, BIAS_NONE},
    [ROLE_O] = {"o_proj", "self_attn.", true, BIAS_NONE},
    [ROLE_Q_BIAS] = {"q_proj", "self_attn.", false, BIAS_QKV},
    [ROLE_K_BIAS] = {"k_proj", "self_attn.", false, BIAS_QKV},
    [ROLE_V_BIAS] = {"v_proj", "self_attn.", false, BIAS_QKV},
    [ROLE_O_BIAS] = {"o_proj", "self_attn.", false, BIAS_O},
    [ROLE_Q_NORM] = {"q_norm", "self_attn.", false, BIAS_NONE},
    [ROLE_K_NORM] = {"k_norm", "self_attn.", false, BIAS_NONE},
    [ROLE_MLP_NORM] = {"post_attention_layernorm", "", false, BIAS_NONE},
    [ROLE_GATE] = {"gate_proj", "mlp.", true, BIAS_NONE},
    [ROLE_UP] = {"up_proj", "mlp.", true, BIAS_NONE},
    [ROLE_DOWN] = {"down_proj", "mlp.", true, BIAS_NONE},
    [ROLE_GATE_BIAS] = {"gate_proj", "mlp.", false, BIAS_MLP},
    [ROLE_UP_BIAS] = {"up_proj", "mlp.", false, BIAS_MLP},
    [ROLE_DOWN_BIAS] = {"down_proj", "mlp.", false, BIAS_MLP},
    [ROLE_FINAL_NORM] = {"norm", "model.", false, BIAS_NONE},
    [ROLE_HEAD] = {"lm_head", "", false, BIAS_NONE},
};

const llama_role llama_linears[LLAMA_LINEARS] = {ROLE_Q,    ROLE_K,  ROLE_V,   ROLE_O,
                                                 ROLE_GATE, ROLE_UP, ROLE_DOWN};

const llama_role llama_vectors[LLAMA_VECTORS] = {
    ROLE_ATTN_NORM, ROLE_MLP_NORM, ROLE_Q_BIAS,    ROLE_K_BIAS, ROLE_V_BIAS, ROLE_O_BIAS,
    ROLE_GATE_BIAS, ROLE_UP_BIAS,  ROLE_DOWN_BIAS, ROLE_Q_NORM, ROLE_K_NORM};

bool llama_role_in_layer(llama_role role) {
    return role >= ROLE_ATTN_NORM && role <= ROLE_DOWN_BIAS;
}

bool llama_role_is_linear(llama_role role) {
    return ROLES[role].linear;
}

const char *llama_role_name(llama_role role) {
    return ROLES[role].name;
}

llama_role llama_role_bias(llama_role linear) {
    return linear <= ROLE_O ? (llama_role)(ROLE_Q_BIAS + (linear - ROLE_Q))
                            : (llama_role)(ROLE_GATE_BIAS + (linear - ROLE_GATE));
}

static bool has_role(const llama_config *cfg, llama_role role) {
    if (role == ROLE_HEAD) return !cfg->tied;
    if (role == ROLE_Q_NORM || role == ROLE_K_NORM) return cfg->qk_norm;
    if (ROLES[role].bias == BIAS_QKV) return cfg->qkv_bias;
    if (ROLES[role].bias == BIAS_O) return cfg->o_bias;
    if (ROLES[role].bias == BIAS_MLP) return cfg->mlp_bias;
    return true;
}

static void set_shape(const llama_config *cfg, llama_role role, llama_tensor *t) {
    int64_t q_width = cfg->heads * cfg->head_dim, kv_width = cfg->kv_heads * cfg->head_dim;
    t->n_dims = role == ROLE_EMBED || role == ROLE_HEAD || ROLES[role].linear ? 2 : 1;
    t->cols = t->n_dims == 2 ? cfg->hidden : 1;
    t->rows = cfg->hidden;
    switch (role) {
    case ROLE_EMBED:
    case ROLE_HEAD:
        t->rows = cfg->vocab;
        break;
    case ROLE_Q:
    case ROLE_Q_BIAS:
        t->rows = q_width;
        break;
    case ROLE_K:
    case ROLE_V:
    case ROLE_K_BIAS:
    case ROLE_V_BIAS:
        t->rows = kv_width;
        break;
    case ROLE_GATE:
    case ROLE_UP:
    case ROLE_GATE_BIAS:
    case ROLE_UP_BIAS:
        t->rows = cfg->intermediate;
        break;
    case ROLE_Q_NORM:
    case ROLE_K_NORM:
        t->rows = cfg->head_dim;
        break;
    case ROLE_O:
        t->cols = q_width;
        break;
    case ROLE_DOWN:
        t->cols = cfg->intermediate;
        break;
    default: /* norms, and the biases of o and down: vectors of the hidden size */
        break;
    }
}

bool llama_tensor_of(const llama_config *cfg, llama_role role, int64_t layer, llama_tensor *out) {
    if (!has_role(cfg, role)) return false;
    const role_info *r = &ROLES[role];
    const char *what = r->bias == BIAS_NONE ? "weight" : "bias";
    out->role = role;
    out->layer = llama_role_in_layer(role) ? layer : -1;
    if (llama_role_in_layer(role))
        snprintf(out->name, sizeof out->name, "model.layers.%" PRId64 ".%s%s.%s", layer, r->where,
                 r->name, what);
    else
        snprintf(out->name, sizeof out->name, "%s%s.%s", r->where, r->name, what);
    set_shape(cfg, role, out);
    return true;
}

static int64_t tensors_per_layer(const llama_config *cfg) {
    int64_t n = 0;
    for (llama_role r = ROLE_ATTN_NORM; r <= ROLE_DOWN_BIAS; r++) n += has_role(cfg, r);
    return n;
}

int64_t llama_tensor_count(const llama_config *cfg) {
    return 1 + cfg->layers * tensors_per_layer(cfg) + 1 + (cfg->tied ? 0 : 1);
}

void llama_tensor_at(const llama_config *cfg, int64_t i, llama_tensor *out) {
    int64_t per_layer = tensors_per_layer(cfg), in_layers = cfg->layers * per_layer;
    llama_role role = ROLE_EMBED;
    int64_t layer = -1;
    if (i > in_layers) {
        role = i == in_layers + 1 ? ROLE_FINAL_NORM : ROLE_HEAD;
    } else if (i > 0) {
        layer = (i - 1) / per_layer;
        int64_t skip = (i - 1) % per_layer;
        for (role = ROLE_ATTN_NORM; !has_role(cfg, role) || skip-- > 0;) role++;
    }
    llama_tensor_of(cfg, role, layer, out);
}

int64_t llama_layer_params(const llama_config *cfg) {
    int64_t n = 0;
    llama_tensor t;
    for (llama_role r = ROLE_ATTN_NORM; r <= ROLE_DOWN_BIAS; r++)
        if (llama_tensor_of(cfg, r, 0, &t)) n += t.rows * t.cols;
    return n;
}

int64_t llama_params(const llama_config *cfg) {
    int64_t n = cfg->layers * llama_layer_params(cfg) + cfg->hidden;
    return n + (cfg->tied ? 1 : 2) * cfg->vocab * cfg->hidden;
}
