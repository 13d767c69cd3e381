/* config.json and the tensor list: published hyperparameters with published parameter counts,
 * hand-made edits, and names, shapes and rotary frequencies taken with transformers. */
#include "base/file.h"
#include "model/config.h"
#include "model/tensors.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static err parse_text(const char *text, llama_config *out) {
    json_t *o;
    err e = json_parse(text, strlen(text), "config.json", &o);
    assert_int_equal(e.code, 0);
    e = llama_config_parse(o, "config.json", out);
    json_decref(o);
    return e;
}

/* Hyperparameters as the model cards and config files of these models state them. */
#define PUBLISHED(hidden, intermediate, layers, heads, kv_heads, vocab, positions, tied, more)     \
    "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_act\":\"silu\","  \
    "\"hidden_size\":" #hidden ",\"intermediate_size\":" #intermediate                             \
    ",\"num_hidden_layers\":" #layers ",\"num_attention_heads\":" #heads                           \
    ",\"num_key_value_heads\":" #kv_heads ",\"vocab_size\":" #vocab                                \
    ",\"max_position_embeddings\":" #positions ",\"rms_norm_eps\":1e-05,"                          \
    "\"tie_word_embeddings\":" #tied more "}"
#define LLAMA3(factor)                                                                             \
    ",\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":" #factor      \
    ",\"high_freq_factor\":4.0,\"low_freq_factor\":1.0,"                                           \
    "\"original_max_position_embeddings\":8192}"

#define LLAMA1_7B  PUBLISHED(4096, 11008, 32, 32, 32, 32000, 2048, false, "")
#define LLAMA2_70B PUBLISHED(8192, 28672, 80, 64, 8, 32000, 4096, false, ",\"rope_theta\":10000.0")
#define LLAMA31_8B PUBLISHED(4096, 14336, 32, 32, 8, 128256, 131072, false, LLAMA3(8.0))
#define LLAMA32_1B PUBLISHED(2048, 8192, 16, 32, 8, 128256, 131072, true, LLAMA3(32.0))

static void parse_good(const char *text, llama_config *out) {
    err e = parse_text(text, out);
    if (e.code) fail_msg("%s", e.what);
}

static void test_published_models(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int64_t params, tensors, kv_heads, head_dim, max_positions;
        bool tied;
    } MODELS[] = {
        {LLAMA1_7B, 6738415616, 291, 32, 128, 2048, false},
        {LLAMA2_70B, 68976648192, 723, 8, 128, 4096, false},
        {LLAMA31_8B, 8030261248, 291, 8, 128, 131072, false},
        {LLAMA32_1B, 1235814400, 146, 8, 64, 131072, true}, /* 147 with the tied head */
    };
    for (size_t i = 0; i < sizeof MODELS / sizeof MODELS[0]; i++) {
        llama_config c;
        parse_good(MODELS[i].text, &c);
        assert_string_equal(c.architecture, "LlamaForCausalLM");
        assert_string_equal(c.model_type, "llama");
        assert_int_equal(llama_params(&c), MODELS[i].params);
        assert_int_equal(llama_tensor_count(&c), MODELS[i].tensors);
        assert_int_equal(c.kv_heads, MODELS[i].kv_heads);
        assert_int_equal(c.head_dim, MODELS[i].head_dim);
        assert_int_equal(c.max_positions, MODELS[i].max_positions);
        assert_int_equal(c.tied, MODELS[i].tied);
        assert_int_equal(c.sliding_window, 0);
    }
}

