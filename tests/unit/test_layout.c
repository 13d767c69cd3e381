/* Layout: sums and shapes worked out by hand or by a formula that shares nothing with it, the order
 * that files need, and the small files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/json.h"
#include "base/yaml.h"
#include "io/safetensors.h"
#include "shard/layout.h"
#include "shard/loader_rules.h"
#include "shard/small_files.h"
#include "tests/unit/small_archive.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Odd sizes on purpose: 5 tokens, 3 rows of K, so that 2-byte tensors end anywhere. */
static llama_config odd_config(void) {
    return as_llama((llama_config){.hidden = 10,
                                   .intermediate = 7,
                                   .layers = 3,
                                   .heads = 3,
                                   .kv_heads = 1,
                                   .head_dim = 3,
                                   .vocab = 5,
                                   .qkv_bias = true,
                                   .o_bias = true,
                                   .mlp_bias = true});
}

static llama_config llama2_70b(void) {
    return as_llama((llama_config){.hidden = 8192,
                                   .intermediate = 28672,
                                   .layers = 80,
                                   .heads = 64,
                                   .kv_heads = 8,
                                   .head_dim = 128,
                                   .vocab = 32000});
}

static layout_options plain_options(int bits, int64_t group, bool symmetric) {
    return layout_plain(bits, group, symmetric, (uint64_t)4 << 30);
}

static layout *make(const llama_config *c, const layout_options *o) {
    layout *l;
    err e = layout_create(c, o, &l);
    if (e.code) fail_msg("%s: %s", e.where, e.what);
    return l;
}

/* 70B at 4 bits, groups of 128: a formula over the published shapes. */
static void test_70b(void **state) {
    (void)state;
    llama_config c = llama2_70b();
    layout_options o = plain_options(4, 128, true);
    layout *l = make(&c, &o);
    uint64_t linear = 2u * 8192 * 8192 + 2u * 1024 * 8192 + 3ull * 28672 * 8192;
    uint64_t layer = linear / 2 + linear / 128 * 2 + 7 * 16 + 2 * 8192 * 2;
    uint64_t ends = 2 * 32000ull * 8192 * 2 + 8192 * 2;
    assert_int_equal(layout_total_bytes(l), 80 * layer + ends);
    assert_int_equal(layout_count(l), 80 * (7 * 3 + 2) + 3);
    assert_int_equal(layout_units(l), 82);
    assert_int_equal(layout_unit_bytes(l, 0), 32000ull * 8192 * 2);
    assert_int_equal(layout_unit_bytes(l, 5), layer);
    assert_int_equal(layout_unit_bytes(l, 81), 32000ull * 8192 * 2 + 8192 * 2);
    /* 36.1 GB in parts of at most 4 GiB: nine, and no cut wastes more than one module */
    assert_int_equal(layout_parts(l), 9);
    uint64_t largest_module = 32000ull * 8192 * 2;
    for (int64_t p = 0; p < 9; p++) {
        assert_true(layout_part_bytes(l, p) <= o.shard_bytes);
        if (p < 8) assert_true(layout_part_bytes(l, p) > o.shard_bytes - largest_module);
    }
    char name[64];
    layout_shard_name(l, 8, name);
    assert_string_equal(name, "model-00009-of-00009.safetensors");
    layout_destroy(&l);
    assert_null(l);
}

static void test_shapes(void **state) {
    (void)state;
    llama_config c = llama2_70b();
    layout_options o = plain_options(3, 64, false);
    o.linears.scale_dtype = ST_F32;
    o.store_dtype = ST_F16;
    layout *l = make(&c, &o);
    const layout_slot *s = layout_find(l, "model.layers.79.self_attn.k_proj.weight_packed");
    assert_non_null(s);
    assert_true(s->dtype == ST_I32 && s->n_dims == 2 && s->unit == 80);
    assert_int_equal(s->shape[0], 1024);
    assert_int_equal(s->shape[1], 8192 * 3 / 32);
    s = layout_find(l, "model.layers.0.mlp.down_proj.weight_scale");
    assert_true(s->dtype == ST_F32 && s->shape[0] == 8192 && s->shape[1] == 28672 / 64);
    s = layout_find(l, "model.layers.0.mlp.up_proj.weight_zero_point");
    assert_true(s->dtype == ST_I32 && s->shape[0] == 28672 * 3 / 32 && s->shape[1] == 128);
    s = layout_find(l, "model.layers.0.mlp.up_proj.weight_shape");
    assert_true(s->dtype == ST_I64 && s->n_dims == 1 && s->shape[0] == 2 && s->bytes == 16);
    s = layout_find_role(l, ROLE_UP, 7, part_of("pack-quantized", FORM_SCALES));
    assert_string_equal(s->name, "model.layers.7.mlp.up_proj.weight_scale");
    s = layout_find_role(l, ROLE_HEAD, -1, NULL);
    assert_true(s->dtype == ST_F16 && s->shape[0] == 32000 && s->unit == 81);
    assert_null(layout_find(l, "model.layers.0.mlp.up_proj.weight"));
    assert_null(layout_find_role(l, ROLE_UP, 80, part_of("pack-quantized", FORM_SCALES)));
    assert_null(layout_find_role(l, ROLE_UP_BIAS, 0, NULL));
    layout_destroy(&l);
}

