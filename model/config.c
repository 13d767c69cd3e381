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
    MAX_HEADS = 1 << 16,
    MAX_HEAD_DIM = 1 << 14,
    MAX_VOCAB = 1 << 24,
};

static const char *const READABLE = "the classes Llama, Mistral, Qwen2, Qwen3, SmolLM3 and Granite "
                                    "of transformers (ForCausalLM) can be "
                                    "read: docs/FAMILIES.md";

/* Which biases a family has. */
typedef enum bias_rule {
    BIAS_BY_KEYS,      /* attention_bias: q k v o; mlp_bias: gate up down */
    BIAS_BY_ATTENTION, /* attention_bias alone */
    BIAS_ON_QKV,       /* always on q k v, nowhere else */
    BIAS_NOWHERE,
} bias_rule;

/* To which layers sliding_window applies. */
typedef enum window_rule {
    WINDOW_NEVER,  /* the key means nothing */
    WINDOW_ALWAYS, /* to all, or as layer_types says, by which transformers 5 tells Ministral */
    WINDOW_LAST,   /* use_sliding_window: to those from max_window_layers on */
    WINDOW_NOPE,   /* use_sliding_window: to those without RoPE */
} window_rule;

/* What the class in transformers takes where a key is absent. */
typedef struct family {
    const char *architecture, *also, *model_type;
    int64_t kv_heads; /* 0: as many as heads */
    int64_t head_dim; /* 0: hidden / heads */
    int64_t max_positions;
    double rope_theta;
    bool tied;
    bias_rule biases;
    window_rule windows;
    int64_t sliding_window; /* 0: none */
    bool qk_norm;
    bool skips_rope;  /* reads no_rope_layers, no_rope_layer_interval */
    bool multipliers; /* reads embedding_, attention_, residual_multiplier and logits_scaling */
} family;

static const family FAMILIES[] = {
    /* LLaMA 1 was first published under the other spelling. */
    {"LlamaForCausalLM", "LLaMAForCausalLM", "llama", .max_positions = 2048, .rope_theta = 1e4},
    {"MistralForCausalLM", "", "mistral", .kv_heads = 8, .max_positions = 131072, .rope_theta = 1e4,
     .biases = BIAS_NOWHERE, .windows = WINDOW_ALWAYS, .sliding_window = 4096},
    {"MinistralForCausalLM", "", "ministral", .kv_heads = 8, .max_positions = 131072,
     .rope_theta = 1e4, .biases = BIAS_NOWHERE, .windows = WINDOW_ALWAYS, .sliding_window = 4096},
    {"Qwen2ForCausalLM", "", "qwen2", .kv_heads = 32, .max_positions = 32768, .rope_theta = 1e4,
     .biases = BIAS_ON_QKV, .windows = WINDOW_LAST, .sliding_window = 4096},
    {"Qwen3ForCausalLM", "", "qwen3", .kv_heads = 32, .head_dim = 128, .max_positions = 32768,
     .rope_theta = 1e4, .biases = BIAS_BY_ATTENTION, .windows = WINDOW_LAST, .sliding_window = 4096,
     .qk_norm = true},
    {"SmolLM3ForCausalLM", "", "smollm3", .kv_heads = 4, .max_positions = 32768, .rope_theta = 2e6,
     .tied = true, .windows = WINDOW_NOPE, .skips_rope = true},
    {"GraniteForCausalLM", "", "granite", .max_positions = 2048, .rope_theta = 1e4,
     .multipliers = true},
};
enum { N_FAMILIES = sizeof FAMILIES / sizeof FAMILIES[0] };

/* Families that people ask for, and why they cannot be read; by the beginning of the name of the
 * class, or of model_type. docs/FAMILIES.md says what each would take. */
typedef struct refused_family {
    const char *architecture, *model_type, *why;
} refused_family;

static const refused_family REFUSED[] = {
    {"Phi3", "phi3",
     "it stores q, k, v and gate, up as one tensor each, and its class loads no others"},
    {"Gemma", "gemma",
     "its norms multiply by 1 + w, stand behind linears too, and it has other activations"},
    {"GraniteMoe", "granitemoe", "its MLP is a router and experts"},
    {"Mixtral", "mixtral", "its MLP is a router and experts"},
    {"Qwen2Moe", "qwen2_moe", "its MLP is a router and experts"},
    {"Qwen3Moe", "qwen3_moe", "its MLP is a router and experts"},
    {"DeepseekV", "deepseek_v", "its attention is latent and its MLP a router and experts"},
    {"Llama4", "llama4", "its MLP is a router and experts"},
    {"Mistral3", "mistral3",
     "it also holds a vision tower; take the folder of the language model alone"},
    {"Qwen2_5_VL", "qwen2_5_vl",
     "it also holds a vision tower; take the folder of the language model alone"},
    {"Qwen2VL", "qwen2_vl",
     "it also holds a vision tower; take the folder of the language model alone"},
    {"Qwen3Next", "qwen3_next", "most of its layers are not attention"},
};

