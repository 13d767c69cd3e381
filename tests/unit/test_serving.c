/* What config.json and the model card say of inputs and of R4, and the tensor of R4: held against
 * the texts that readers of compressed-tensors take, written out here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/json.h"
#include "rotations/hadamard.h"
#include "shard/layout.h"
#include "shard/loader_rules.h"
#include "shard/small_files.h"
#include "tests/unit/small_archive.h"

#include <stdlib.h>
#include <string.h>

static llama_config small_config(void) {
    return as_llama((llama_config){.hidden = 64,
                                   .intermediate = 192,
                                   .layers = 2,
                                   .heads = 2,
                                   .kv_heads = 1,
                                   .head_dim = 32,
                                   .vocab = 50});
}

static layout *make(const layout_options *o, bool mlp_bias) {
    llama_config c = small_config();
    c.mlp_bias = mlp_bias;
    layout *l;
    assert_int_equal(layout_create(&c, o, &l).code, 0);
    return l;
}

/* quantization_config of the archive; the whole config.json in *whole (json_decref). */
static json_t *quantization_of(const layout *l, json_t **whole) {
    json_t *source = json_pack("{s:I}", "num_hidden_layers", (json_int_t)layout_config(l)->layers);
    small_options o = {.name = "m", .config = source};
    char *text;
    size_t len;
    assert_int_equal(small_config_text(l, &o, &text, &len).code, 0);
    assert_int_equal(json_parse(text, len, "config.json", whole).code, 0);
    free(text);
    json_decref(source);
    return json_object_get(*whole, "quantization_config");
}

static json_t *parse(const char *text) {
    json_t *v;
    assert_int_equal(json_parse(text, strlen(text), "wanted", &v).code, 0);
    return v;
}

static void check_equal(const json_t *got, const char *want) {
    json_t *w = parse(want);
    if (!json_equal(got, w)) fail_msg("%s is not %s", json_dumps(got, JSON_ENCODE_ANY), want);
    json_decref(w);
}

static json_t *group_of(const json_t *q) {
    return json_object_get(json_object_get(q, "config_groups"), "group_0");
}

static void test_inputs(void **state) {
    (void)state;
    static const struct {
        form_inputs inputs;
        const char *want;
    } all[] = {
        {{.bits = 8},
         "{\"num_bits\": 8, \"type\": \"int\", \"symmetric\": true, \"strategy\": \"token\", "
         "\"dynamic\": true}"},
        {{.bits = 4},
         "{\"num_bits\": 4, \"type\": \"int\", \"symmetric\": true, \"strategy\": \"token\", "
         "\"dynamic\": true}"},
        {{.bits = 4, .group = 32},
         "{\"num_bits\": 4, \"type\": \"int\", \"symmetric\": true, \"strategy\": \"group\", "
         "\"dynamic\": true, \"group_size\": 32}"},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        layout_options o = layout_plain(4, 32, true, 1 << 20);
        o.linears.inputs = all[i].inputs;
        layout *l = make(&o, false);
        json_t *whole, *q = quantization_of(l, &whole), *group = group_of(q);
        check_equal(json_object_get(group, "input_activations"), all[i].want);
        /* in the group too: else compressed-tensors takes the form for int-quantized */
        check_equal(json_object_get(group, "format"), "\"pack-quantized\"");
        form_scheme back;
        assert_int_equal(loader_scheme_parse(whole, "c", &back).code, 0);
        assert_int_equal(back.inputs.bits, all[i].inputs.bits);
        assert_int_equal(back.inputs.group, all[i].inputs.group);
        assert_false(back.online.r4);
        json_object_set_new(group, "format", json_string("int-quantized"));
        assert_int_equal(loader_scheme_parse(whole, "c", &back).code, ERR_VERIFY);
        json_decref(whole);
        layout_destroy(&l);
    }
}