/* Names and shapes are those that transformers gives the same config.json, biases and all. */
static void test_names_of_transformers(void **state) {
    (void)state;
    const char *data = getenv("SPINSHARD_TEST_DATA");
    char *path = file_join(data ? data : "tests/data", "goldens/made/config.json");
    char *list = file_join(data ? data : "tests/data", "goldens/names.json");
    json_t *config, *names;
    llama_config c;
    assert_int_equal(json_read_file(path, 1 << 20, &config).code, 0);
    assert_int_equal(llama_config_parse(config, path, &c).code, 0);
    assert_int_equal(json_read_file(list, 1 << 20, &names).code, 0);
    assert_int_equal(json_object_size(names), llama_tensor_count(&c));
    for (int64_t i = 0; i < llama_tensor_count(&c); i++) {
        llama_tensor t;
        llama_tensor_at(&c, i, &t);
        const json_t *shape = json_object_get(names, t.name);
        if (!shape) fail_msg("%s is not a name of transformers", t.name);
        assert_int_equal(json_array_size(shape), t.n_dims);
        assert_int_equal(json_integer_value(json_array_get(shape, 0)), t.rows);
        if (t.n_dims == 2) assert_int_equal(json_integer_value(json_array_get(shape, 1)), t.cols);
    }
    json_decref(config);
    json_decref(names);
    free(path);
    free(list);
}

/* Values of transformers 4.57, which computes them in fp32. */
static void test_llama3_frequencies(void **state) {
    (void)state;
    static const struct {
        int i;
        double inv;
    } WANT[] = {{0, 1.0},
                {1, 0.663601279258728},
                {8, 0.03760603070259094},
                {14, 0.0032114461064338684},
                {16, 0.000429556705057621},
                {20, 8.570255886297673e-06},
                {24, 1.6619674170215148e-06},
                {31, 9.418306490260875e-08}};
    llama_config c;
    parse_good(LLAMA32_1B, &c);
    assert_int_equal(c.rope.kind, ROPE_LLAMA3);
    double inv[32];
    llama_inv_freq(&c, inv);
    for (size_t k = 0; k < sizeof WANT / sizeof WANT[0]; k++)
        assert_true(fabs(inv[WANT[k].i] / WANT[k].inv - 1) < 1e-6);
}

#define SMALL                                                                                      \
    "\"hidden_size\":64,\"intermediate_size\":176,\"num_hidden_layers\":2,"                        \
    "\"num_attention_heads\":8,\"vocab_size\":100"
#define LLAMA   "{\"architectures\":[\"LlamaForCausalLM\"]," SMALL
#define MISTRAL "{\"architectures\":[\"MistralForCausalLM\"],\"model_type\":\"mistral\"," SMALL
#define QWEN2   "{\"architectures\":[\"Qwen2ForCausalLM\"],\"model_type\":\"qwen2\"," SMALL
#define QWEN3   "{\"architectures\":[\"Qwen3ForCausalLM\"],\"model_type\":\"qwen3\"," SMALL
#define SMOLLM3 "{\"architectures\":[\"SmolLM3ForCausalLM\"],\"model_type\":\"smollm3\"," SMALL