static err refuse_family(const char *where, const char *what, const char *name) {
    for (size_t i = 0; name && i < sizeof REFUSED / sizeof *REFUSED; i++) {
        const refused_family *r = &REFUSED[i];
        if (strncmp(name, r->architecture, strlen(r->architecture)) &&
            strncmp(name, r->model_type, strlen(r->model_type)))
            continue;
        return err_make(ERR_INPUT, where, READABLE, "%s %.60s is not supported: %s", what, name,
                        r->why);
    }
    return err_make(ERR_INPUT, where, READABLE, "unknown %s %.100s", what,
                    name ? name : "(not a name)");
}

static err family_by_architecture(const json_t *list, const char *where, const family **out) {
    if (!json_is_array(list) || json_array_size(list) == 0)
        return err_make(ERR_INPUT, where, NULL, "\"architectures\" must be a list of names");
    const char *name = json_string_value(json_array_get(list, 0));
    for (int i = 0; name && i < N_FAMILIES; i++)
        if (!strcmp(name, FAMILIES[i].architecture) ||
            (*FAMILIES[i].also && !strcmp(name, FAMILIES[i].also)))
            *out = &FAMILIES[i];
    if (*out) return err_none();
    return refuse_family(where, "architecture", name);
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
    if (type) return refuse_family(where, "model_type", type);
    return err_make(ERR_INPUT, where, READABLE, "neither architectures nor model_type");
}