/* Inputs of down_proj with bits of their own are a second group, which comes back. */
static void test_inputs_of_down(void **state) {
    (void)state;
    for (int down = 8; down <= 16; down += 8) {
        layout_options o = layout_plain(4, 32, true, 1 << 20);
        o.linears.inputs = (form_inputs){.bits = 4, .group = 32, .down_bits = down};
        layout *l = make(&o, false);
        json_t *whole, *q = quantization_of(l, &whole),
                       *groups = json_object_get(q, "config_groups"),
                       *one = json_object_get(groups, "group_1");
        check_equal(json_object_get(group_of(q), "targets"), "[\"re:.*(q|k|v|o|gate|up)_proj$\"]");
        check_equal(json_object_get(one, "targets"), "[\"re:.*down_proj$\"]");
        check_equal(json_object_get(one, "format"), "\"pack-quantized\"");
        check_equal(json_object_get(one, "input_activations"),
                    down == 8 ? "{\"num_bits\": 8, \"type\": \"int\", \"symmetric\": true, "
                                "\"strategy\": \"group\", \"dynamic\": true, \"group_size\": 32}"
                              : "null");
        form_scheme back;
        assert_int_equal(loader_scheme_parse(whole, "c", &back).code, 0);
        assert_int_equal(back.inputs.bits, 4);
        assert_int_equal(back.inputs.group, 32);
        assert_int_equal(back.inputs.down_bits, down);
        const struct {
            const char *section, *key;
            json_t *value;
        } bad[] = {{"weights", "num_bits", json_integer(8)},
                   {"weights", "group_size", json_integer(64)},
                   {NULL, "targets", json_pack("[s]", "re:.*up_proj$")},
                   {down == 8 ? "input_activations" : NULL, down == 8 ? "group_size" : "targets",
                    down == 8 ? json_integer(64) : json_array()}};
        for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
            json_t *at = bad[i].section ? json_object_get(one, bad[i].section) : one,
                   *good = json_incref(json_object_get(at, bad[i].key));
            json_object_set_new(at, bad[i].key, bad[i].value);
            err e = loader_scheme_parse(whole, "c", &back);
            assert_int_equal(e.code, ERR_VERIFY);
            assert_non_null(
                strstr(e.what, strcmp(bad[i].key, "targets") ? "config_groups" : bad[i].key));
            json_object_set_new(at, bad[i].key, good);
        }
        json_object_del(groups, "group_0");
        assert_int_equal(loader_scheme_parse(whole, "c", &back).code, ERR_VERIFY);
        json_decref(whole);
        layout_destroy(&l);
    }
}

/* Inputs of 8 bits in some layers: two groups beside each other, with R4's key in both. */
static void test_inputs_by_layer(void **state) {
    (void)state;
    layout_options o = layout_plain(4, 32, true, 1 << 20);
    o.linears.inputs = (form_inputs){.bits = 4, .group = 32};
    o.linears.inputs.eight.at[INPUT_MLP].bits[0] = 2;
    o.linears.online = (form_online){.r4 = true, .r4_block = 64};
    layout *l = make(&o, false);
    json_t *whole, *q = quantization_of(l, &whole), *groups = json_object_get(q, "config_groups"),
                   *one = json_object_get(groups, "group_1");
    assert_int_equal(json_object_size(groups), 2);
    check_equal(json_object_get(one, "targets"), "[\"re:.*layers[.](1)[.].*(gate|up)_proj$\"]");
    check_equal(json_object_get(group_of(q), "targets"),
                "[\"re:.*(q|k|v)_proj$\", \"re:.*layers[.](0)[.].*(gate|up)_proj$\", "
                "\"re:.*o_proj$\", \"re:.*down_proj$\"]");
    check_equal(json_object_get(one, "input_activations"),
                "{\"num_bits\": 8, \"type\": \"int\", \"symmetric\": true, \"strategy\": "
                "\"group\", \"dynamic\": true, \"group_size\": 32}");
    assert_true(
        json_equal(json_object_get(one, "weights"), json_object_get(group_of(q), "weights")));
    assert_true(json_is_true(json_object_get(one, FORM_R4_KEY)));
    form_scheme back;
    assert_int_equal(loader_scheme_parse(whole, "c", &back).code, 0);
    assert_int_equal(back.inputs.bits, 4);
    assert_int_equal(back.inputs.group, 32);
    assert_int_equal(back.inputs.down_bits, 0);
    assert_memory_equal(&back.inputs.eight, &o.linears.inputs.eight, sizeof back.inputs.eight);
    /* a linear in two groups, and one that shares its input with a linear of other bits */
    static const char *const bad[] = {"[\"re:.*(gate|up)_proj$\"]",
                                      "[\"re:.*layers[.](1)[.].*up_proj$\"]"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        json_object_set_new(one, "targets", parse(bad[i]));
        err e = loader_scheme_parse(whole, "c", &back);
        assert_int_equal(e.code, ERR_VERIFY);
        assert_non_null(strstr(e.what, i ? "leave model.layers.1.mlp.gate_proj" : "2 groups have"));
    }
    json_decref(whole);
    layout_destroy(&l);
}