static void test_defaults(void **state) {
    (void)state;
    llama_config c;
    assert_int_equal(parse_text(LLAMA "}", &c).code,
                     0); /* as the first LLaMA files: little is said */
    assert_int_equal(c.kv_heads, 8);
    assert_int_equal(c.head_dim, 8);
    assert_int_equal(c.max_positions, 2048);
    assert_true(c.rope_theta == 10000 && c.rms_eps == 1e-6 && c.rope.kind == ROPE_NONE);
    assert_false(c.tied || c.qkv_bias || c.o_bias || c.mlp_bias);
    assert_int_equal(c.sliding_window, 0);
    assert_int_equal(c.bos, -1);
    assert_int_equal(parse_text("{\"architectures\":[\"LLaMAForCausalLM\"]," SMALL "}", &c).code,
                     0);
    assert_string_equal(c.architecture, "LlamaForCausalLM");
    assert_int_equal(parse_text("{\"model_type\":\"llama\"," SMALL "}", &c).code, 0);
    assert_int_equal(parse_text(MISTRAL "}", &c).code, 0);
    assert_int_equal(c.kv_heads, 8);
    assert_int_equal(c.max_positions, 131072);
    assert_int_equal(c.sliding_window, 4096);
    assert_string_equal(c.model_type, "mistral");
    assert_int_equal(parse_text(MISTRAL ",\"sliding_window\":null,\"head_dim\":null}", &c).code, 0);
    assert_int_equal(c.sliding_window, 0);
    assert_int_equal(c.head_dim, 8);
    assert_int_equal(parse_text(MISTRAL ",\"sliding_window\":32}", &c).code, 0);
    assert_int_equal(c.sliding_window, 32);
    assert_true(llama_window_of(&c, 0) == 32 && llama_window_of(&c, 1) == 32);
    /* As Ministral has it, under its own name in files of transformers 5. */
    static const char layers[] =
        ",\"sliding_window\":32,\"layer_types\":[\"full_attention\",\"sliding_attention\"]}";
    char text[600];
    snprintf(text, sizeof text, "%s%s", MISTRAL, layers);
    assert_int_equal(parse_text(text, &c).code, 0);
    assert_true(llama_window_of(&c, 0) == 0 && llama_window_of(&c, 1) == 32);
    snprintf(text, sizeof text, "{\"model_type\":\"ministral\",%s%s", SMALL, layers);
    assert_int_equal(parse_text(text, &c).code, 0);
    assert_string_equal(c.architecture, "MinistralForCausalLM");
    assert_true(llama_window_of(&c, 0) == 0 && llama_window_of(&c, 1) == 32);
}

static void test_stated_values(void **state) {
    (void)state;
    llama_config c;
    err e = parse_text(LLAMA ",\"num_key_value_heads\":2,\"head_dim\":16,\"rms_norm_eps\":1e-5,"
                             "\"rope_theta\":500000,\"tie_word_embeddings\":true,"
                             "\"attention_bias\":true,\"mlp_bias\":true,\"bos_token_id\":1,"
                             "\"eos_token_id\":[2,7],\"max_position_embeddings\":512}",
                       &c);
    assert_int_equal(e.code, 0);
    assert_int_equal(c.kv_heads, 2);
    assert_int_equal(c.head_dim, 16);
    assert_true(c.rope_theta == 500000 && c.rms_eps == 1e-5);
    assert_true(c.tied && c.qkv_bias && c.o_bias && c.mlp_bias);
    assert_int_equal(c.bos, 1);
    /* By hand: q and o 64 * 128, k and v 64 * 32, gate, up, down 64 * 176, biases 128 + 32 + 32 +
     * 64 and 176 + 176 + 64, norms 2 * 64; then the embedding and the final norm. */
    int64_t layer = 2 * 64 * 128 + 2 * 64 * 32 + 3 * 64 * 176 + 256 + 416 + 128;
    assert_int_equal(llama_layer_params(&c), layer);
    assert_int_equal(llama_params(&c), 2 * layer + 100 * 64 + 64);
}

/* What nothing reads may be anything; what is read may not. */
static void test_not_read(void **state) {
    (void)state;
    llama_config c;
    json_t *o;
    const char *text = LLAMA ",\"eos_token_id\":[1,2,3,4,5,6,7,8,9,10,11,12],\"bos_token_id\":[1],"
                             "\"pad_token_id\":-1,\"x\":NaN,\"y\":[-Infinity,1e999],\"x\":"
                             "18446744073709551616,\"rms_norm_eps\":1e-5}";
    assert_int_equal(json_parse_foreign(text, strlen(text), "config.json", &o).code, 0);
    assert_int_equal(llama_config_parse(o, "config.json", &c).code, 0);
    assert_int_equal(c.bos, -1);
    assert_true(c.rms_eps == 1e-5);
    char *out = json_dumps(o, JSON_COMPACT);
    json_unmark(out);
    assert_non_null(strstr(out, "\"x\":18446744073709551616,\"y\":[-Infinity,1e999],"));
    free(out);
    json_decref(o);
    text = LLAMA ",\"rms_norm_eps\":NaN}";
    assert_int_equal(json_parse_foreign(text, strlen(text), "config.json", &o).code, 0);
    err e = llama_config_parse(o, "config.json", &c);
    assert_int_equal(e.code, ERR_INPUT);
    assert_non_null(strstr(e.what, "\"rms_norm_eps\" must be a number"));
    json_decref(o);
    static const char *const BAD[] = {"{\"a\":nan}", "{\"a\":1,}", "{\"a\":Infinity", "NaN NaN",
                                      "\"NaN"};
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++)
        assert_int_equal(json_parse_foreign(BAD[i], strlen(BAD[i]), "x", &o).code, ERR_INPUT);
}

