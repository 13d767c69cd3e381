/* Keys are read with the defaults of transformers, checked against bounds that keep all later
 * sizes within 63 bits, and refused by name where the forward pass would not do what they say. */
#include "model/config.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* Upper bounds of sizes. With them a layer has fewer than 2^47 parameters and a model fewer than
 * 2^60, so byte counts fit 63 bits; the largest published models are a factor of 30 below each. */
enum {
    MAX_WIDTH = 1 << 20,
    MAX_INTERMEDIATE = 1 << 24,
    MAX_LAYERS = 1 << 12,
    MAX_HEADS = 1 << 16,
    MAX_HEAD_DIM = 1 << 14,
    MAX_VOCAB = 1 << 24,
};

static const char *const READABLE =
    "LlamaForCausalLM (LLaMA 1, 2, 3, 3.1, 3.2) and MistralForCausalLM can be read";

/* What transformers takes where a key is absent. */
typedef struct family {
    const char *architecture, *also, *model_type;
    int64_t kv_heads; /* 0: as many as heads */
    int64_t max_positions;
    bool has_biases;        /* reads attention_bias and mlp_bias */
    int64_t sliding_window; /* 0: the key means nothing to it */
} family;

static const family FAMILIES[] = {
    /* LLaMA 1 was first published under the other spelling. */
    {"LlamaForCausalLM", "LLaMAForCausalLM", "llama", 0, 2048, true, 0},
    {"MistralForCausalLM", "MistralForCausalLM", "mistral", 8, 131072, false, 4096},
};
enum { N_FAMILIES = sizeof FAMILIES / sizeof FAMILIES[0] };

static err family_by_architecture(const json_t *list, const char *where, const family **out) {
    if (!json_is_array(list) || json_array_size(list) == 0)
        return err_make(ERR_INPUT, where, NULL, "\"architectures\" must be a list of names");
    const char *name = json_string_value(json_array_get(list, 0));
    for (int i = 0; name && i < N_FAMILIES; i++)
        if (!strcmp(name, FAMILIES[i].architecture) || !strcmp(name, FAMILIES[i].also))
            *out = &FAMILIES[i];
    if (*out) return err_none();
    return err_make(ERR_INPUT, where, READABLE, "unknown architecture %.100s",
                    name ? name : "(not a name)");
}

/* architectures decides; files that lack it are told by model_type. */
static err find_family(const json_t *o, const char *where, const family **out) {
    const char *type = NULL;
    const json_t *list = json_object_get(o, "architectures");
    *out = NULL;
    err e = json_opt_str(o, "model_type", where, &type);
    if (e.code) return e;
    if (list && !json_is_null(list)) {
        e = family_by_architecture(list, where, out);
        if (e.code) return e;
        if (!type || !strcmp(type, (*out)->model_type)) return e;
        return err_make(ERR_INPUT, where, READABLE, "architecture %s with model_type \"%.60s\"",
                        (*out)->architecture, type);
    }
    for (int i = 0; type && i < N_FAMILIES; i++)
        if (!strcmp(type, FAMILIES[i].model_type)) *out = &FAMILIES[i];
    if (*out) return e;
    return err_make(ERR_INPUT, where, READABLE,
                    type ? "unknown model_type \"%.60s\"" : "neither architectures nor model_type",
                    type ? type : "");
}

static err read_sizes(const json_t *o, const char *where, llama_config *c) {
    err e = json_get_int(o, "hidden_size", 1, MAX_WIDTH, where, &c->hidden);
    if (!e.code)
        e = json_get_int(o, "intermediate_size", 1, MAX_INTERMEDIATE, where, &c->intermediate);
    if (!e.code) e = json_get_int(o, "num_hidden_layers", 1, MAX_LAYERS, where, &c->layers);
    if (!e.code) e = json_get_int(o, "num_attention_heads", 1, MAX_HEADS, where, &c->heads);
    if (!e.code) e = json_get_int(o, "vocab_size", 1, MAX_VOCAB, where, &c->vocab);
    if (!e.code)
        e = json_opt_int(o, "max_position_embeddings", 1, INT32_MAX, where, &c->max_positions);
    return e;
}