/* What else inputs could be is refused by its key. */
static void test_other_inputs(void **state) {
    (void)state;
    const struct {
        const char *key;
        json_t *value;
    } bad[] = {{"num_bits", json_integer(5)},   {"type", json_string("float")},
               {"symmetric", json_false()},     {"strategy", json_string("tensor")},
               {"group_size", json_integer(0)}, {"dynamic", json_false()}};
    layout_options o = layout_plain(4, 32, true, 1 << 20);
    o.linears.inputs = (form_inputs){.bits = 4, .group = 32};
    layout *l = make(&o, false);
    json_t *whole, *q = quantization_of(l, &whole),
                   *in = json_object_get(group_of(q), "input_activations");
    form_scheme back;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        json_t *good = json_incref(json_object_get(in, bad[i].key));
        json_object_set_new(in, bad[i].key, bad[i].value);
        err e = loader_scheme_parse(whole, "c", &back);
        assert_int_equal(e.code, ERR_VERIFY);
        assert_non_null(strstr(e.what, bad[i].key));
        json_object_set_new(in, bad[i].key, good);
    }
    assert_int_equal(loader_scheme_parse(whole, "c", &back).code, 0);
    json_decref(whole);
    layout_destroy(&l);
}

static char *card_of(const layout *l) {
    small_options o = {.name = "m"};
    char *text;
    size_t len;
    assert_int_equal(small_card_text(l, &o, &text, &len).code, 0);
    return text;
}

/* A block that transform_config can say. */
static void test_r4(void **state) {
    (void)state;
    layout_options o = layout_plain(4, 32, true, 1 << 20);
    o.linears.online = (form_online){.r4 = true, .r4_block = 64};
    layout *l = make(&o, false);
    json_t *whole, *q = quantization_of(l, &whole);
    check_equal(json_object_get(q, "transform_config"),
                "{\"config_groups\": {\"R4\": {\"type\": \"hadamard\", \"head_dim\": 64, "
                "\"apply\": [{\"targets\": [\"re:.*down_proj$\"], \"location\": \"input\"}]}}}");
    assert_true(json_is_true(json_object_get(group_of(q), FORM_R4_KEY)));
    form_scheme back;
    assert_int_equal(loader_scheme_parse(whole, "c", &back).code, 0);
    assert_true(back.online.r4 && back.online.r4_block == 64);
    json_t *scheme = json_object_get(
        json_object_get(json_object_get(q, "transform_config"), "config_groups"), "R4");
    json_object_set_new(scheme, "head_dim", json_integer(96)); /* no power of two */
    assert_int_equal(loader_scheme_parse(whole, "c", &back).code, ERR_VERIFY);
    json_decref(whole);
    const layout_slot *s = layout_find(l, "model.layers.0.mlp.down_proj.R4_input.weight");
    assert_true(s && s->n_dims == 2 && s->shape[0] == 64 && s->shape[1] == 64);
    assert_true(s->dtype == ST_BF16 && s->unit == 1);
    assert_null(layout_find(l, "model.layers.1.mlp.down_proj.R4_input.weight"));
    char *card = card_of(l);
    assert_non_null(strstr(card, "--tensor-parallel-size 1"));
    assert_null(strstr(card, "from_pretrained")); /* would give wrong results */
    assert_non_null(strstr(card, "lm_eval --model vllm"));
    free(card);
    layout_destroy(&l);
}