/* Both spellings of transformers: 4 has rope_scaling beside rope_theta, 5 has one object. */
static void test_rope_spellings(void **state) {
    (void)state;
    static const char *const LINEAR[] = {
        LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":4.0}}",
        LLAMA ",\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":4}}",
        LLAMA
        ",\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":4.0,\"rope_theta\":10000.0}}",
        LLAMA ",\"rope_theta\":1e4,\"rope_scaling\":{\"type\":\"linear\",\"rope_type\":\"linear\","
              "\"factor\":4},\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":4.0,"
              "\"rope_theta\":10000.0}}", /* the same, said in every place */
    };
    /* Values of transformers 4.57 for head_dim 8. */
    static const double WANT[] = {0.25, 0.025, 0.0025, 0.00025};
    llama_config c;
    double inv[4];
    for (int k = 0; k < 4; k++) {
        assert_int_equal(parse_text(LINEAR[k], &c).code, 0);
        assert_int_equal(c.rope.kind, ROPE_LINEAR);
        llama_inv_freq(&c, inv);
        for (int i = 0; i < 4; i++) assert_true(fabs(inv[i] / WANT[i] - 1) < 1e-12);
    }
    err e = parse_text(LLAMA ",\"rope_parameters\":{\"rope_type\":\"llama3\",\"factor\":8.0,"
                             "\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
                             "\"original_max_position_embeddings\":8192,\"rope_theta\":500000.0}}",
                       &c);
    assert_int_equal(e.code, 0);
    assert_true(c.rope.kind == ROPE_LLAMA3 && c.rope_theta == 500000 && c.rope.factor == 8);
    assert_int_equal(c.rope.original_max_positions, 8192);
    assert_int_equal(parse_text(LLAMA ",\"rope_parameters\":{\"rope_type\":\"default\","
                                      "\"rope_theta\":1000000.0}}",
                                &c)
                         .code,
                     0);
    assert_true(c.rope.kind == ROPE_NONE && c.rope_theta == 1000000);
}

/* Defaults of Qwen2Config, Qwen3Config and SmolLM3Config of transformers 4.57, and what their keys
 * say of single layers. */
