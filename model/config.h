/* config - what config.json says about a LLaMA-family model, as plain checked numbers, and the
 * frequencies of its rotary embedding. Not the file (io/hf_checkpoint.h holds that) and not the
 * weights (model/tensors.h lists them). Everything after "options -> plan" takes its shapes here.
 *
 * Read: the classes of transformers that docs/FAMILIES.md lists: Llama, Mistral, Qwen2, Qwen3,
 * SmolLM3 and Granite. Absent keys get the defaults of those classes, which old files rely on. */
#ifndef SPINSHARD_MODEL_CONFIG_H
#define SPINSHARD_MODEL_CONFIG_H

#include "base/err.h"
#include "base/json.h"

#include <stdbool.h>
#include <stdint.h>

/* Kind of scaling. ROPE_DYNAMIC changes nothing up to max_positions, and longer windows are
 * refused: its frequencies would depend on the length of each window. */
typedef enum rope_kind { ROPE_NONE, ROPE_LINEAR, ROPE_LLAMA3, ROPE_YARN, ROPE_DYNAMIC } rope_kind;

/* Local. Its rope_type in config.json. */
const char *llama_rope_name(rope_kind kind);

typedef struct rope_scaling {
    rope_kind kind;
    double factor;                            /* linear, llama3, yarn; >= 1 */
    double low_freq_factor, high_freq_factor; /* llama3; 0 < low < high */
    int64_t original_max_positions;           /* llama3, yarn */
    double beta_fast, beta_slow;              /* yarn: turns within the original context */
    bool truncate;                            /* yarn: the ramp begins and ends at whole pairs */
    double gain;                              /* yarn: cos and sin are times it; else 0 */
} rope_scaling;

/* A set of layers by their numbers in the model. */
enum { LLAMA_MAX_LAYERS = 1 << 12 };
typedef struct layer_flags {
    uint64_t bits[LLAMA_MAX_LAYERS / 64];
} layer_flags;

/* Local. Is the layer in the set? Put it in, or take it out. */
static inline bool layer_flags_has(const layer_flags *f, int64_t layer) {
    return f->bits[layer / 64] >> (layer % 64) & 1;
}
static inline void layer_flags_put(layer_flags *f, int64_t layer, bool on) {
    const uint64_t bit = (uint64_t)1 << (layer % 64);
    f->bits[layer / 64] = on ? f->bits[layer / 64] | bit : f->bits[layer / 64] & ~bit;
}

typedef struct llama_config {
    int64_t hidden, intermediate, layers;
    int64_t heads, kv_heads, head_dim; /* heads % kv_heads == 0; head_dim even */
    int64_t vocab, max_positions;
    double rms_eps, rope_theta;
    rope_scaling rope;
    bool tied;              /* lm_head is the embedding */
    bool qkv_bias, o_bias;  /* on q, k, v; on o */
    bool mlp_bias;          /* on gate, up, down */
    bool qk_norm;           /* RMSNorm of each head of queries and keys, before RoPE */
    int64_t sliding_window; /* tokens a position sees, itself included; 0: all */
    layer_flags unwindowed; /* layers to which sliding_window does not apply */
    layer_flags no_rope;    /* layers whose queries and keys are not rotated by position */
    double embed_scale;     /* what the embedding is times; 0: 1 */
    double score_scale;     /* what scores of attention are times; 0: 1 / sqrt(head_dim) */
    double logit_scale;     /* what logits are times, a power of two; 0: 1 */
    int64_t bos;            /* -1: none stated */
    char model_type[32];    /* "llama", "mistral" */
    char architecture[64];  /* "LlamaForCausalLM" */
} llama_config;

/* Local. What a layer has of it: the window (0: none), and whether it turns by position. */
int64_t llama_window_of(const llama_config *cfg, int64_t layer);
bool llama_has_rope(const llama_config *cfg, int64_t layer);

/* Local. Fill *out from a parsed config.json; `where` names it in messages. Every number is in a
 * range in which all sizes of the model fit 63 bits. Fails with ERR_INPUT: unknown architecture,
 * activation or rope scaling (by name, with what works), numbers missing, out of range or that
 * contradict. */
err llama_config_parse(const json_t *o, const char *where, llama_config *out);

/* Local. inv[head_dim / 2]: angle per position of rotary pair i, in radians, scaling applied:
 * theta^(-2i/head_dim); linear: divided by factor; llama3: wavelengths above original/low divided
 * by factor, below original/high kept, between them blended (Llama 3.1); yarn: the same with a ramp
 * over the pairs (Peng and others: YaRN, 2023). */
void llama_inv_freq(const llama_config *cfg, double *inv);
double
llama_rope_gain(const llama_config *cfg); /* local; what cos and sin are times: 1, or yarn's */

#endif