/* In units and in parts: no holes, every tensor on a multiple of its element size. */
static void check_order(const layout *l, uint64_t shard_bytes) {
    uint64_t *unit_sum = calloc((size_t)layout_units(l), sizeof *unit_sum);
    for (int64_t i = 0; i < layout_count(l); i++) {
        const layout_slot *s = layout_tensor(l, i), *before = i ? layout_tensor(l, i - 1) : NULL;
        uint64_t size = (uint64_t)st_dtype_bytes(s->dtype);
        if (before) assert_true(before->unit <= s->unit);
        assert_int_equal(s->unit_offset, unit_sum[s->unit]);
        unit_sum[s->unit] += s->bytes;
        assert_int_equal(s->unit_offset % size, 0);
        assert_int_equal(s->part_offset % size, 0);
        assert_true(layout_find(l, s->name) == s);
    }
    for (int64_t u = 0; u < layout_units(l); u++)
        assert_int_equal(unit_sum[u], layout_unit_bytes(l, u));
    free(unit_sum);
    for (int64_t p = 0; p < layout_parts(l); p++) {
        char *header, name[64];
        size_t len;
        st_header *h;
        layout_shard_name(l, p, name);
        assert_int_equal(layout_shard_header(l, p, &header, &len).code, 0);
        assert_int_equal(len % 8, 0);
        /* the strict reader refuses holes, overlaps, and sizes that do not fit */
        err e = st_header_parse(header + 8, len - 8, layout_part_bytes(l, p), name, &h);
        if (e.code) fail_msg("%s", e.what);
        assert_string_equal(st_header_metadata(h, "format"), "pt");
        int64_t sources = 0;
        for (int64_t i = 0; i < st_header_count(h); i++) {
            const layout_slot *s = layout_find(l, st_header_at(h, i)->name);
            assert_int_equal(s->part, p);
            assert_int_equal(s->part_offset, st_header_at(h, i)->begin);
            sources += !s->slot || s->slot->part == FORM_CODES;
        }
        if (layout_part_bytes(l, p) > shard_bytes) assert_int_equal(sources, 1);
        st_header_destroy(&h);
        free(header);
    }
}

static void test_order(void **state) {
    (void)state;
    llama_config c = odd_config();
    for (uint64_t shard_bytes = 1; shard_bytes < 20000; shard_bytes = shard_bytes * 3 + 7)
        for (int bits = 2; bits <= 8; bits++)
            for (int kind = 0; kind < 4; kind++) {
                layout_options o = plain_options(bits, 0, kind & 1);
                o.shard_bytes = shard_bytes;
                if (kind & 2) o.linears.scale_dtype = ST_F16, o.store_dtype = ST_F32;
                layout *l = make(&c, &o);
                /* a linear is never cut in two */
                for (int64_t i = 0; i < layout_count(l); i++) {
                    const layout_slot *s = layout_tensor(l, i);
                    if (!s->slot) continue;
                    const layout_slot *packed = layout_find_role(
                        l, s->source.role, s->source.layer, part_of("pack-quantized", FORM_CODES));
                    assert_int_equal(s->part, packed->part);
                }
                check_order(l, shard_bytes);
                layout_destroy(&l);
            }
}

static void test_tied(void **state) {
    (void)state;
    llama_config c = llama2_70b();
    c.tied = true;
    layout_options o = plain_options(4, 0, true);
    layout *l = make(&c, &o);
    assert_null(layout_find(l, "lm_head.weight"));
    assert_true(layout_config(l)->tied);
    layout_destroy(&l);
    o.untied = true;
    l = make(&c, &o);
    assert_non_null(layout_find(l, "lm_head.weight"));
    assert_false(layout_config(l)->tied);
    layout_destroy(&l);
}