static void test_other_families(void **state) {
    (void)state;
    llama_config c;
    const char *heads = ",\"num_key_value_heads\":2}";
    char text[600];
    snprintf(text, sizeof text, "%s%s", QWEN2, heads);
    parse_good(text, &c);
    assert_true(c.qkv_bias && !c.o_bias && !c.mlp_bias && !c.qk_norm && !c.tied);
    assert_true(c.max_positions == 32768 && c.rope_theta == 10000 && c.head_dim == 8);
    assert_int_equal(c.sliding_window, 0); /* use_sliding_window is false */
    parse_good(QWEN2 ",\"num_key_value_heads\":2,\"sliding_window\":64,\"use_sliding_window\":true,"
                     "\"max_window_layers\":1}",
               &c);
    assert_int_equal(llama_window_of(&c, 0), 0);
    assert_int_equal(llama_window_of(&c, 1), 64);
    parse_good(QWEN3 ",\"num_key_value_heads\":2,\"use_sliding_window\":true,\"layer_types\":"
                     "[\"sliding_attention\",\"full_attention\"]}",
               &c);
    assert_int_equal(llama_window_of(&c, 0), 4096);
    assert_int_equal(llama_window_of(&c, 1), 0);
    assert_true(c.qk_norm && !c.qkv_bias && !c.o_bias && c.head_dim == 128);
    parse_good(QWEN3 ",\"num_key_value_heads\":2,\"attention_bias\":true,\"mlp_bias\":true,"
                     "\"head_dim\":16}",
               &c);
    assert_true(c.qkv_bias && c.o_bias && !c.mlp_bias && c.head_dim == 16);
    llama_tensor t;
    assert_true(llama_tensor_of(&c, ROLE_K_NORM, 1, &t));
    assert_string_equal(t.name, "model.layers.1.self_attn.k_norm.weight");
    assert_true(t.rows == 16 && t.n_dims == 1);
    assert_int_equal(llama_tensor_count(&c), 1 + 2 * (2 + 7 + 4 + 2) + 2);
    parse_good(SMOLLM3 "}", &c);
    assert_true(c.tied && c.kv_heads == 4 && c.rope_theta == 2e6 && c.sliding_window == 0);
    assert_true(llama_has_rope(&c, 0) && llama_has_rope(&c, 1)); /* every 4th has none */
    parse_good(
        SMOLLM3 ",\"no_rope_layers\":[0,1],\"use_sliding_window\":true,\"sliding_window\":7}", &c);
    assert_true(!llama_has_rope(&c, 0) && llama_has_rope(&c, 1));
    assert_true(llama_window_of(&c, 0) == 7 && llama_window_of(&c, 1) == 0);
    parse_good(SMOLLM3 ",\"no_rope_layer_interval\":2,\"tie_word_embeddings\":false}", &c);
    assert_true(!c.tied && llama_has_rope(&c, 0) && !llama_has_rope(&c, 1));
}

/* Frequencies of transformers 4.57, whose arithmetic was made to run in double. */
static void test_yarn_and_dynamic(void **state) {
    (void)state;
#define LONG                                                                                       \
    "{\"model_type\":\"qwen2\",\"hidden_size\":128,\"intermediate_size\":8,\"num_hidden_layers\":" \
    "1,"                                                                                           \
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"vocab_size\":9,\"rope_theta\":1000000." \
    "0,"
    static const double PLAIN[] = {1.0,
                                   0.4216965034285823,
                                   0.17782794100389226,
                                   0.07498942093324558,
                                   0.03162277660168379,
                                   0.01333521432163324,
                                   0.0047799012641179675,
                                   0.0016599615939631586,
                                   0.00055,
                                   0.00016867860137143292,
                                   4.445698525097307e-05,
                                   1.8747355233311396e-05,
                                   7.905694150420949e-06,
                                   3.33380358040831e-06,
                                   1.4058533129758728e-06,
                                   5.928434264154138e-07};
    static const double ALL[] = {1.0,
                                 0.4216965034285823,
                                 0.17782794100389226,
                                 0.07498942093324558,
                                 0.02980882444853516,
                                 0.008226093613207466,
                                 0.001636987951702068,
                                 0.00014821085660385343,
                                 6.25e-05,
                                 2.6356031464286393e-05,
                                 1.1114246312743267e-05,
                                 4.686838808327849e-06,
                                 1.976423537605237e-06,
                                 8.334508951020775e-07,
                                 3.514633282439682e-07,
                                 1.4821085660385345e-07};
    static const struct {
        const char *text;
        const double *inv, gain;
    } CASES[] = {
        {LONG "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0,"
              "\"original_max_position_embeddings\":32768}}",
         PLAIN, 1.138629436111989},
        {LONG "\"rope_parameters\":{\"rope_type\":\"yarn\",\"factor\":4.0,\"rope_theta\":1e6}}",
         PLAIN, 1.138629436111989}, /* max_position_embeddings stands for the original context */
        {LONG "\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":16.0,\"beta_fast\":24,"
              "\"beta_slow\":2,\"mscale\":0.707,\"mscale_all_dim\":1.2,\"truncate\":false,"
              "\"original_max_position_embeddings\":4096}}",
         ALL, 0.8974356328974439},
        {LONG "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4.0,\"attention_factor\":1.5}}",
         PLAIN, 1.5},
    };
    llama_config c;
    double inv[16];
    for (size_t k = 0; k < sizeof CASES / sizeof *CASES; k++) {
        parse_good(CASES[k].text, &c);
        llama_inv_freq(&c, inv);
        for (int i = 0; i < 16; i++) assert_true(fabs(inv[i] / CASES[k].inv[i] - 1) < 1e-13);
        assert_true(fabs(llama_rope_gain(&c) / CASES[k].gain - 1) < 1e-14);
    }
    /* dynamic leaves windows up to max_position_embeddings alone */
    parse_good(LONG "\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2.0}}", &c);
    assert_true(c.rope.kind == ROPE_DYNAMIC && llama_rope_gain(&c) == 1);
    llama_inv_freq(&c, inv);
    for (int i = 0; i < 16; i++) assert_true(fabs(inv[i] * pow(1e6, i / 16.0) - 1) < 1e-13);
}