/* A block that it cannot say, or a bias that runtimes do not turn before: a type that is refused.
 */
static void test_r4_of_our_own(void **state) {
    (void)state;
    for (int bias = 0; bias < 2; bias++) {
        layout_options o = layout_plain(4, 32, true, 1 << 20);
        o.linears.online = (form_online){.r4 = true, .r4_block = bias ? 64 : 0};
        layout *l = make(&o, bias);
        json_t *whole, *q = quantization_of(l, &whole);
        const json_t *scheme = json_object_get(
            json_object_get(json_object_get(q, "transform_config"), "config_groups"), "R4");
        check_equal(json_object_get(scheme, "type"), "\"R4-of-spinshard-eval-alone\"");
        assert_true(json_is_true(json_object_get(group_of(q), FORM_R4_KEY)));
        form_scheme back;
        assert_int_equal(loader_scheme_parse(whole, "c", &back).code, 0);
        assert_true(back.online.r4 && !back.online.r4_block);
        json_decref(whole);
        char *card = card_of(l);
        assert_null(strstr(card, "vllm serve"));
        free(card);
        layout_destroy(&l);
    }
}

/* Rows are those of the Hadamard matrix that R4 turns by. */
static void test_r4_rows(void **state) {
    (void)state;
    enum { N = 64 };
    int8_t h[N * N];
    float row[N];
    assert_int_equal(hadamard_matrix(N, h).code, 0);
    for (int i = 0; i < N; i++) {
        form_r4_row(i, N, row);
        for (int j = 0; j < N; j++) {
            assert_true(row[j] == (float)h[i * N + j]);
            assert_true(h[i * N + j] == h[j * N + i]); /* so that its inverse is itself */
        }
    }
}

/* An FP8 cache: what compressed-tensors calls it, a scale for keys and one for values in each
 * layer, and back; what no reader here knows is refused. */
static void test_fp8_cache(void **state) {
    (void)state;
    layout_options o = layout_plain(4, 32, true, 1 << 20);
    layout *without = make(&o, false);
    o.linears.fp8_cache = true;
    layout *l = make(&o, false);
    json_t *whole, *q = quantization_of(l, &whole);
    form_scheme back;
    check_equal(
        json_object_get(q, "kv_cache_scheme"),
        "{\"num_bits\": 8, \"type\": \"float\", \"strategy\": \"tensor\", \"symmetric\": true, "
        "\"dynamic\": false}");
    const int64_t layers = layout_config(l)->layers;
    assert_int_equal(layout_count(l), layout_count(without) + 2 * layers);
    assert_true(layout_total_bytes(l) == layout_total_bytes(without) + 8 * (uint64_t)layers);
    const layout_slot *s = layout_find(l, "model.layers.0.self_attn.v_scale");
    assert_non_null(s);
    assert_true(s->dtype == ST_F32 && s->n_dims == 1 && s->shape[0] == 1);
    assert_non_null(layout_find(l, "model.layers.0.self_attn.k_scale"));
    assert_null(layout_find(l, "model.layers.0.self_attn.o_scale"));
    assert_int_equal(loader_scheme_parse(whole, "c", &back).code, 0);
    assert_true(back.fp8_cache);
    json_object_set_new(json_object_get(q, "kv_cache_scheme"), "strategy",
                        json_string("attn_head"));
    assert_int_equal(loader_scheme_parse(whole, "c", &back).code, ERR_VERIFY);
    json_object_set_new(q, "kv_cache_scheme", json_null());
    assert_int_equal(loader_scheme_parse(whole, "c", &back).code, 0);
    assert_false(back.fp8_cache);
    json_decref(whole);
    layout_destroy(&without);
    layout_destroy(&l);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_inputs),
                                       cmocka_unit_test(test_inputs_of_down),
                                       cmocka_unit_test(test_inputs_by_layer),
                                       cmocka_unit_test(test_other_inputs),
                                       cmocka_unit_test(test_r4),
                                       cmocka_unit_test(test_r4_of_our_own),
                                       cmocka_unit_test(test_r4_rows),
                                       cmocka_unit_test(test_fp8_cache)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
