/* config - what config.json says about a LLaMA-family model, as plain checked numbers, and the
 * frequencies of its rotary embedding. Not the file (io/hf_checkpoint.h holds that) and not the
 * weights (model/tensors.h lists them). Everything after "options -> plan" takes its shapes here.
 *
 * Read: LlamaForCausalLM (LLaMA 1, 2, 3, 3.1, 3.2 and what is built like them) and
 * MistralForCausalLM. Absent keys get the defaults of transformers, which old files rely on. */
#ifndef SPINSHARD_MODEL_CONFIG_H
#define SPINSHARD_MODEL_CONFIG_H

#include "base/err.h"
#include "base/json.h"

#include <stdbool.h>
#include <stdint.h>

typedef enum rope_kind { ROPE_NONE, ROPE_LINEAR, ROPE_LLAMA3 } rope_kind; /* kind of scaling */

typedef struct rope_scaling {
    rope_kind kind;
    double factor;                            /* linear, llama3; >= 1 */
    double low_freq_factor, high_freq_factor; /* llama3; 0 < low < high */
    int64_t original_max_positions;           /* llama3 */
} rope_scaling;

typedef struct llama_config {
    int64_t hidden, intermediate, layers;
    int64_t heads, kv_heads, head_dim; /* heads % kv_heads == 0; head_dim even */
    int64_t vocab, max_positions;
    double rms_eps, rope_theta;
    rope_scaling rope;
    bool tied;              /* lm_head is the embedding */
    bool attention_bias;    /* on q, k, v, o */
    bool mlp_bias;          /* on gate, up, down */
    int64_t sliding_window; /* tokens a position sees, itself included; 0: all (Mistral) */
    int64_t bos;            /* -1: none stated */
    char model_type[32];    /* "llama", "mistral" */
    char architecture[64];  /* "LlamaForCausalLM" */
} llama_config;

/* Local. Fill *out from a parsed config.json; `where` names it in messages. Every number is in a
 * range in which all sizes of the model fit 63 bits. Fails with ERR_INPUT: unknown architecture,
 * activation or rope scaling (by name, with what works), numbers missing, out of range or that
 * contradict. */
err llama_config_parse(const json_t *o, const char *where, llama_config *out);

/* Local. inv[head_dim / 2]: angle per position of rotary pair i, in radians, scaling applied:
 * theta^(-2i/head_dim); linear: divided by factor; llama3: wavelengths above original/low divided
 * by factor, below original/high kept, between them blended (Llama 3.1). */
void llama_inv_freq(const llama_config *cfg, double *inv);

#endif