typedef struct refusal {
    const char *text, *message;
} refusal;

static const refusal REFUSED[] = {
    {"[]", "not a JSON object"},
    {"{" SMALL "}", "neither architectures nor model_type"},
    {"{\"architectures\":[]," SMALL "}", "list of names"},
    {"{\"architectures\":[3]," SMALL "}", "unknown architecture"},
    {"{\"architectures\":[\"GPT2LMHeadModel\"]," SMALL "}", "unknown architecture GPT2LMHeadModel"},
    {"{\"architectures\":[\"Gemma2ForCausalLM\"]," SMALL "}", "1 + w"},
    {"{\"architectures\":[\"Gemma3ForCausalLM\"]," SMALL "}", "Gemma3ForCausalLM is not supported"},
    {"{\"architectures\":[\"Phi3ForCausalLM\"]," SMALL "}", "one tensor each"},
    {"{\"architectures\":[\"MixtralForCausalLM\"]," SMALL "}", "experts"},
    {"{\"architectures\":[\"Qwen3MoeForCausalLM\"]," SMALL "}", "experts"},
    {"{\"model_type\":\"qwen2_moe\"," SMALL "}", "experts"},
    {"{\"architectures\":[\"Qwen2_5_VLForConditionalGeneration\"]," SMALL "}", "vision"},
    {"{\"architectures\":[\"LlamaForSequenceClassification\"]," SMALL "}", "LlamaForSequence"},
    {"{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"gemma\"," SMALL "}", "gemma"},
    {"{\"model_type\":\"gpt2\"," SMALL "}", "unknown model_type gpt2"},
    {"{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"qwen2\"," SMALL "}", "qwen2"},
    {QWEN3
     ",\"num_key_value_heads\":2,\"use_sliding_window\":true,\"layer_types\":[\"full_attention\"]}",
     "layer_types"},
    {QWEN3 ",\"num_key_value_heads\":2,\"use_sliding_window\":true,\"layer_types\":[\"full_"
           "attention\",\"other\"]}",
     "other"},
    {SMOLLM3 ",\"no_rope_layers\":[1]}", "no_rope_layers"},
    {SMOLLM3 ",\"no_rope_layers\":[1,\"x\"]}", "0 and 1"},
    {"{\"model_type\":\"granite\",\"logits_scaling\":6," SMALL "}", "powers of two"},
    {"{\"model_type\":\"granitemoehybrid\"," SMALL "}", "experts"},
    {LLAMA ",\"rope_scaling\":{\"type\":\"yarn\"}}", "\"factor\" is missing"},
    {LLAMA ",\"rope_scaling\":{\"type\":\"dynamic\",\"rope_type\":\"linear\",\"factor\":2}}",
     "the type \"dynamic\" and the rope_type \"linear\""},
    {LLAMA
     ",\"rope_theta\":10000,\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":5e5}}",
     "\"rope_theta\" is 10000, and 500000"},
    {LLAMA
     ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2},\"rope_parameters\":{\"rope_type\":"
     "\"linear\",\"factor\":4}}",
     "rope_scaling and rope_parameters differ"},
    {LLAMA
     ",\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"default\",\"rope_theta\":5e5}}}",
     "its own \"full_attention\""},
    {LLAMA ",\"rope_theta\":1,\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2}}", "not above 1"},
    {"{\"architectures\":[\"LlamaForCausalLM\"]}", "\"hidden_size\" is missing"},
    {LLAMA ",\"hidden_act\":\"gelu\"}", "gelu"},
    {LLAMA ",\"num_key_value_heads\":3}", "cannot share"},
    {LLAMA ",\"num_key_value_heads\":0}", "num_key_value_heads"},
    {LLAMA ",\"num_key_value_heads\":16}", "cannot share"},
    {LLAMA ",\"head_dim\":7}", "even"},
    {LLAMA ",\"head_dim\":0}", "head_dim"},
    {LLAMA ",\"head_dim\":\"8\"}", "head_dim"},
    {LLAMA ",\"max_position_embeddings\":0}", "max_position_embeddings"},
    {LLAMA ",\"rms_norm_eps\":-1}", "rms_norm_eps"},
    {LLAMA ",\"rms_norm_eps\":\"1e-5\"}", "rms_norm_eps"},
    {LLAMA ",\"rope_theta\":0}", "rope_theta"},
    {LLAMA ",\"tie_word_embeddings\":1}", "tie_word_embeddings"},
    {LLAMA ",\"rope_scaling\":[]}", "rope_scaling"},
    {LLAMA ",\"rope_scaling\":{\"rope_type\":\"longrope\",\"factor\":4.0}}", "longrope"},
    {LLAMA ",\"rope_scaling\":{\"type\":\"dynamic\"}}", "\"factor\" is missing"},
    {LLAMA ",\"rope_scaling\":{\"type\":\"linear\"}}", "\"factor\" is missing"},
    {LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":0.5}}", "factor"},
    {LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8}}", "low_freq_factor"},
    {LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,"
           "\"high_freq_factor\":4,\"original_max_position_embeddings\":8192}}",
     "not above"},
    {LLAMA ",\"partial_rotary_factor\":0.5}", "partial_rotary_factor"},
    {"{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":65,\"intermediate_size\":1,"
     "\"num_hidden_layers\":1,\"num_attention_heads\":8,\"vocab_size\":1}",
     "not a multiple"},
    {"{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":1048576,\"intermediate_size\":1,"
     "\"num_hidden_layers\":1,\"num_attention_heads\":65536,\"head_dim\":512,\"vocab_size\":1}",
     "the product"},
    {"{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":9223372036854775807}",
     "hidden_size"},
    {"{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":64.0}", "hidden_size"},
    {"{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":-64}", "hidden_size"},
};