static void test_refusals(void **state) {
    (void)state;
    llama_config c = llama2_70b();
    c.intermediate = 11008 + 32;
    layout *l;
    layout_options o = plain_options(4, 128, true);
    err e = layout_create(&c, &o, &l);
    assert_int_equal(e.code, ERR_USAGE);
    assert_non_null(strstr(e.what, "128"));
    assert_non_null(strstr(e.what, "11040"));
    assert_null(l);
    o = plain_options(9, 128, true);
    assert_int_equal(layout_create(&c, &o, &l).code, ERR_USAGE);
    o = plain_options(4, -1, true);
    assert_int_equal(layout_create(&c, &o, &l).code, ERR_USAGE);
    o = plain_options(4, 0, true);
    o.store_dtype = ST_I32;
    assert_int_equal(layout_create(&c, &o, &l).code, ERR_USAGE);
}

static const char SOURCE[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"torch_dtype\": \"float32\", "
    "\"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0, \"own\": {\"b\": 1, \"a\": 2}, "
    "\"tie_word_embeddings\": true, \"vocab_size\": 5}";

static json_t *config_of(const layout *l, const json_t *spinshard, char **text) {
    json_t *source, *made;
    size_t len;
    assert_int_equal(json_parse(SOURCE, strlen(SOURCE), "config.json", &source).code, 0);
    small_options o = {.name = "m", .config = source, .spinshard = spinshard};
    assert_int_equal(small_config_text(l, &o, text, &len).code, 0);
    assert_int_equal(strlen(*text), len);
    assert_int_equal(json_parse(*text, len, "config.json", &made).code, 0);
    json_decref(source);
    return made;
}

static void test_config(void **state) {
    (void)state;
    static const char *const order[] = {
        "architectures",       "torch_dtype", "rms_norm_eps",        "rope_theta", "own",
        "tie_word_embeddings", "vocab_size",  "quantization_config", "spinshard"};
    llama_config c = llama2_70b();
    layout_options o = plain_options(4, 64, false);
    o.untied = true;
    layout *l = make(&c, &o);
    json_t *online = json_pack("{s:[s]}", "online", "r3");
    char *text;
    const char *key;
    json_t *made = config_of(l, online, &text), *value;
    size_t i = 0;
    json_object_foreach(made, key, value) assert_string_equal(key, order[i++]);
    assert_int_equal(i, 9);
    assert_string_equal(json_string_value(json_object_get(made, "torch_dtype")), "bfloat16");
    assert_true(json_is_false(json_object_get(made, "tie_word_embeddings")));
    assert_non_null(strstr(text, "\"rms_norm_eps\": 1e-5,")); /* short, as people write it */
    form_scheme scheme;
    assert_int_equal(loader_scheme_parse(made, "config.json", &scheme).code, 0);
    assert_true(scheme.form == form_find("pack-quantized") && scheme.bits == 4 &&
                scheme.group == 64 && !scheme.symmetric);
    free(text);
    json_decref(made);
    json_decref(online);
    layout_destroy(&l);

    o = plain_options(8, 0, true);
    c.tied = true;
    l = make(&c, &o);
    made = config_of(l, NULL, &text);
    assert_true(json_is_true(json_object_get(made, "tie_word_embeddings"))); /* left as it was */
    assert_int_equal(loader_scheme_parse(made, "config.json", &scheme).code, 0);
    assert_true(scheme.form == form_find("pack-quantized") && scheme.bits == 8 &&
                scheme.group == 0 && scheme.symmetric);
    json_object_del(made, "quantization_config");
    assert_int_equal(loader_scheme_parse(made, "config.json", &scheme).code, 0);
    assert_null(scheme.form);
    free(text);
    json_decref(made);
    layout_destroy(&l);
}

/* Set one key of the scheme and expect a refusal that names it. */
/* A scheme in which `key` is `value` is refused with a message that has the words. */
static void refuse_saying(const char *words, const char *path, const char *key, json_t *value) {
    static const char good[] =
        "{\"quantization_config\": {\"quant_method\": \"compressed-tensors\", \"format\": "
        "\"pack-quantized\", \"quantization_status\": \"compressed\", \"ignore\": [\"lm_head\"], "
        "\"config_groups\": {\"g\": {\"targets\": [\"Linear\"], \"weights\": {\"num_bits\": 4, "
        "\"type\": \"int\", \"symmetric\": true, \"strategy\": \"group\", \"group_size\": 32}}}}}";
    json_t *o;
    form_scheme scheme;
    assert_int_equal(json_parse(good, strlen(good), "c", &o).code, 0);
    assert_int_equal(loader_scheme_parse(o, "c", &scheme).code, 0);
    json_t *at = json_object_get(o, "quantization_config");
    if (*path) at = json_object_get(json_object_get(at, "config_groups"), "g");
    if (!strcmp(path, "weights")) at = json_object_get(at, "weights");
    json_object_set_new(at, key, value);
    err e = loader_scheme_parse(o, "c", &scheme);
    assert_int_equal(e.code, ERR_VERIFY);
    assert_non_null(strstr(e.what, words));
    json_decref(o);
}

static void refuse(const char *path, const char *key, json_t *value) {
    refuse_saying(key, path, key, value);
}

static void test_foreign_schemes(void **state) {
    (void)state;
    refuse_saying("quantized by awq", "", "quant_method", json_string("awq"));
    refuse_saying("\"float-quantized\"", "", "format", json_string("float-quantized"));
    refuse_saying("\"gguf\"", "", "format", json_string("gguf")); /* a form, and none of these */
    refuse("", "quantization_status", json_string("initialized"));
    refuse("", "ignore", json_array());
    refuse("", "kv_cache_scheme", json_object());
    refuse("", "transform_config", json_pack("{s:i}", "config_groups", 1));
    refuse("", "config_groups", json_object());
    refuse("group", "targets", json_pack("[s]", "re:(?i).*"));
    refuse("group", "input_activations", json_object());
    refuse("weights", "num_bits", json_integer(16));
    refuse("weights", "type", json_string("float"));
    refuse("weights", "symmetric", json_null());
    refuse("weights", "strategy", json_string("tensor"));
    refuse("weights", "group_size", json_integer(0));
    refuse("weights", "dynamic", json_true());
    refuse("weights", "actorder", json_string("group"));
}

/* The form int-quantized: a byte a code, two tensors a linear, inputs said in config.json. */
static void test_int8_layout(void **state) {
    (void)state;
    llama_config c = llama2_70b();
    layout_options o = plain_options(4, 0, true);
    o.linears.form = form_find("int-quantized");
    o.linears.inputs.bits = 8;
    layout *l = make(&c, &o);
    uint64_t linear = 2u * 8192 * 8192 + 2u * 1024 * 8192 + 3ull * 28672 * 8192;
    uint64_t rows = 3u * 8192 + 2 * 1024 + 2 * 28672;
    assert_int_equal(layout_unit_bytes(l, 5), linear + rows * 2 + 2 * 8192 * 2);
    assert_int_equal(layout_count(l), 80 * (7 * 2 + 2) + 3);
    const layout_slot *s = layout_find_role(l, ROLE_DOWN, 3, part_of("int-quantized", FORM_CODES));
    assert_string_equal(s->name, "model.layers.3.mlp.down_proj.weight");
    assert_true(s->dtype == ST_I8 && s->n_dims == 2 && s->shape[0] == 8192 && s->shape[1] == 28672);
    assert_null(layout_find_role(l, ROLE_DOWN, 3, NULL));
    assert_null(layout_find_role(l, ROLE_DOWN, 3, part_of("pack-quantized", FORM_CODES)));
    assert_null(layout_find_role(l, ROLE_EMBED, -1, part_of("int-quantized", FORM_CODES)));
    layout_destroy(&l);
    o.linears.symmetric = false;
    assert_int_equal(layout_create(&c, &o, &l).code, ERR_USAGE);
}

/* What inputs may be in that form; each other value is refused by its key. */
static void test_int8_config(void **state) {
    (void)state;
    llama_config c = odd_config();
    layout_options o = plain_options(8, 0, true);
    o.linears.form = form_find("int-quantized");
    o.linears.inputs.bits = 8;
    layout *l = make(&c, &o);
    char *text;
    form_scheme scheme;
    json_t *made = config_of(l, NULL, &text), *q = json_object_get(made, "quantization_config");
    assert_int_equal(loader_scheme_parse(made, "c", &scheme).code, 0);
    assert_true(scheme.form == form_find("int-quantized") && scheme.inputs.bits == 8 &&
                scheme.bits == 8 && scheme.group == 0 && scheme.symmetric);
    assert_string_equal(json_string_value(json_object_get(q, "format")), "int-quantized");
    json_t *in = json_object_get(json_object_get(json_object_get(q, "config_groups"), "group_0"),
                                 "input_activations");
    const struct {
        const char *key;
        json_t *value;
    } bad[] = {{"num_bits", json_integer(4)},
               {"type", json_string("float")},
               {"symmetric", json_false()},
               {"strategy", json_string("tensor")},
               {"dynamic", json_false()}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        json_t *good = json_incref(json_object_get(in, bad[i].key));
        json_object_set_new(in, bad[i].key, bad[i].value);
        err e = loader_scheme_parse(made, "c", &scheme);
        assert_int_equal(e.code, ERR_VERIFY);
        assert_non_null(strstr(e.what, bad[i].key));
        json_object_set_new(in, bad[i].key, good);
    }
    assert_int_equal(loader_scheme_parse(made, "c", &scheme).code, 0);
    free(text);
    json_decref(made);
    layout_destroy(&l);
}

static void test_index_and_card(void **state) {
    (void)state;
    llama_config c = odd_config();
    layout_options o = plain_options(4, 0, true);
    o.shard_bytes = 500;
    layout *l = make(&c, &o);
    char *text;
    size_t len;
    json_t *index;
    assert_int_equal(small_index_text(l, &text, &len).code, 0);
    assert_int_equal(json_parse(text, len, "index", &index).code, 0);
    free(text);
    json_t *map = json_object_get(index, "weight_map");
    assert_int_equal(json_object_size(map), layout_count(l));
    uint64_t total = 0;
    for (int64_t i = 0; i < layout_count(l); i++) {
        const layout_slot *s = layout_tensor(l, i);
        char shard[64];
        layout_shard_name(l, s->part, shard);
        assert_string_equal(json_string_value(json_object_get(map, s->name)), shard);
        total += s->bytes;
    }
    assert_int_equal(
        json_integer_value(json_object_get(json_object_get(index, "metadata"), "total_size")),
        total);
    json_decref(index);

    json_t *recipe = json_pack("{s:i, s:{s:s}}", "seed", 0, "weights", "method", "rtn");
    small_options so = {.name = "mod", .recipe = recipe};
    assert_int_equal(small_card_text(l, &so, &text, &len).code, 0);
    assert_non_null(strstr(text, "from_pretrained(\"./mod\")"));
    assert_non_null(strstr(text, "\n    seed: 0\n"));
    assert_non_null(strstr(text, "--model_args pretrained=./mod"));
    assert_null(strstr(text, "base_model"));
    free(text);
    so.base_model = "org/Model-7B";
    so.front = json_pack("{s:s, s:s, s:[s, s], s:[s, s, i], s:s, s:n}", "license", "other",
                         "license_name", "the-licence", "language", "en", "no", "tags", "chat",
                         "int4", 3, "base_model", "org/Base", "datasets");
    assert_int_equal(small_card_text(l, &so, &text, &len).code, 0);
    char *end = strstr(text, "\n---\n");
    assert_true(!strncmp(text, "---\n", 4) && end);
    json_t *front;
    assert_int_equal(yaml_parse(text + 4, (size_t)(end + 1 - text - 4), "card", &front).code, 0);
    json_t *want =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:[s, s], s:[s, s, s, s]}", "base_model",
                  "org/Model-7B", "base_model_relation", "quantized", "library_name",
                  "transformers", "license", "other", "license_name", "the-licence", "language",
                  "en", "no", "tags", "spinshard", "compressed-tensors", "int4", "chat");
    assert_true(json_equal(front, want));
    json_decref(front);
    json_decref(want);
    json_decref((json_t *)(uintptr_t)so.front);
    free(text);
    json_decref(recipe);
    layout_destroy(&l);
    assert_true(small_file_is_copied("tokenizer.json") && small_file_is_copied("LICENSE.txt"));
    assert_true(small_file_is_copied("USE_POLICY.md") &&
                small_file_is_copied("chat_template.jinja"));
    assert_false(small_file_is_copied("config.json") || small_file_is_copied("README.md"));
    assert_false(small_file_is_copied("model.safetensors") || small_file_is_copied("LICENSE\n"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_70b),
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_tied),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_config),
        cmocka_unit_test(test_foreign_schemes),
        cmocka_unit_test(test_int8_layout),
        cmocka_unit_test(test_int8_config),
        cmocka_unit_test(test_index_and_card),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