/* A key that says null has another default than one that is absent: as many KV heads as heads. */
static err read_heads(const json_t *o, const char *where, const family *f, llama_config *c) {
    const json_t *kv = json_object_get(o, "num_key_value_heads");
    c->kv_heads = !kv && f->kv_heads ? f->kv_heads : c->heads;
    err e = json_opt_int(o, "num_key_value_heads", 1, MAX_HEADS, where, &c->kv_heads);
    if (e.code) return e;
    if (c->heads % c->kv_heads)
        return err_make(ERR_INPUT, where, "fetch config.json again",
                        "%" PRId64 " attention heads cannot share %" PRId64 " key-value heads",
                        c->heads, c->kv_heads);
    c->head_dim = 0;
    e = json_opt_int(o, "head_dim", 1, MAX_HEAD_DIM, where, &c->head_dim);
    if (e.code) return e;
    if (!c->head_dim && c->hidden % c->heads)
        return err_make(ERR_INPUT, where, "state head_dim",
                        "hidden_size %" PRId64 " is not a multiple of %" PRId64 " heads", c->hidden,
                        c->heads);
    if (!c->head_dim) c->head_dim = c->hidden / c->heads;
    if (c->head_dim % 2 || c->head_dim > MAX_HEAD_DIM || c->heads * c->head_dim > MAX_INTERMEDIATE)
        return err_make(ERR_INPUT, where, NULL,
                        "head_dim %" PRId64 " with %" PRId64
                        " heads: it must be even, at most %d, and the product at most %d",
                        c->head_dim, c->heads, MAX_HEAD_DIM, MAX_INTERMEDIATE);
    return e;
}

static err read_real_in(const json_t *o, const char *key, double lo, double hi, const char *where,
                        double *out) {
    err e = json_opt_real(o, key, where, out);
    if (e.code || (*out >= lo && *out <= hi)) return e;
    return err_make(ERR_INPUT, where, NULL, "\"%s\" is %g, not in %g..%g", key, *out, lo, hi);
}

static err need_real_in(const json_t *o, const char *key, double lo, double hi, const char *where,
                        double *out) {
    const json_t *v = json_object_get(o, key);
    if (!v || json_is_null(v))
        return err_make(ERR_INPUT, where, NULL, "\"%s\" is missing from the rope scaling", key);
    return read_real_in(o, key, lo, hi, where, out);
}

static err read_llama3(const json_t *s, const char *where, rope_scaling *r) {
    err e = need_real_in(s, "low_freq_factor", 1e-6, 1e6, where, &r->low_freq_factor);
    if (!e.code) e = need_real_in(s, "high_freq_factor", 1e-6, 1e6, where, &r->high_freq_factor);
    if (!e.code)
        e = json_get_int(s, "original_max_position_embeddings", 1, INT32_MAX, where,
                         &r->original_max_positions);
    if (!e.code && r->high_freq_factor <= r->low_freq_factor)
        e = err_make(ERR_INPUT, where, NULL, "high_freq_factor %g is not above low_freq_factor %g",
                     r->high_freq_factor, r->low_freq_factor);
    return e;
}

/* s: the object rope_scaling (transformers 4) or rope_parameters (transformers 5, theta inside). */
static err read_scaling(const json_t *s, const char *where, llama_config *c) {
    const char *kind = "default";
    err e = json_opt_str(s, "type", where, &kind); /* the old spelling */
    if (!e.code) e = json_opt_str(s, "rope_type", where, &kind);
    if (!e.code) e = read_real_in(s, "rope_theta", 1, 1e15, where, &c->rope_theta);
    if (e.code || !strcmp(kind, "default")) return e;
    if (!strcmp(kind, "linear"))
        c->rope.kind = ROPE_LINEAR;
    else if (!strcmp(kind, "llama3"))
        c->rope.kind = ROPE_LLAMA3;
    else
        return err_make(ERR_INPUT, where, "default, linear and llama3 can be read",
                        "rope scaling \"%.60s\" is not supported", kind);
    e = need_real_in(s, "factor", 1, 1e6, where, &c->rope.factor);
    if (!e.code && c->rope.kind == ROPE_LLAMA3) e = read_llama3(s, where, &c->rope);
    return e;
}