static err read_sizes(const json_t *o, const char *where, llama_config *c) {
    err e = json_get_int(o, "hidden_size", 1, MAX_WIDTH, where, &c->hidden);
    if (!e.code)
        e = json_get_int(o, "intermediate_size", 1, MAX_INTERMEDIATE, where, &c->intermediate);
    if (!e.code) e = json_get_int(o, "num_hidden_layers", 1, LLAMA_MAX_LAYERS, where, &c->layers);
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
    c->head_dim = json_object_get(o, "head_dim") ? 0 : f->head_dim;
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

/* 0.1 mscale ln(factor) + 1, which makes up for the entropy of longer contexts. */
static double yarn_gain(double factor, double mscale) {
    return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

/* Keys that are zero count as absent. */
static err read_yarn(const json_t *s, const char *where, int64_t max_positions, rope_scaling *r) {
    double mscale = 0, mscale_all = 0;
    *r = (rope_scaling){.kind = r->kind,
                        .factor = r->factor,
                        .original_max_positions = max_positions,
                        .truncate = true};
    err e = json_opt_int(s, "original_max_position_embeddings", 1, INT32_MAX, where,
                         &r->original_max_positions);
    if (!e.code) e = read_real_in(s, "beta_fast", 0, 1e6, where, &r->beta_fast);
    if (!e.code) e = read_real_in(s, "beta_slow", 0, 1e6, where, &r->beta_slow);
    if (!e.code) e = read_real_in(s, "attention_factor", 0, 1e6, where, &r->gain);
    if (!e.code) e = read_real_in(s, "mscale", 0, 1e6, where, &mscale);
    if (!e.code) e = read_real_in(s, "mscale_all_dim", 0, 1e6, where, &mscale_all);
    if (!e.code) e = json_opt_bool(s, "truncate", where, &r->truncate);
    if (r->beta_fast == 0) r->beta_fast = 32;
    if (r->beta_slow == 0) r->beta_slow = 1;
    if (r->gain > 0) return e;
    r->gain = yarn_gain(r->factor, 1);
    if (mscale > 0 && mscale_all > 0)
        r->gain = yarn_gain(r->factor, mscale) / yarn_gain(r->factor, mscale_all);
    return e;
}

static const char *const KINDS[] = {[ROPE_NONE] = "default",
                                    [ROPE_LINEAR] = "linear",
                                    [ROPE_LLAMA3] = "llama3",
                                    [ROPE_YARN] = "yarn",
                                    [ROPE_DYNAMIC] = "dynamic"};

const char *llama_rope_name(rope_kind kind) {
    return KINDS[kind];
}

/* s: the object rope_scaling (transformers 4) or rope_parameters (transformers 5, theta inside). */
static err read_scaling(const json_t *s, const char *where, llama_config *c) {
    const char *kind = "default", *old = NULL, *new = NULL;
    size_t k = 0;
    err e = json_opt_str(s, "type", where, &old); /* of transformers before 4.43 */
    if (!e.code) e = json_opt_str(s, "rope_type", where, &new);
    if (old && new && !e.code && strcmp(old, new))
        e = err_make(ERR_INPUT, where, "remove the one that is not meant",
                     "the rope scaling has the type \"%.60s\" and the rope_type \"%.60s\"", old,
                     new);
    if (new || old) kind = new ? new : old;
    if (!e.code) e = read_real_in(s, "rope_theta", 1, 1e15, where, &c->rope_theta);
    if (e.code) return e;
    while (k < sizeof KINDS / sizeof *KINDS && strcmp(kind, KINDS[k])) k++;
    if (k == sizeof KINDS / sizeof *KINDS)
        return err_make(ERR_INPUT, where, "default, linear, llama3, yarn and dynamic can be read",
                        "rope scaling \"%.60s\" is not supported", kind);
    c->rope.kind = (rope_kind)k;
    if (c->rope.kind == ROPE_NONE) return e;
    e = need_real_in(s, "factor", 1, 1e6, where, &c->rope.factor);
    if (!e.code && c->rope.kind == ROPE_LLAMA3) e = read_llama3(s, where, &c->rope);
    if (!e.code && c->rope.kind == ROPE_YARN) e = read_yarn(s, where, c->max_positions, &c->rope);
    return e;
}

static bool same_scaling(const rope_scaling *a, const rope_scaling *b) {
    return a->kind == b->kind && a->factor == b->factor &&
           a->low_freq_factor == b->low_freq_factor && a->high_freq_factor == b->high_freq_factor &&
           a->original_max_positions == b->original_max_positions && a->beta_fast == b->beta_fast &&
           a->beta_slow == b->beta_slow && a->truncate == b->truncate && a->gain == b->gain;
}

/* Positions said in several places must be said alike: which place counts differs between versions
 * of transformers. 4 reads rope_theta and rope_scaling; a config of 5 that 4 has written again
 * holds rope_parameters too, and the default of rope_theta. */
static err check_places(const json_t *o, const char *where, const llama_config *by_new) {
    llama_config by_old = *by_new;
    const json_t *theta = json_object_get(o, "rope_theta");
    const json_t *old = json_object_get(o, "rope_scaling"),
                 *new = json_object_get(o, "rope_parameters");
    static const char *const HINT = "remove the one that is not meant";
    if (json_is_number(theta) && json_number_value(theta) != by_new->rope_theta)
        return err_make(ERR_INPUT, where, HINT,
                        "\"rope_theta\" is %g, and %g in rope_scaling or rope_parameters",
                        json_number_value(theta), by_new->rope_theta);
    if (!json_is_object(old) || !json_is_object(new)) return err_none();
    by_old.rope = (rope_scaling){0};
    err e = read_scaling(old, where, &by_old);
    if (e.code ||
        (same_scaling(&by_old.rope, &by_new->rope) && by_old.rope_theta == by_new->rope_theta))
        return e;
    return err_make(ERR_INPUT, where, HINT, "rope_scaling and rope_parameters differ");
}

/* transformers 5 writes an object for each type of layer where their angles differ. */
static err check_flat(const json_t *s, const char *key, const char *where) {
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)s, name, value) {
        if (json_is_object(value))
            return err_make(ERR_INPUT, where, READABLE,
                            "\"%s\" has its own \"%.60s\": positions that differ between layers "
                            "cannot be read",
                            key, name);
    }
    return err_none();
}

static err read_rope(const json_t *o, const char *where, llama_config *c) {
    double part = 1;
    err e = read_real_in(o, "rope_theta", 1, 1e15, where, &c->rope_theta);
    if (!e.code) e = json_opt_real(o, "partial_rotary_factor", where, &part);
    static const char *const KEYS[] = {"rope_scaling", "rope_parameters"};
    for (int i = 0; i < 2 && !e.code; i++) {
        const json_t *s = json_object_get(o, KEYS[i]);
        if (!s || json_is_null(s)) continue;
        if (!json_is_object(s))
            return err_make(ERR_INPUT, where, NULL, "\"%s\" must be an object", KEYS[i]);
        c->rope = (rope_scaling){0};
        e = check_flat(s, KEYS[i], where);
        if (!e.code) e = json_opt_real(s, "partial_rotary_factor", where, &part);
        if (!e.code) e = read_scaling(s, where, c);
    }
    if (!e.code) e = check_places(o, where, c);
    if (!e.code && part != 1)
        e = err_make(ERR_INPUT, where, READABLE,
                     "partial_rotary_factor %g: only whole heads are rotated", part);
    if (!e.code && c->rope.kind == ROPE_YARN && c->rope_theta <= 1)
        e = err_make(ERR_INPUT, where, NULL, "rope scaling yarn with rope_theta %g, not above 1",
                     c->rope_theta);
    return e;
}