static void test_refusals(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof REFUSED / sizeof REFUSED[0]; i++) {
        llama_config c;
        err e = parse_text(REFUSED[i].text, &c);
        if (e.code != ERR_INPUT || !strstr(e.what, REFUSED[i].message))
            fail_msg("%s: expected \"%s\", got %d %s", REFUSED[i].text, REFUSED[i].message, e.code,
                     e.what);
    }
}

static void assert_tensor(const llama_config *c, int64_t i, const char *name, int64_t rows,
                          int64_t cols) {
    llama_tensor t, again;
    llama_tensor_at(c, i, &t);
    assert_string_equal(t.name, name);
    assert_int_equal(t.rows, rows);
    assert_int_equal(t.cols, cols);
    assert_int_equal(t.n_dims, strstr(name, "norm") || strstr(name, "bias") ? 1 : 2);
    assert_true(llama_tensor_of(c, t.role, t.layer, &again));
    assert_string_equal(again.name, name);
}

static void test_order(void **state) {
    (void)state;
    llama_config c;
    assert_int_equal(parse_text(LLAMA ",\"num_key_value_heads\":2,\"head_dim\":4}", &c).code, 0);
    assert_int_equal(llama_tensor_count(&c), 1 + 2 * 9 + 2);
    assert_tensor(&c, 0, "model.embed_tokens.weight", 100, 64);
    assert_tensor(&c, 1, "model.layers.0.input_layernorm.weight", 64, 1);
    assert_tensor(&c, 2, "model.layers.0.self_attn.q_proj.weight", 32, 64);
    assert_tensor(&c, 3, "model.layers.0.self_attn.k_proj.weight", 8, 64);
    assert_tensor(&c, 4, "model.layers.0.self_attn.v_proj.weight", 8, 64);
    assert_tensor(&c, 5, "model.layers.0.self_attn.o_proj.weight", 64, 32);
    assert_tensor(&c, 6, "model.layers.0.post_attention_layernorm.weight", 64, 1);
    assert_tensor(&c, 7, "model.layers.0.mlp.gate_proj.weight", 176, 64);
    assert_tensor(&c, 8, "model.layers.0.mlp.up_proj.weight", 176, 64);
    assert_tensor(&c, 9, "model.layers.0.mlp.down_proj.weight", 64, 176);
    assert_tensor(&c, 10, "model.layers.1.input_layernorm.weight", 64, 1);
    assert_tensor(&c, 19, "model.norm.weight", 64, 1);
    assert_tensor(&c, 20, "lm_head.weight", 100, 64);
}