static err read_rope(const json_t *o, const char *where, llama_config *c) {
    double part = 1;
    c->rope_theta = 10000;
    err e = read_real_in(o, "rope_theta", 1, 1e15, where, &c->rope_theta);
    if (!e.code) e = json_opt_real(o, "partial_rotary_factor", where, &part);
    static const char *const KEYS[] = {"rope_scaling", "rope_parameters"};
    for (int i = 0; i < 2 && !e.code; i++) {
        const json_t *s = json_object_get(o, KEYS[i]);
        if (!s || json_is_null(s)) continue;
        if (!json_is_object(s))
            return err_make(ERR_INPUT, where, NULL, "\"%s\" must be an object", KEYS[i]);
        e = json_opt_real(s, "partial_rotary_factor", where, &part);
        if (!e.code) e = read_scaling(s, where, c);
    }
    if (!e.code && part != 1)
        e = err_make(ERR_INPUT, where, READABLE,
                     "partial_rotary_factor %g: only whole heads are rotated", part);
    return e;
}

static err read_flags(const json_t *o, const char *where, const family *f, llama_config *c) {
    const char *act = "silu";
    err e = json_opt_str(o, "hidden_act", where, &act);
    if (!e.code && strcmp(act, "silu") && strcmp(act, "swish"))
        e = err_make(ERR_INPUT, where, "silu is the only one LLaMA models have",
                     "hidden_act \"%.60s\" is not supported", act);
    if (!e.code) e = json_opt_bool(o, "tie_word_embeddings", where, &c->tied);
    if (!e.code && f->has_biases) {
        e = json_opt_bool(o, "attention_bias", where, &c->attention_bias);
        if (!e.code) e = json_opt_bool(o, "mlp_bias", where, &c->mlp_bias);
    }
    if (e.code || !f->sliding_window) return e;
    const json_t *w = json_object_get(o, "sliding_window");
    c->sliding_window = w ? 0 : f->sliding_window; /* null: none; absent: the default */
    return json_opt_int(o, "sliding_window", 1, INT32_MAX, where, &c->sliding_window);
}

/* The one token that is put before windows, where the tokenizer puts none. End tokens and the like
 * are not read: nothing here generates. */
static int64_t read_bos(const json_t *o) {
    const json_t *v = json_object_get(o, "bos_token_id");
    const json_int_t id = json_integer_value(v);
    return json_is_integer(v) && id >= 0 && id <= INT32_MAX ? id : -1;
}

err llama_config_parse(const json_t *o, const char *where, llama_config *out) {
    const family *f;
    llama_config c = {0};
    if (!json_is_object(o)) return err_make(ERR_INPUT, where, NULL, "not a JSON object");
    err e = find_family(o, where, &f);
    if (e.code) return e;
    memcpy(c.architecture, f->architecture, strlen(f->architecture));
    memcpy(c.model_type, f->model_type, strlen(f->model_type));
    c.max_positions = f->max_positions;
    c.rms_eps = 1e-6;
    e = read_sizes(o, where, &c);
    if (!e.code) e = read_heads(o, where, f, &c);
    if (!e.code) e = read_real_in(o, "rms_norm_eps", 0, 1, where, &c.rms_eps);
    if (!e.code) e = read_rope(o, where, &c);
    if (!e.code) e = read_flags(o, where, f, &c);
    c.bos = read_bos(o);
    if (!e.code) *out = c;
    return e;
}

/* Llama 3.1: a pair that turns less than `low` times within the original context is slowed by the
 * factor, one that turns more than `high` times is kept, between them the two are blended linearly
 * in the number of turns. */
static double llama3_freq(const rope_scaling *r, double freq) {
    const double TWO_PI = 6.283185307179586476925286766559;
    double turns = (double)r->original_max_positions * freq / TWO_PI;
    if (turns < r->low_freq_factor) return freq / r->factor;
    if (turns > r->high_freq_factor) return freq;
    double kept = (turns - r->low_freq_factor) / (r->high_freq_factor - r->low_freq_factor);
    return (1 - kept) * freq / r->factor + kept * freq;
}

void llama_inv_freq(const llama_config *cfg, double *inv) {
    for (int64_t i = 0; i < cfg->head_dim / 2; i++) {
        double freq = 1 / pow(cfg->rope_theta, (double)(2 * i) / (double)cfg->head_dim);
        if (cfg->rope.kind == ROPE_LINEAR) freq /= cfg->rope.factor;
        if (cfg->rope.kind == ROPE_LLAMA3) freq = llama3_freq(&cfg->rope, freq);
        inv[i] = freq;
    }
}