static err read_flags(const json_t *o, const char *where, const family *f, llama_config *c) {
    const char *act = "silu";
    err e = json_opt_str(o, "hidden_act", where, &act);
    if (!e.code && strcmp(act, "silu") && strcmp(act, "swish"))
        e = err_make(ERR_INPUT, where, "silu is the only one LLaMA models have",
                     "hidden_act \"%.60s\" is not supported", act);
    if (!e.code) e = json_opt_bool(o, "tie_word_embeddings", where, &c->tied);
    c->qkv_bias = f->biases == BIAS_ON_QKV;
    if (!e.code && (f->biases == BIAS_BY_KEYS || f->biases == BIAS_BY_ATTENTION)) {
        e = json_opt_bool(o, "attention_bias", where, &c->qkv_bias);
        c->o_bias = c->qkv_bias;
    }
    if (!e.code && f->biases == BIAS_BY_KEYS) e = json_opt_bool(o, "mlp_bias", where, &c->mlp_bias);
    return e;
}

/* Layers, one by one. */

int64_t llama_window_of(const llama_config *cfg, int64_t layer) {
    return layer_flags_has(&cfg->unwindowed, layer) ? 0 : cfg->sliding_window;
}

bool llama_has_rope(const llama_config *cfg, int64_t layer) {
    return !layer_flags_has(&cfg->no_rope, layer);
}

/* A list with an entry for each layer; *list is NULL where the key is absent or null. */
static err get_list(const json_t *o, const char *key, int64_t layers, const char *where,
                    const json_t **list) {
    *list = json_object_get(o, key);
    if (json_is_null(*list)) *list = NULL;
    if (!*list || (json_is_array(*list) && (int64_t)json_array_size(*list) >= layers))
        return err_none();
    return err_make(ERR_INPUT, where, "fetch config.json again",
                    "\"%s\" must be a list with an entry for each of the %" PRId64 " layers", key,
                    layers);
}

/* no_rope_layers says 1 for layers that have it. */
static err read_rope_layers(const json_t *o, const char *where, llama_config *c) {
    const json_t *list;
    int64_t every = 4;
    err e = get_list(o, "no_rope_layers", c->layers, where, &list);
    if (!e.code && !list)
        e = json_opt_int(o, "no_rope_layer_interval", 1, INT32_MAX, where, &every);
    for (int64_t l = 0; l < c->layers && !e.code; l++) {
        const json_t *v = json_array_get(list, (size_t)l);
        if (list && !json_is_boolean(v) && !json_is_integer(v))
            return err_make(ERR_INPUT, where, NULL, "\"no_rope_layers\" must hold 0 and 1");
        layer_flags_put(&c->no_rope, l,
                        list
                            ? json_is_false(v) || (json_is_integer(v) && json_integer_value(v) == 0)
                            : (l + 1) % every == 0);
    }
    return e;
}

/* layer_types, where the file has it, says to which layers the window applies; else the family. */
static err read_window_layers(const json_t *o, const char *where, const family *f,
                              llama_config *c) {
    const json_t *list;
    int64_t first = 28; /* max_window_layers of transformers */
    err e = get_list(o, "layer_types", c->layers, where, &list);
    if (!e.code && !list && f->windows == WINDOW_LAST)
        e = json_opt_int(o, "max_window_layers", 0, INT32_MAX, where, &first);
    for (int64_t l = 0; l < c->layers && !e.code; l++) {
        const char *type = json_string_value(json_array_get(list, (size_t)l));
        bool on = f->windows == WINDOW_ALWAYS ||
                  (f->windows == WINDOW_LAST ? l >= first : layer_flags_has(&c->no_rope, l));
        if (list &&
            (!type || (strcmp(type, "full_attention") && strcmp(type, "sliding_attention"))))
            return err_make(ERR_INPUT, where, READABLE,
                            "\"layer_types\" of layer %" PRId64 " is %.60s, not full_attention or "
                            "sliding_attention",
                            l, type ? type : "not a name");
        if (type) on = !strcmp(type, "sliding_attention");
        layer_flags_put(&c->unwindowed, l, !on);
    }
    return e;
}