static void test_order_with_biases(void **state) {
    (void)state;
    llama_config c;
    assert_int_equal(parse_text(LLAMA ",\"num_key_value_heads\":2,\"attention_bias\":true,"
                                      "\"mlp_bias\":true,\"tie_word_embeddings\":true}",
                                &c)
                         .code,
                     0);
    assert_int_equal(llama_tensor_count(&c), 1 + 2 * 16 + 1);
    assert_tensor(&c, 6, "model.layers.0.self_attn.q_proj.bias", 64, 1);
    assert_tensor(&c, 7, "model.layers.0.self_attn.k_proj.bias", 16, 1);
    assert_tensor(&c, 9, "model.layers.0.self_attn.o_proj.bias", 64, 1);
    assert_tensor(&c, 14, "model.layers.0.mlp.gate_proj.bias", 176, 1);
    assert_tensor(&c, 16, "model.layers.0.mlp.down_proj.bias", 64, 1);
    assert_tensor(&c, 32, "model.layers.1.mlp.down_proj.bias", 64, 1);
    assert_tensor(&c, 33, "model.norm.weight", 64, 1);
    llama_tensor t;
    assert_false(llama_tensor_of(&c, ROLE_HEAD, 0, &t));
    assert_int_equal(llama_role_bias(ROLE_O), ROLE_O_BIAS);
    assert_int_equal(llama_role_bias(ROLE_DOWN), ROLE_DOWN_BIAS);
    /* The sum of the list is the count of parameters. */
    int64_t sum = 0;
    for (int64_t i = 0; i < llama_tensor_count(&c); i++) {
        llama_tensor_at(&c, i, &t);
        sum += t.rows * t.cols;
    }
    assert_int_equal(sum, llama_params(&c));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published_models),   cmocka_unit_test(test_names_of_transformers),
        cmocka_unit_test(test_llama3_frequencies), cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_stated_values),      cmocka_unit_test(test_rope_spellings),
        cmocka_unit_test(test_refusals),           cmocka_unit_test(test_order),
        cmocka_unit_test(test_other_families),     cmocka_unit_test(test_yarn_and_dynamic),
        cmocka_unit_test(test_not_read),           cmocka_unit_test(test_order_with_biases),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