static err read_windows(const json_t *o, const char *where, const family *f, llama_config *c) {
    bool used = f->windows == WINDOW_ALWAYS;
    if (f->windows == WINDOW_NEVER) return err_none();
    err e = used ? err_none() : json_opt_bool(o, "use_sliding_window", where, &used);
    if (e.code || !used) return e;
    const json_t *w = json_object_get(o, "sliding_window");
    c->sliding_window = w ? 0 : f->sliding_window; /* null: none; absent: the default */
    e = json_opt_int(o, "sliding_window", 1, INT32_MAX, where, &c->sliding_window);
    if (e.code || !c->sliding_window) return e;
    return read_window_layers(o, where, f, c);
}

/* Granite: x = e E[id] at first, x += m f(norm(x)) in each half of a block, scores times a, logits
 * over s. With y = x / m the same is y = (e / m) E[id], y += f(norm(m y)), and
 *     norm(m y) = m y / sqrt(mean(m^2 y^2) + eps) = y / sqrt(mean(y^2) + eps / m^2),
 * so a block is LLaMA's, with another eps and another size of the embedding. 1/s goes into the gain
 * of the last norm when it is loaded, exactly, since s is a power of two. */
static err read_multipliers(const json_t *o, const char *where, llama_config *c) {
    double embedding = 1, residual = 1, attention = 1, logits = 1;
    int exponent;
    err e = read_real_in(o, "embedding_multiplier", 1e-6, 1e6, where, &embedding);
    if (!e.code) e = read_real_in(o, "residual_multiplier", 1e-6, 1e6, where, &residual);
    if (!e.code) e = read_real_in(o, "attention_multiplier", 1e-6, 1e6, where, &attention);
    if (!e.code) e = read_real_in(o, "logits_scaling", 1e-6, 1e6, where, &logits);
    if (e.code) return e;
    if (frexp(logits, &exponent) != 0.5)
        return err_make(ERR_INPUT, where, READABLE,
                        "logits_scaling is %g; only powers of two can be read, as all published "
                        "models have",
                        logits);
    c->embed_scale = embedding / residual;
    c->rms_eps /= residual * residual;
    c->score_scale = attention;
    c->logit_scale = 1 / logits;
    return e;
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
    c.rope_theta = f->rope_theta;
    c.tied = f->tied;
    c.qk_norm = f->qk_norm;
    e = read_sizes(o, where, &c);
    if (!e.code) e = read_heads(o, where, f, &c);
    if (!e.code) e = read_real_in(o, "rms_norm_eps", 0, 1, where, &c.rms_eps);
    if (!e.code) e = read_rope(o, where, &c);
    if (!e.code) e = read_flags(o, where, f, &c);
    if (!e.code && f->skips_rope) e = read_rope_layers(o, where, &c);
    if (!e.code) e = read_windows(o, where, f, &c);
    if (!e.code && f->multipliers) e = read_multipliers(o, where, &c);
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

/* The pair, as a real number, that turns so many times within the original context. */
static double yarn_pair(const llama_config *c, double turns) {
    const double TWO_PI = 6.283185307179586476925286766559;
    const double span = (double)c->rope.original_max_positions / (turns * TWO_PI);
    return (double)c->head_dim * log(span) / (2 * log(c->rope_theta));
}

/* YaRN: pairs before `low` are kept, those behind `high` slowed by the factor, between them the two
 * are blended linearly in the number of the pair. Bounds as transformers has them. */
static double yarn_freq(const llama_config *c, int64_t i, double freq) {
    double low = yarn_pair(c, c->rope.beta_fast), high = yarn_pair(c, c->rope.beta_slow);
    if (c->rope.truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, (double)(c->head_dim - 1));
    if (low == high) high += 0.001;
    const double slowed = fmin(fmax(((double)i - low) / (high - low), 0), 1);
    return slowed * freq / c->rope.factor + (1 - slowed) * freq;
}

double llama_rope_gain(const llama_config *cfg) {
    return cfg->rope.kind == ROPE_YARN ? cfg->rope.gain : 1;
}

void llama_inv_freq(const llama_config *cfg, double *inv) {
    for (int64_t i = 0; i < cfg->head_dim / 2; i++) {
        double freq = 1 / pow(cfg->rope_theta, (double)(2 * i) / (double)cfg->head_dim);
        if (cfg->rope.kind == ROPE_LINEAR) freq /= cfg->rope.factor;
        if (cfg->rope.kind == ROPE_LLAMA3) freq = llama3_freq(&cfg->rope, freq);
        if (cfg->rope.kind == ROPE_YARN) freq = yarn_freq(cfg, i, freq);
        inv[i] = freq;
    }
}
